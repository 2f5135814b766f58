"""nnU-Net's and the MSD's dataset.json: the modality of each channel and the class of each label value.

Both are named in free text; the spellings of the field are listed here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from data_pipeline.conventions import CAVITY, CLASSES, LabelConvention, Modality, convention
from data_pipeline.errors import FileError

_MODALITY_NAMES: Mapping[Modality, str] = MappingProxyType(
    {
        "t1": "t1 t1w t1n t1native t1pre",
        "t1ce": "t1ce t1c t1gd t1wce t1wgd t1cew t1ge t1post t1contrast",
        "t2": "t2 t2w",
        "flair": "flair t2flair t2f t2wflair flairw",
    }
)
_ENHANCING = (
    "et; at; enhancing; enhancing tumor; enhancing tumor core; active tumor; gd enhancing tumor; "
    "contrast enhancing tumor; gadolinium enhancing tumor"
)
_CLASS_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "NCR": "ncr; net; netc; ncr net; net ncr; ncr netc; necrosis; necrotic; necrotic core; necrotic tumor; "
        "necrotic tumor core; non enhancing; non enhancing core; non enhancing tumor; non enhancing tumor core; "
        "nonenhancing tumor; nonenhancing tumor core; necrotic non enhancing; necrotic non enhancing tumor; "
        "necrotic non enhancing tumor core; necrosis non enhancing tumor; necrotic and non enhancing tumor; "
        "necrotic and non enhancing tumor core; necrosis and non enhancing tumor",
        "ED": "ed; edema; peritumoral edema; peritumoral edematous tissue; peritumoral edematous invaded tissue; "
        "snfh; surrounding non enhancing flair hyperintensity",
        "ET": _ENHANCING,
    }
)
_REGION_NAMES: Mapping[str, str] = MappingProxyType(
    {"WT": "wt; whole; whole tumor; complete tumor", "TC": "tc; core; tumor core", "ET": _ENHANCING}
)

_HOW = "say what the values mean with --label-map (for training: --data.label_map)"
_CAVITY_NAMES: Mapping[str, str] = MappingProxyType({"RC": "rc; cavity; resection cavity"})


def modality_named(name: str) -> Modality | None:
    """The modality that a channel's name stands for; None for an unknown one."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return next((m for m, spellings in _MODALITY_NAMES.items() if plain in spellings.split()), None)


def class_named(name: str) -> str | None:
    """The one of NCR, ED and ET that a label's name stands for; None for an unknown one."""
    return _known(name, _CLASS_NAMES)


def region_named(name: str) -> str | None:
    """The one of WT, TC and ET that a label's name stands for; None for an unknown one."""
    return _known(name, _REGION_NAMES)


def _known(name: str, spellings: Mapping[str, str]) -> str | None:
    plain = re.sub(r"[^a-z]+", " ", name.lower().replace("tumour", "tumor").replace("oedema", "edema")).strip()
    return next((ours for ours, known in spellings.items() if plain in known.split("; ")), None)


def _by_value(labels: object) -> object:
    """Labels by name; files of the MSD and nnU-Net 1 have names by value instead."""
    if isinstance(labels, dict) and labels and all(str(key).isdigit() for key in labels):
        return {name: int(value) for value, name in labels.items()}
    return labels


@dataclass(frozen=True)
class _Content:
    """The part of a dataset.json that describes its files."""

    labels: Annotated[dict[str, int | list[int]], BeforeValidator(_by_value)]
    channel_names: dict[int, str] | None = None
    modality: dict[int, str] | None = None
    file_ending: str = ".nii.gz"


@dataclass(frozen=True)
class DatasetJson:
    """A dataset.json.

    Attributes:
      file: its path.
      channels: index of each modality's channel.
      labels: names with a value, or with the values of a region.
    """

    file: Path
    channels: Mapping[Modality, int]
    labels: Mapping[str, int | list[int]]


