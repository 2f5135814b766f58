"""One prepared case on disk: how its folder is written and opened, and how damage is noticed."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from data_pipeline.cache.key import KEY_DIGITS, entry_key, hash_file
from data_pipeline.case import Case
from data_pipeline.conventions import CLASSES, Modality, Shape3
from data_pipeline.errors import FileError
from data_pipeline.files import folder_atomically
from data_pipeline.preprocessing.subject import Subject
from data_pipeline.reading.findings import Finding

FOREGROUND_VOXELS = 10_000
"""Most voxels per class that are kept for foreground sampling; the number is nnU-Net's."""

_IMAGES, _LABEL, _FOREGROUND, _META = "images.npy", "label.npy", "foreground.npz", "meta.json"
_ARRAYS = _IMAGES, _LABEL, _FOREGROUND


@dataclass(frozen=True)
class PreparedCase:
    """One cached case on disk; cheap to pass to worker processes.

    Attributes:
      id: of the case.
      patient: the patient whose time point it is.
      folder: of the entry.
      modalities: those that were read, in channel order.
      shape: of the arrays, without channels.
      source: the case's own files.
      findings: repairs and suspicions, with file names but no folders.
      sha256: hashes of the source files, by modality and "label".
    """

    id: str
    patient: str
    folder: Path
    modalities: tuple[Modality, ...]
    shape: Shape3
    source: Case
    findings: tuple[Finding, ...] = field(default=())
    sha256: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, case: Case) -> "PreparedCase | None":
        """The entry of a case; None if there is none or it is incomplete."""
        meta = read_meta(folder)
        if meta is None or any(_size(folder / name) != meta["written"][name]["bytes"] for name in _ARRAYS):
            return None
        d, h, w = meta["shape"]
        findings = tuple(Finding.from_json(finding) for finding in meta["findings"])
        return cls(case.id, case.patient, folder, tuple(meta["modalities"]), (d, h, w), case, findings, meta["sha256"])

    def intact(self) -> bool:
        """Whether every array still has the bytes that were written; reads all of them."""
        meta = read_meta(self.folder)
        try:
            return meta is not None and all(
                hash_file(self.folder / name) == meta["written"][name]["sha256"] for name in _ARRAYS
            )
        except FileError:
            return False

    def images(self) -> Float32[np.memmap, "d h w c"]:
        """`Subject.images`, memory-mapped: a slice reads only its part of the file."""
        return np.load(self.folder / _IMAGES, mmap_mode="r")

    def label(self) -> UInt8[np.memmap, "d h w"]:
        """`Subject.label`, memory-mapped."""
        return np.load(self.folder / _LABEL, mmap_mode="r")

    def foreground(self) -> dict[int, Int32[np.ndarray, "k 3"]]:
        """Random voxels of each tumour class, at most 10,000; an absent class has none."""
        with np.load(self.folder / _FOREGROUND) as arrays:
            return {int(name): arrays[name] for name in arrays.files}


def entry_folder(cache: Path, case: str, settings: dict[str, Any], hashes: dict[str, str]) -> Path:
    """The folder of the case with this id, these settings and these contents."""
    return cache / f"{case}-{entry_key(settings, hashes)[:KEY_DIGITS]}"


def write_entry(folder: Path, subject: Subject, settings: dict[str, Any], hashes: dict[str, str]) -> None:
    """Write a case, completely or not at all. The same input gives the same bytes.

    Raises:
      InputError: the cache cannot be written.
    """
    assert subject.label is not None
    if PreparedCase.open(folder, subject.case) is None:  # left incomplete by a crash or by hand
        shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(int(entry_key(settings, hashes)[:KEY_DIGITS], 16))
    with folder_atomically(folder) as temporary:
        np.save(temporary / _IMAGES, subject.images)
        np.save(temporary / _LABEL, subject.label)
        np.savez(temporary / _FOREGROUND, **_foreground(subject.label, rng))
        meta = {
            "id": subject.case.id,
            "patient": subject.case.patient,
            "modalities": subject.modalities,
            "shape": subject.mask.shape,
            "spacing": subject.spacing,
            "convention": subject.case.convention.name,
            "findings": [finding.without_folder().as_json() for finding in subject.findings],
            "settings": settings,
            "sha256": hashes,
            # A loss of power may leave files that are too short.
            "written": {n: {"bytes": _size(temporary / n), "sha256": hash_file(temporary / n)} for n in _ARRAYS},
        }
        (temporary / _META).write_text(json.dumps(meta, indent=1))


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The entry's meta.json; None if it cannot be read."""
    try:
        meta = json.loads((folder / _META).read_bytes())
    except (OSError, ValueError):
        return None
    whole = isinstance(meta, dict) and isinstance(meta.get("written"), dict) and meta["written"].keys() >= {*_ARRAYS}
    return meta if whole else None


def _size(path: Path) -> int:
    """Bytes of a file; -1 if it does not exist."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _foreground(label: UInt8[np.ndarray, "d h w"], rng: np.random.Generator) -> dict[str, Any]:
    voxels: dict[str, Any] = {}
    for index in range(1, len(CLASSES)):
        found = np.flatnonzero(label == index)
        if found.size > FOREGROUND_VOXELS:
            found = rng.choice(found, FOREGROUND_VOXELS, replace=False, shuffle=False)
        voxels[str(index)] = np.stack(np.unravel_index(found, label.shape), axis=1).astype(np.int32)
    return voxels
