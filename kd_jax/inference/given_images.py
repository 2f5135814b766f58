"""Images in the forms that a person has them in: files, nibabel images and arrays by modality, a folder, a case."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from nibabel.spatialimages import SpatialImage

from data_pipeline.case import Case
from data_pipeline.conventions import CONVENTIONS, MODALITIES, Modality
from data_pipeline.errors import InputError
from data_pipeline.layouts.find import find_cases
from data_pipeline.reading.findings import Finding, Refusal
from data_pipeline.reading.in_memory import open_array, open_image
from data_pipeline.reading.nifti import Geometry, grid_of
from data_pipeline.reading.stored import Stored, open_nifti

GivenImage: TypeAlias = str | PathLike[str] | SpatialImage | np.ndarray
"""One modality: a NIfTI file, an image of nibabel, or an array."""
ByModality: TypeAlias = Mapping[str, GivenImage] | Mapping[Modality, GivenImage]
"""Images of one patient, by modality."""
GivenImages: TypeAlias = ByModality | str | PathLike[str] | Case
"""Images of one patient: by modality, or as the patient's folder or case."""
GivenAffine: TypeAlias = np.ndarray | Sequence[Sequence[float]] | None

INTERNAL = CONVENTIONS["brats2023"]
"""The convention whose values are the internal classes: 1 NCR, 2 ED, 3 ET."""


@dataclass(frozen=True, eq=False)
class GivenCase:
    """A case, some of whose images may be in memory.

    Attributes:
      case: the paths of images in memory are names, for messages.
      by_modality: whether a person listed the images; the first one's grid is then that of the result.
      in_memory: opens an image by such a name.
    """

    case: Case
    by_modality: bool = False
    in_memory: Mapping[Path, Callable[[], Stored]] = field(default_factory=lambda: MappingProxyType({}))

    def open(self, path: Path) -> Stored:
        """Opens an image from the disk or from memory.

        Raises:
          FileError: it cannot be used.
        """
        return self.in_memory[path]() if path in self.in_memory else open_nifti(path)

    def result_grid(self, read: Geometry, seen: Sequence[Modality]) -> Geometry:
        """The grid, with its order of axes, that a person expects the result on.

        Args:
          read: that of the first image in channel order, on which a command would write.
          seen: the modalities that were read.
        """
        first = next(path for m, path in self.case.images.items() if m in seen)
        return grid_of(self.open(first)) if self.by_modality and first != read.source else read

    def mention(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        """Findings without the command lines that would mend a file, if there is none."""
        return tuple(replace(f, command=None) for f in findings) if self.in_memory else tuple(findings)

    def refusal(self, refusal: Refusal) -> Refusal:
        """A refusal without such command lines."""
        return Refusal(self.mention(refusal.errors))


def given_case(images: GivenImages, affine: GivenAffine = None) -> GivenCase:
    """The case that a person gives.

    Args:
      images: by modality, or a folder or case of one patient.
      affine: of all arrays among them, [4, 4].

    Raises:
      InputError: a name is no modality, an image is none of the accepted kinds, an array has no affine, an affine has
        no array; or a folder is not that of one patient.
    """
    if isinstance(images, Mapping):
        return _listed(images, affine)
    if affine is not None:
        raise InputError("affine: only arrays need one, and none is given; leave it out")
    return GivenCase(images if isinstance(images, Case) else _only_case(Path(images)))


def _only_case(folder: Path) -> Case:
    cases = find_cases(folder)
    if len(cases) > 1:
        raise InputError(f"{folder}: holds {len(cases)} cases; give one patient's folder, or one case of find_cases")
    return cases[0]


def _listed(
    images: ByModality,
    affine: GivenAffine,
) -> GivenCase:
    if not images:
        raise InputError(f"no images given; give some by modality: {', '.join(MODALITIES)}")
    matrix = None if affine is None else np.asarray(affine, np.float64)
    if matrix is not None and matrix.shape != (4, 4):
        raise InputError(f"affine: has shape {matrix.shape}, expected (4, 4): voxel indices to mm, as in nibabel")
    if matrix is not None and not any(isinstance(image, np.ndarray) for image in images.values()):
        raise InputError("affine: only arrays need one, and none is given; leave it out")
    paths: dict[Modality, Path] = {}
    in_memory: dict[Path, Callable[[], Stored]] = {}
    for name, image in images.items():
        modality = _modality(name)
        if isinstance(image, str | PathLike):
            paths[modality] = Path(image)
        else:
            paths[modality] = label = Path(f"{modality} image")
            in_memory[label] = _opener(label, image, matrix)
    case = Case("images", "images", MappingProxyType(paths), None, INTERNAL, "images by modality")
    return GivenCase(case, True, MappingProxyType(in_memory))


def _modality(name: str) -> Modality:
    for modality in MODALITIES:
        if name == modality:
            return modality
    near = difflib.get_close_matches(str(name).lower(), MODALITIES, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(f"{name!r}: not a modality{hint}; expected {', '.join(MODALITIES)}")


def _opener(label: Path, image: object, affine: np.ndarray | None) -> Callable[[], Stored]:
    if isinstance(image, SpatialImage):
        return partial(open_image, label, image)
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"{label}: expected a path, an image of nibabel or a NumPy array, found {type(image).__name__}"
        )
    if affine is None:
        raise InputError(
            f"{label}: an array does not say where its voxels lie; give affine=, the [4, 4] matrix from voxel indices "
            "to mm (the affine of the image as nibabel loaded it)"
        )
    return partial(open_array, label, image, affine)