def read_dataset_json(file: Path) -> DatasetJson:
    """Read the channels and labels of a dataset.json.

    Raises:
      FileError: the file cannot be read or has another form; channels are not counted from 0; a channel has no known
        modality, or two have the same; the images are not NIfTI.
    """
    try:
        content = TypeAdapter(_Content).validate_json(file.read_bytes())
    except OSError as error:
        raise FileError(file, f"cannot be read ({error.strerror or error})", "check the file") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the top"
        raise FileError(file, f"at {where}: {problem['msg'].lower()}", "expected the form of nnU-Net 2") from error
    names = content.channel_names or content.modality
    if not names:
        raise FileError(
            file, "has neither channel_names nor modality", "add channel_names with the modality of each channel"
        )
    if sorted(names) != list(range(len(names))):
        found = f"has the channels {', '.join(map(str, sorted(names)))}"
        raise FileError(file, found, f"expected 0 to {len(names) - 1}: channels are counted from 0 without a gap")
    channels: dict[Modality, int] = {}
    for channel, name in sorted(names.items()):
        modality = modality_named(name)
        if modality is None or modality in channels:
            what = "not a known modality" if modality is None else f"{modality}, as is channel {channels[modality]}"
            raise FileError(
                file, f'channel {channel} is called "{name}": {what}', "correct the name, as in T1, T1CE, T2 and FLAIR"
            )
        channels[modality] = channel
    if content.file_ending not in (".nii", ".nii.gz"):
        raise FileError(file, f"file_ending is {content.file_ending}", "convert the files to .nii.gz")
    return DatasetJson(file, MappingProxyType(channels), MappingProxyType(content.labels))


def label_convention(dataset: DatasetJson) -> LabelConvention:
    """The meaning of the label values by the names of the labels: classes, or regions as lists of values.

    Raises:
      FileError: a name is not known, or the names are not NCR, ED and ET, or WT, TC and ET, once each.
    """
    sets = {name: {value} if isinstance(value, int) else set(value) for name, value in dataset.labels.items()}
    _check_values(dataset, sets)
    cavity = {value for name, values in sets.items() if _known(name, _CAVITY_NAMES) for value in values}
    foreground = {
        name: values
        for name, values in sets.items()
        if name != "ignore" and values != {0} and not _known(name, _CAVITY_NAMES)
    }
    if any(len(values) > 1 for values in sets.values()):
        of_class = _from_regions(dataset, foreground)
    else:
        of_class = _named(dataset, foreground, _CLASS_NAMES)
    groups = [*of_class.values(), cavity]
    if sum(map(len, groups)) > len(set().union(*groups)):
        raise FileError(dataset.file, f"labels gives one value to two classes: {dict(dataset.labels)}", _HOW)
    to_class = {0: 0} | dict.fromkeys(cavity, CAVITY)
    to_class |= {value: CLASSES.index(ours) for ours, values in of_class.items() for value in values}
    return convention("dataset.json", to_class)


def _check_values(dataset: DatasetJson, sets: Mapping[str, set[int]]) -> None:
    for name, values in sets.items():
        if not values or min(values) < 0 or max(values) > 255:
            raise FileError(dataset.file, f'labels gives "{name}" the values {sorted(values)}', "expected 0 to 255")
        if 0 in values and values != {0}:
            raise FileError(dataset.file, f'labels gives "{name}" the values {sorted(values)}', "0 is the background")


def _from_regions(dataset: DatasetJson, sets: Mapping[str, set[int]]) -> dict[str, set[int]]:
    regions = _named(dataset, sets, _REGION_NAMES)
    whole, core, enhancing = regions["WT"], regions["TC"], regions["ET"]
    if not enhancing < core < whole:
        shown = {name: sorted(values) for name, values in sets.items()}
        raise FileError(
            dataset.file, f"labels has the regions {shown}, which do not lie within each other", "correct labels"
        )
    return {"ED": whole - core, "NCR": core - enhancing, "ET": enhancing}


def _named(dataset: DatasetJson, sets: Mapping[str, set[int]], spellings: Mapping[str, str]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name, values in sets.items():
        ours = _known(name, spellings)
        if ours is None or ours in found:
            what = f"not a known name of {', '.join(spellings)}" if ours is None else f"a second {ours}"
            raise FileError(dataset.file, f'labels calls one "{name}", {what}', _HOW)
        found[ours] = values
    if missing := [ours for ours in spellings if ours not in found]:
        raise FileError(dataset.file, f"labels has no {', '.join(missing)}", _HOW)
    return found
