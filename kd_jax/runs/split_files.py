"""A run's split in its folder: split.json, and all folds in the form of nnU-Net's `splits_final.json`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from data_pipeline.errors import InputError
from data_pipeline.files import write_atomically
from kd_jax.config.data import DataConfig
from kd_jax.runs.split import Fold, Split, read_folds

SPLIT_FILE = "split.json"
FOLDS_FILE = "splits_final.json"
"""`--data.splits` takes it."""


@dataclass(frozen=True)
class SplitRecord:
    """The content of `RUN/split.json`: the place of the cases, how they were read, and their division.

    Attributes:
      data_root: folders of the cases, or CSV files.
      label_map: meaning of label values, if given.
      ignore_affine: whether modalities whose affines differ were accepted.
      train: ids of the training cases.
      validation: ids of the held-out cases.
      layout: layout of the names, if given.
    """

    data_root: list[str]
    label_map: str | None
    ignore_affine: bool
    train: list[str]
    validation: list[str]
    layout: str | None = None

    @property
    def roots(self) -> list[Path]:
        """Folders of the cases, or CSV files."""
        return [Path(root) for root in self.data_root]

    @property
    def place(self) -> str:
        """The place of the cases, in words."""
        return ", ".join(self.data_root)

    @classmethod
    def of(cls, split: Split, roots: Sequence[Path], data: DataConfig) -> Self:
        """The record of a run's split."""
        return cls(
            data_root=[str(root.resolve()) for root in roots],
            layout=data.layout,
            label_map=data.label_map,
            ignore_affine=data.ignore_affine,
            train=list(split.train),
            validation=list(split.validation),
        )

    def write(self, run: Path) -> None:
        """Writes the file, atomically."""
        write_atomically(run / SPLIT_FILE, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def read(cls, run: Path) -> Self | None:
        """The record of a run; None where there is no such file.

        Raises:
          InputError: the file is damaged.
        """
        path = run / SPLIT_FILE
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: damaged ({error}); train again, or give labelled cases with --data") from error


def write_split(run: Path, record: SplitRecord, folds: Sequence[Fold]) -> None:
    """Writes both files of a new run, atomically each."""
    record.write(run)
    _write_folds(run, folds)


def resume_split(run: Path, record: SplitRecord, folds: Sequence[Fold]) -> None:
    """Compares the cases found now with those the run was started with, and writes where they are now.

    Raises:
      InputError: other cases train or are held out than before, or the folds are others.
    """
    before = SplitRecord.read(run)
    if before is not None and (before.train, before.validation) != (record.train, record.validation):
        old, new = {*before.train, *before.validation}, {*record.train, *record.validation}
        changed = ", ".join(sorted(old ^ new)[:3]) or "the same cases, divided differently"
        raise InputError(
            f"{record.place}: not the {len(old)} cases that {run} was started with, but {len(new)} (different: "
            f"{changed}); bring back what was there, or start a new run"
        )
    file = run / FOLDS_FILE
    if read_folds(file) != list(folds):
        raise InputError(
            f"{file}: has other folds than the run would have now; bring back the cases and the --data.splits it was "
            f"started with, or give --data.splits {file}"
        )
    record.write(run)


def joined_name(roots: Sequence[Path]) -> str:
    """Name of the results of cases from these folders and CSV files."""
    return "+".join(root.resolve().stem if root.is_file() else root.resolve().name for root in roots)


def _write_folds(run: Path, folds: Sequence[Fold]) -> None:
    write_atomically(run / FOLDS_FILE, (json.dumps([asdict(fold) for fold in folds], indent=2) + "\n").encode())
