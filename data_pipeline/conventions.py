"""The field's vocabulary: modalities, label conventions, evaluation regions, and the types of shapes.

The order of channels and classes is written here and nowhere else; all other code goes by name, so that no file can
disagree with another about what channel 2 is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer, UInt8

Shape3 = tuple[int, int, int]
"""Voxels per axis of a volume, a patch or a window; strides and kernel sizes, too."""

Index3 = tuple[int, int, int]
"""A voxel by its index along each axis, or a displacement in whole voxels."""

Spacing = tuple[float, float, float]
"""Edges of a voxel, in mm."""

Slices3 = tuple[slice, slice, slice]
"""A box of voxels inside a volume, to index it with."""

Modality = Literal["t1", "t1ce", "t2", "flair"]
Region = Literal["WT", "TC", "ET"]

MODALITIES: tuple[Modality, ...] = ("t1", "t1ce", "t2", "flair")
"""Channel order of every array with a channel axis."""

CLASSES: tuple[str, ...] = ("background", "NCR", "ED", "ET")
"""Internal classes, by index: necrotic and non-enhancing core, oedema, enhancing tumour."""

CAVITY = 4
"""Resection cavity: an internal class that only label files have. No region contains it; networks see background."""

LABEL_NAMES: tuple[str, ...] = (*CLASSES, "cavity")
"""Names of all internal classes of label files, by index."""

REGION_CLASSES: Mapping[Region, tuple[int, ...]] = MappingProxyType({"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)})
"""Regions of the BraTS evaluation as sets of internal classes (Menze et al. 2015, section III)."""

OUTSIDE_BRAIN = 255
"""Value of prepared label maps outside the brain mask."""


@dataclass(frozen=True)
class LabelConvention:
    """The meaning of the values in a label file.

    Attributes:
      name: short name, shown wherever the convention decides something.
      to_class: file value -> internal class, background included.
      from_class: internal class -> file value written by `predict`.
    """

    name: str
    to_class: Mapping[int, int]
    from_class: Mapping[int, int]

    def decode(self, values: Integer[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
        """File values to internal classes; every value must be in `to_class`, which the reader checks."""
        table = np.zeros(max(self.to_class) + 1, np.uint8)
        for value, index in self.to_class.items():
            table[value] = index
        return table[values]

    def encode(self, classes: Integer[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
        """Internal classes to file values; the cavity is background where the convention has no value for it."""
        return np.array([self.from_class.get(i, 0) for i in range(CAVITY + 1)], np.uint8)[classes]

    @property
    def meaning(self) -> str:
        """The classes by value, without the background: "1 NCR, 2 ED, 4 ET"."""
        return ", ".join(f"{value} {LABEL_NAMES[index]}" for value, index in sorted(self.to_class.items()) if value)


def convention(name: str, to_class: Mapping[int, int], from_class: Mapping[int, int] | None = None) -> LabelConvention:
    """A read-only convention. Without `from_class`, the smallest value of a class is written for it."""
    if from_class is None:
        from_class = {index: value for value, index in sorted(to_class.items(), reverse=True)}
    return LabelConvention(name, MappingProxyType(dict(to_class)), MappingProxyType(dict(from_class)))


CONVENTIONS: Mapping[str, LabelConvention] = MappingProxyType(
    {
        c.name: c
        for c in (
            # 1 necrosis, 2 oedema, 3 non-enhancing core, 4 enhancing: 1 and 3 are one class from 2017 on.
            convention("brats2013", {0: 0, 1: 1, 2: 2, 3: 1, 4: 3}),
            convention("brats2018", {0: 0, 1: 1, 2: 2, 4: 3}),  # 2017 to 2021, BraTS-TCGA, UPenn-GBM, UCSF-PDGM
            convention("brats2023", {0: 0, 1: 1, 2: 2, 3: 3}),
            convention("brats2024", {0: 0, 1: 1, 2: 2, 3: 3, 4: CAVITY}),
            # 1 ET, 2 non-enhancing tumour, 3 cystic component, 4 oedema.
            convention("brats2024-ped", {0: 0, 1: 3, 2: 1, 3: 1, 4: 2}),
            convention("msd", {0: 0, 1: 2, 2: 1, 3: 3}),
        )
    }
)


def without_cavity(classes: UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Classes as networks know them, with background for the resection cavity."""
    return np.where(classes == CAVITY, np.uint8(0), classes)


def region_mask(classes: Integer[np.ndarray, "d h w"], region: Region) -> Bool[np.ndarray, "d h w"]:
    """Voxels of a map of internal classes that belong to a region."""
    return np.logical_or.reduce([classes == value for value in REGION_CLASSES[region]])
