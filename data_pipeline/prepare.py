"""Prepare every case once: a cache of normalised, memory-mapped volumes that training reads patches from.

A case's folder is named by a hash of its files' contents and of the settings, so a changed file or
setting makes a new folder and an unchanged one is used again. Folders appear complete or not at all.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from data_pipeline.conventions import CLASSES, MODALITIES, Modality
from data_pipeline.errors import InputError
from data_pipeline.every_case import every_case
from data_pipeline.files import folder_atomically, remove_abandoned, write_error
from data_pipeline.formats import Case
from data_pipeline.resample import Spacing, as_spacing
from data_pipeline.subject import Crop, Subject, load_subject, to_original_grid

__all__ = ["Crop", "PreparedCase", "Subject", "load_subject", "prepare_cases", "to_original_grid"]

VERSION = 2
"""Raised whenever preparation gives different arrays for the same input; old cache entries are then not found."""

FOREGROUND_VOXELS = 10_000
"""At most this many voxels per class are kept for foreground sampling (nnU-Net keeps as many)."""

_IMAGES, _LABEL, _FOREGROUND, _META = "images.npy", "label.npy", "foreground.npz", "meta.json"
_ABANDONED = 24 * 3600.0  # seconds; no case takes a day to write


@dataclass(frozen=True)
class PreparedCase:
    """One cached case on disk; cheap to pass to worker processes."""

    id: str
    patient: str
    folder: Path
    modalities: tuple[Modality, ...]
    shape: tuple[int, int, int]
    source: Case
    notes: tuple[str, ...] = field(default=())

    def images(self) -> Float32[np.memmap, "d h w c"]:
        """All of `MODALITIES` as `Subject.images`, memory-mapped: a slice reads only its part of the file."""
        return np.load(self.folder / _IMAGES, mmap_mode="r")

    def label(self) -> UInt8[np.memmap, "d h w"]:
        """As `Subject.label`, memory-mapped."""
        return np.load(self.folder / _LABEL, mmap_mode="r")

    def foreground(self) -> dict[int, Int32[np.ndarray, "k 3"]]:
        """Random voxels of each tumour class, at most 10,000; an absent class has none."""
        with np.load(self.folder / _FOREGROUND) as arrays:
            return {int(name): arrays[name] for name in arrays.files}


def prepare_cases(
    cases: Sequence[Case],
    spacing: float | Sequence[float],
    cache: Path,
    *,
    workers: int,
    skip_bad: bool = False,
    progress: bool = True,
    ignore_affine: bool = False,
) -> list[PreparedCase]:
    """Prepare all cases that are not in the cache yet, and return all, in the order given.

    Args:
      cases: from `formats.find_cases`; each needs a label file.
      spacing: target in mm, one number or one per canonical axis.
      cache: folder for the prepared cases; made if it is not there.
      workers: processes; 0 or 1 prepares in this one.
      skip_bad: print the cases that cannot be used to stderr and go on without them.
      progress: show a progress bar.
      ignore_affine: see `load_subject`.

    Raises:
      InputError: cases that cannot be used, all listed at once, one per line; no case is left; the
        cache cannot be written.
    """
    remove_abandoned(Path(cache), older_than=_ABANDONED)
    return every_case(
        partial(_prepare_case, spacing=as_spacing(spacing), cache=Path(cache), ignore_affine=ignore_affine),
        cases,
        workers,
        doing="preparing",
        skip_bad=skip_bad,
        skip_option="--data.skip_bad true",
        progress=progress,
    )


def _prepare_case(case: Case, spacing: Spacing, cache: Path, ignore_affine: bool) -> PreparedCase | str:
    """The cached case, or what is wrong with its files. What is wrong with the cache is raised."""
    try:
        if case.label is None:
            raise InputError(f"{case.id}: no label file; training and evaluation need one, remove the case or add it")
        key = _key(case, spacing, ignore_affine)
        folder = cache / f"{case.id}-{key[:16]}"
        subject = None if _is_complete(folder) else load_subject(case, spacing, ignore_affine=ignore_affine)
    except InputError as problem:
        return str(problem)
    if subject is not None:
        if folder.is_dir() and not _is_complete(folder):  # somebody deleted part of it
            shutil.rmtree(folder, ignore_errors=True)
        _store(folder, subject, seed=int(key[:16], 16))
    return _open(folder, case)


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (_IMAGES, _LABEL, _FOREGROUND, _META))


def _key(case: Case, spacing: Spacing, ignore_affine: bool) -> str:
    """Hash of everything the prepared arrays depend on."""
    assert case.label is not None
    contents = {name: _file_hash(path) for name, path in sorted(case.images.items())}
    description = {
        "version": VERSION,
        "spacing": list(spacing),
        "ignore_affine": ignore_affine,
        "modalities": MODALITIES,
        "images": contents,
        "label": _file_hash(case.label),
        "values": sorted(case.convention.to_class.items()),
    }
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and permissions"
        ) from error


def _store(folder: Path, subject: Subject, *, seed: int) -> None:
    assert subject.label is not None
    meta = {
        "version": VERSION,
        "id": subject.case.id,
        "patient": subject.case.patient,
        "modalities": subject.modalities,
        "shape": subject.mask.shape,
        "spacing": subject.spacing,
        "convention": subject.case.convention.name,
        "notes": subject.notes,
    }
    with folder_atomically(folder) as temporary:
        np.save(temporary / _IMAGES, subject.images)
        np.save(temporary / _LABEL, subject.label)
        np.savez(temporary / _FOREGROUND, **_foreground(subject.label, np.random.default_rng(seed)))
        (temporary / _META).write_text(json.dumps(meta, indent=1))


def _foreground(label: UInt8[np.ndarray, "d h w"], rng: np.random.Generator) -> dict[str, Any]:
    voxels: dict[str, Any] = {}
    for index in range(1, len(CLASSES)):
        found = np.flatnonzero(label == index)
        if found.size > FOREGROUND_VOXELS:
            found = rng.choice(found, FOREGROUND_VOXELS, replace=False, shuffle=False)
        voxels[str(index)] = np.stack(np.unravel_index(found, label.shape), axis=1).astype(np.int32)
    return voxels


def _open(folder: Path, case: Case) -> PreparedCase:
    try:
        meta = json.loads((folder / _META).read_text())
    except OSError as error:
        raise write_error(folder, error) from error
    d, h, w = meta["shape"]
    return PreparedCase(case.id, case.patient, folder, tuple(meta["modalities"]), (d, h, w), case, tuple(meta["notes"]))
