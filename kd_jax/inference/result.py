"""The segmentation of a patient as a person gets it: labels, probabilities and volumes on the grid of the images."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from data_pipeline.conventions import CLASSES, CONVENTIONS, REGION_CLASSES, LabelConvention, Region, Spacing
from data_pipeline.errors import InputError
from data_pipeline.reading.findings import Finding
from data_pipeline.reading.nifti import Geometry
from data_pipeline.reading.write_back import write_label_as_stored
from kd_jax.metrics import region_volumes_ml


@dataclass(frozen=True, eq=False, repr=False)
class SegmentationResult:
    """The segmentation of one patient, in the order and direction of axes of the images that were given.

    The grid is that of the first image given that a network sees; of a folder, the first in the order T1, T1CE, T2,
    FLAIR. For a file or an image of nibabel, the axes are those of `nibabel.load(path)`, so that a result can be
    compared voxel by voxel with the label as it is loaded.

    Attributes:
      labels: after post-processing: 0 background, 1 NCR (necrotic and non-enhancing core), 2 ED (oedema), 3 ET
        (enhancing tumour). These are the values of BraTS 2023; `values` gives those of other years.
      probabilities: of every channel, before post-processing, if asked for: softmax over classes, or the sigmoid of
        each region.
      channels: name of each channel of the probabilities: background, NCR, ED, ET; or WT, TC, ET.
      findings: what was unusual about the images, the worst first.
      convention: values that `save` writes: those of the layout of a folder or case, else BraTS 2023.
      grid: where the voxels lie.

    Examples:
      >>> import kd_jax
      >>> result = kd_jax.load("runs/paper").segment("patient")
      >>> result
      SegmentationResult(14 x 16 x 12 voxels, WT 1.7 ml, TC 1.5 ml, ET 0.3 ml, 0 findings)
      >>> int(result.mask("ET").sum()), round(result.volumes_ml["ET"], 3)  # voxels of 1 mm³
      (339, 0.339)
      >>> sorted(set(result.values("brats2018").ravel().tolist()))  # enhancing tumour is 4 there
      [0, 1, 2, 4]
    """

    labels: UInt8[np.ndarray, "i j k"]
    probabilities: Float32[np.ndarray, "i j k c"] | None
    channels: tuple[str, ...]
    findings: tuple[Finding, ...]
    convention: LabelConvention
    grid: Geometry

    def __repr__(self) -> str:
        volumes = ", ".join(f"{region} {ml:.1f} ml" for region, ml in self.volumes_ml.items())
        shape, found = " x ".join(map(str, self.labels.shape)), len(self.findings)
        return f"{type(self).__name__}({shape} voxels, {volumes}, {found} finding{'s' * (found != 1)})"

    @property
    def affine(self) -> Float64[np.ndarray, "4 4"]:
        """Voxel indices of `labels` to mm."""
        return self.grid.affine_on_disk

    @property
    def spacing(self) -> Spacing:
        """Edges of a voxel in mm, in the order of the axes of `labels`."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @cached_property
    def volumes_ml(self) -> Mapping[Region, float]:
        """Volumes in ml of whole tumour (WT), tumour core (TC) and enhancing tumour (ET)."""
        return region_volumes_ml(self.labels, self.spacing)

    def mask(self, part: str) -> Bool[np.ndarray, "i j k"]:
        """Voxels of a region (WT, TC, ET) or of a class (background, NCR, ED, ET).

        Raises:
          InputError: there is no such part.
        """
        parts: dict[str, tuple[int, ...]] = {name: (index,) for index, name in enumerate(CLASSES)}
        parts |= {str(region): classes for region, classes in REGION_CLASSES.items()}
        if part not in parts:
            raise InputError(f"{part!r}: not a part of the tumour; expected one of {', '.join(parts)}")
        return np.isin(self.labels, parts[part])

    def values(self, convention: str | None = None) -> UInt8[np.ndarray, "i j k"]:
        """The labels in the values of a convention.

        Args:
          convention: brats2013, brats2018 (2017 to 2021, with 4 for ET), brats2023, brats2024, brats2024-ped or msd;
            None takes `convention`.

        Raises:
          InputError: the convention is not known.
        """
        return self._convention(convention).encode(self.labels)

    def save(self, path: str | PathLike[str], convention: str | None = None) -> None:
        """Writes the labels as NIfTI (.nii or .nii.gz) on the grid of the images.

        Args:
          path: the file; one that is there is replaced.
          convention: as for `values`.

        Raises:
          InputError: the convention is not known, the name is not that of a NIfTI file, or it cannot be written.
        """
        if not str(path).lower().endswith((".nii", ".nii.gz")):
            raise InputError(f"{path}: labels are written as NIfTI; give a name that ends in .nii.gz or .nii")
        write_label_as_stored(Path(path), self.labels, self.grid, self._convention(convention))

    def _convention(self, name: str | None) -> LabelConvention:
        if name is not None and name not in CONVENTIONS:
            raise InputError(f"convention {name!r}: not known; expected one of {', '.join(CONVENTIONS)}")
        return self.convention if name is None else CONVENTIONS[name]
