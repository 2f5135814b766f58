"""The meaning of label values as given on the command line: "1=NCR,2=ED,4=ET"."""

import re
from collections.abc import Mapping
from types import MappingProxyType

from data_pipeline.conventions import CAVITY, CLASSES, LabelConvention, convention
from data_pipeline.errors import InputError


def parse_label_map(text: str) -> LabelConvention:
    """A label convention from "1=NCR,2=ED,4=ET".

    NET, NETC and CC (cystic component) belong to the class NCR, SNFH is ED, and RC is the resection cavity, which is
    not tumour. Predictions are written with the first value named for a class.

    Raises:
      InputError: the text has another form, an unknown class, a value named twice or outside 1 to 255, or a class
        without a value.
    """
    to_class, from_class = {0: 0}, {0: 0}
    for item in text.split(","):
        value, name = _map_item(item, text)
        index = _CLASS_OF_NAME[name]
        if value in to_class:
            raise InputError(f'label map "{text}": the value {value} is named twice; name each value once')
        to_class[value] = index
        from_class.setdefault(index, value)
    missing = [name for index, name in enumerate(CLASSES) if index not in from_class]
    if missing:
        raise InputError(
            f'label map "{text}": no value for {", ".join(missing)}; all of NCR (or NET), ED and ET need one'
        )
    return convention(f"label map {text}", to_class, from_class)


_CLASS_OF_NAME: Mapping[str, int] = MappingProxyType(
    {"BACKGROUND": 0, "RC": CAVITY, "NCR": 1, "NET": 1, "NETC": 1, "CC": 1, "ED": 2, "SNFH": 2, "ET": 3}
)


def _map_item(item: str, text: str) -> tuple[int, str]:
    match = re.fullmatch(r"\s*(\d+)\s*=\s*(\w+)\s*", item)
    if match is None:
        raise InputError(
            f'label map "{text}": cannot read "{item}"; expected VALUE=CLASS pairs as in "1=NCR,2=ED,4=ET"'
        )
    value, name = int(match[1]), match[2].upper()
    if name not in _CLASS_OF_NAME:
        raise InputError(f'label map "{text}": unknown class {match[2]}; expected one of {", ".join(_CLASS_OF_NAME)}')
    if not 1 <= value <= 255:
        raise InputError(f'label map "{text}": value {value} is not allowed; 0 is background, classes are 1 to 255')
    return value, name
