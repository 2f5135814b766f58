"""Which cases train and which are held out: nnU-Net's cross-validation, or a given one; and the file that says so."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError
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


@dataclass(frozen=True)
class _Fold:
    """One fold of nnU-Net's `splits_final.json`, by case."""

    train: list[str]
    val: list[str]


def given_split(
    file: Path, fold: int | str, cases: Sequence[str], *, some_left_out: bool = False
) -> tuple[list[int], list[int]]:
    """Indices of training and validation cases as a file in nnU-Net's form says: [{"train": […], "val": […]}, …].

    Args:
      file: nnU-Net's `splits_final.json`, or one like it.
      fold: which entry; "all" trains and validates on every case of the file.
      cases: identifiers of the cases there are. Those the fold does not name are in neither part.
      some_left_out: cases of the file may be missing from `cases`, because they could not be used.

    Raises:
      InputError: the file cannot be read or is of another form, has no such fold, names a case that is not there or
        one case twice, or leaves a part empty.
    """
    folds = _read_folds(file)
    if fold == "all":
        everyone = sorted({name for entry in folds for name in (*entry.train, *entry.val)})
        chosen = _Fold(everyone, everyone)
    elif int(fold) >= len(folds):
        raise InputError(f"{file}: has {len(folds)} folds; data.fold {fold} is not there: give 0 to {len(folds) - 1}")
    else:
        chosen = folds[int(fold)]
        if both := sorted(set(chosen.train) & set(chosen.val)):
            raise InputError(f"{file}: fold {fold} trains on what it holds out, first {both[0]}; remove one of the two")
    place = {name: index for index, name in enumerate(cases)}
    unknown = [name for name in (*chosen.train, *chosen.val) if name not in place]
    if unknown and not some_left_out:
        raise InputError(
            f"{file}: names {len(unknown)} cases that are not in the data, first {unknown[0]} (there is, for example, "
            f"{cases[0]}); correct the names, or give the data the file was made for"
        )
    train, held = ([place[name] for name in names if name in place] for names in (chosen.train, chosen.val))
    if not train or not held:
        raise InputError(f"{file}: fold {fold} has {len(train)} training and {len(held)} held-out cases; both need one")
    return sorted(train), sorted(held)


def _read_folds(file: Path) -> list[_Fold]:
    expected = 'expected nnU-Net\'s form, [{"train": ["CASE", ...], "val": ["CASE", ...]}, ...]'
    try:
        folds = TypeAdapter(list[_Fold]).validate_json(file.read_bytes())
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
