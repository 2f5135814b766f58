"""All folds of a run as a file in the form of nnU-Net's `splits_final.json`, which `--data.splits` takes again."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from data_pipeline.errors import InputError
from data_pipeline.files import write_atomically

FOLDS_FILE = "splits_final.json"


@dataclass(frozen=True)
class Fold:
    """Ids of the cases that train and of those held out."""

    train: list[str]
    val: list[str]


def read_folds(file: Path) -> list[Fold]:
    """The folds of a file [{"train": [CASE, ...], "val": [CASE, ...]}, ...].

    Raises:
      InputError: the file cannot be read, is of another form, has no fold, or names a case twice in one part.
    """
    expected = 'expected nnU-Net\'s form, [{"train": ["CASE", ...], "val": ["CASE", ...]}, ...]'
    try:
        folds = TypeAdapter(list[Fold]).validate_json(file.read_bytes())
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror or error}); give a file with --data.splits"
        ) from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise InputError(f"{file}: {expected}, found at {where or 'the top'}: {problem['msg']}") from error
    for number, entry in enumerate(folds):
        for part, names in asdict(entry).items():
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise InputError(f"{file}: fold {number} names {twice} twice in {part}; name it once")
    if not folds:
        raise InputError(f"{file}: {expected}, found no fold")
    return folds


def write_folds(run: Path, folds: Sequence[Fold]) -> None:
    """Writes `RUN/splits_final.json`, atomically."""
    write_atomically(run / FOLDS_FILE, (json.dumps([asdict(fold) for fold in folds], indent=2) + "\n").encode())


def resume_folds(run: Path, folds: Sequence[Fold]) -> None:
    """Holds the folds against those the run was started with; writes them where it has none yet.

    Raises:
      InputError: they differ.
    """
    file = run / FOLDS_FILE
    if not file.exists():  # a run of an earlier version
        write_folds(run, folds)
    elif read_folds(file) != list(folds):
        raise InputError(
            f"{file}: has other folds than the run would have now; bring back the cases and the --data.splits it was "
            f"started with, or give --data.splits {file}"
        )
