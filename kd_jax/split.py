"""Which cases train and which are held out, and the file that says so."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from sklearn.model_selection import KFold

from data_pipeline.errors import InputError
from data_pipeline.files import write_atomically

SPLIT_FILE = "split.json"
SPLIT_SEED = 12345
"""nnU-Net's seed of the cross-validation."""


@dataclass(frozen=True)
class SplitRecord:
    """What `RUN/split.json` holds.

    Attributes:
      data_root: folder of the cases.
      label_map: meaning of label values, where given.
      ignore_affine: whether modalities whose affines differ were accepted.
      train: ids of the training cases.
      validation: ids of the held-out cases.
    """

    data_root: str
    label_map: str | None
    ignore_affine: bool
    train: list[str]
    validation: list[str]

    def write(self, run: Path) -> None:
        """Writes the file, atomically."""
        write_atomically(run / SPLIT_FILE, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def read(cls, run: Path) -> Self | None:
        """The split of a run; None where there is no such file.

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


def split_patients(patients: Sequence[str], folds: int, fold: int | str) -> tuple[list[int], list[int]]:
    """Indices of training and validation cases.

    nnU-Net's cross-validation (`KFold` with shuffling and seed 12345 over the sorted identifiers), over
    patients, so that the time points of one patient stay together; the same where each has one case.

    Raises:
      InputError: there are fewer patients than folds.
    """
    everyone = list(range(len(patients)))
    if fold == "all":
        return everyone, everyone
    names = sorted(set(patients))
    if len(names) < folds:
        raise InputError(
            f"data.folds is {folds}, but there are {len(names)} patients: give fewer folds, or --data.fold all "
            "to train and validate on every case"
        )
    _, held = list(KFold(folds, shuffle=True, random_state=SPLIT_SEED).split(names))[int(fold)]
    validation = {names[i] for i in held}
    return (
        [i for i in everyone if patients[i] not in validation],
        [i for i in everyone if patients[i] in validation],
    )
