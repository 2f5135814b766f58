"""Cache keys: a hash of everything a prepared case depends on, the contents of its files and the settings."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.case import Case
from data_pipeline.conventions import MODALITIES, Spacing
from data_pipeline.errors import FileError, InputError

VERSION = 5
"""Raised whenever the same input gives other arrays, so that entries of earlier versions are not found."""

KEY_DIGITS = 16
"""Digits of the hash in a folder's name."""


@dataclass(frozen=True)
class PreprocessingSettings:
    """How cases are preprocessed.

    Attributes:
      spacing: target in mm, per canonical axis.
      ignore_affine: see `load_subject`.
    """

    spacing: Spacing
    ignore_affine: bool

    def describe(self, case: Case) -> dict[str, Any]:
        """Everything except the files that determines a case's arrays, as JSON values."""
        return {
            "version": VERSION,
            "spacing": list(self.spacing),
            "ignore_affine": self.ignore_affine,
            "modalities": list(MODALITIES),
            "channels": dict(sorted(case.channels.items())),
            "values": [list(pair) for pair in sorted(case.convention.to_class.items())],
        }


def hash_files(case: Case) -> dict[str, str]:
    """SHA-256 of the case's files, by modality and "label".

    Raises:
      InputError: there is no label file, or a file cannot be read.
    """
    files = _files(case)
    hashes = {path: hash_file(path) for path in set(files.values())}  # a 4-D file holds several modalities
    return {name: hashes[path] for name, path in files.items()}


def hash_file(path: Path) -> str:
    """SHA-256 of one file.

    Raises:
      FileError: it cannot be read.
    """
    with _readable(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamps(case: Case) -> dict[Path, tuple[int, ...]]:
    """Identity, size and time of each of the case's files: they change when a file is replaced or written to.

    Raises:
      InputError: as `hash_files`.
    """
    return {path: _stamp(path) for path in _files(case).values()}


def require_unchanged(case: Case, before: Mapping[Path, tuple[int, ...]]) -> None:
    """Refuse a case whose files changed since `before`: its arrays would be stored under the old contents' hash.

    Raises:
      FileError: a stamp differs from the one in `before`.
    """
    for path, stamp in before.items():
        if _stamp(path) != stamp:
            raise FileError(path, "changed while it was read", "wait until nothing writes to it, then try again")


def entry_key(settings: dict[str, Any], hashes: dict[str, str]) -> str:
    """Hash of the settings and the hashes of the files."""
    return hashlib.sha256(json.dumps([settings, hashes]).encode()).hexdigest()


def _files(case: Case) -> dict[str, Path]:
    if case.label is None:
        raise InputError(f"{case.id}: no label file; training and evaluation need one, remove the case or add it")
    return {**dict(sorted(case.images.items())), "label": case.label}


def _stamp(path: Path) -> tuple[int, ...]:
    with _readable(path):
        status = path.stat()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileError(
            path, f"cannot be read ({error.strerror or error})", "check the path and permissions"
        ) from error
