"""The field's vocabulary: modalities, label conventions and evaluation regions.

Channel order and class order exist here and nowhere else; everything else goes by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer, UInt8

Modality = Literal["t1", "t1ce", "t2", "flair"]
Region = Literal["WT", "TC", "ET"]

MODALITIES: tuple[Modality, ...] = ("t1", "t1ce", "t2", "flair")
"""Channel order of every array with a channel axis."""

CLASSES: tuple[str, ...] = ("background", "NCR", "ED", "ET")
"""Internal classes, by index: necrotic and non-enhancing core, oedema, enhancing tumour."""

REGION_CLASSES: Mapping[Region, tuple[int, ...]] = MappingProxyType({"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)})
"""Regions of the BraTS evaluation as sets of internal classes (Menze et al. 2015, section III)."""

OUTSIDE_BRAIN = 255
"""Value of prepared label maps outside the brain mask."""


@dataclass(frozen=True)
class LabelConvention:
    """What the values of a label file mean.

    Attributes:
      name: short name, printed with every decision.
      to_class: file value -> internal class, background included.
      from_class: internal class -> file value written by `predict`.
    """

    name: str
    to_class: Mapping[int, int]
    from_class: Mapping[int, int]

    def decode(self, values: Integer[np.ndarray, "d h w"]) -> UInt8[np.ndarray, "d h w"]:
        """File values to internal classes; every value must be in `to_class` (checked by the reader)."""
        table = np.zeros(max(self.to_class) + 1, np.uint8)
        for value, index in self.to_class.items():
            table[value] = index
        return table[values]

    def encode(self, classes: Integer[np.ndarray, "d h w"]) -> UInt8[np.ndarray, "d h w"]:
        """Internal classes (0 to 3) to file values."""
        return np.array([self.from_class[i] for i in range(len(CLASSES))], np.uint8)[classes]


def _convention(name: str, to_class: dict[int, int], from_class: dict[int, int] | None = None) -> LabelConvention:
    inverse = {index: value for value, index in to_class.items()} if from_class is None else from_class
    return LabelConvention(name, MappingProxyType(to_class), MappingProxyType(inverse))


CONVENTIONS: Mapping[str, LabelConvention] = MappingProxyType(
    {
        c.name: c
        for c in (
            # 1 necrosis, 2 oedema, 3 non-enhancing core, 4 enhancing: 1 and 3 are one class from 2017 on.
            _convention("brats2013", {0: 0, 1: 1, 2: 2, 3: 1, 4: 3}, {0: 0, 1: 1, 2: 2, 3: 4}),
            _convention("brats2018", {0: 0, 1: 1, 2: 2, 4: 3}),  # 2017 to 2021
            _convention("brats2023", {0: 0, 1: 1, 2: 2, 3: 3}),
        )
    }
)


def region_mask(classes: Integer[np.ndarray, "d h w"], region: Region) -> Bool[np.ndarray, "d h w"]:
    """Voxels of a map of internal classes that belong to a region."""
    return np.logical_or.reduce([classes == value for value in REGION_CLASSES[region]])
