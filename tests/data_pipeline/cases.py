"""Tiny synthetic BraTS folders for tests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

from data_pipeline.case import Case
from data_pipeline.conventions import CONVENTIONS, MODALITIES, Modality
from data_pipeline.layouts.find import find_cases

Layout = Literal["2013", "2021", "2023"]

SRI24 = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
"""Affine of the BraTS files of 2018 to 2021."""

_IDS = {"2013": "brats_2013_pat{:04d}_1", "2021": "BraTS2021_{:05d}", "2023": "BraTS-GLI-{:05d}-000"}
_SUFFIXES: dict[str, dict[str, str]] = {
    "2013": {m: f"_{m}" for m in (*MODALITIES, "seg")},
    "2021": {m: f"_{m}" for m in (*MODALITIES, "seg")},
    "2023": {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f", "seg": "-seg"},
}
_CONVENTION = {"2013": "brats2013", "2021": "brats2018", "2023": "brats2023"}


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray = SRI24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def labels(rng: np.random.Generator, shape: Sequence[int] = (3, 4, 5)) -> np.ndarray:
    """Random values of BraTS 2021."""
    return rng.choice(np.array([0, 1, 2, 4], np.uint8), tuple(shape))


def file_of(folder: Path, case: str, role: str, layout: Layout = "2021", extension: str = ".nii.gz") -> Path:
    """The file of a modality, or of the label ("seg"), in a case's folder."""
    return folder / f"{case}{_SUFFIXES[layout][role]}{extension}"


def tiny_classes(shape: Sequence[int]) -> np.ndarray:
    """Internal classes on disk order: a box of oedema around one of enhancing around one of necrotic voxels."""
    grid = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in shape], indexing="ij"))
    distance = np.abs(grid).max(axis=0)
    classes = np.zeros(tuple(shape), np.uint8)
    classes[distance < 0.24], classes[distance < 0.17], classes[distance < 0.09] = 2, 3, 1
    return classes


def tiny_images(
    shape: Sequence[int], modalities: Sequence[Modality], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """int16 images with an ellipsoid brain in a zero background and the tumour of `tiny_classes` in it."""
    grid = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in shape], indexing="ij"))
    brain = (grid**2).sum(axis=0) < 0.43**2
    contrast = rng.uniform(0.5, 2.0, (len(MODALITIES), 4))
    contrast[:, 0] = 1
    classes = tiny_classes(shape)
    noise = {m: rng.normal(0, 20, tuple(shape)) for m in modalities}
    return {
        m: np.where(brain, 200 * contrast[MODALITIES.index(m)][classes] + noise[m], 0).clip(0).astype(np.int16)
        for m in modalities
    }


def write_case(
    folder: Path,
    *,
    rng: np.random.Generator,
    layout: Layout = "2021",
    case: str | None = None,
    number: int = 0,
    shape: Sequence[int] = (14, 16, 12),
    modalities: Sequence[Modality] = MODALITIES,
    label: bool = True,
    extension: str = ".nii.gz",
    affine: np.ndarray = SRI24,
) -> Path:
    """Write one case into `folder/<case>` and return that folder.

    `case` is the stem; without it the layout's name for `number`. The label holds all three classes,
    in the layout's own values.
    """
    case = _IDS[layout].format(number) if case is None else case
    home = folder / case
    for modality, data in tiny_images(shape, modalities, rng).items():
        write_nifti(file_of(home, case, modality, layout, extension), data, affine)
    if label:
        values = CONVENTIONS[_CONVENTION[layout]].encode(tiny_classes(shape))
        write_nifti(file_of(home, case, "seg", layout, extension), values, affine)
    return home


def one_case(folder: Path, rng: np.random.Generator, **options: Any) -> Case:
    """Write one case with `write_case` and find it."""
    return find_cases(write_case(folder, rng=rng, **options))[0]


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> None:
    """Replace the voxels of a file by `change(voxels)`, and its affine if one is given."""
    image = nib.load(path)
    write_nifti(path, change(np.asarray(image.dataobj)), image.affine if affine is None else affine)
