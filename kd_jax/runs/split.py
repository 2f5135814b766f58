"""Which cases train and which are held out: nnU-Net's cross-validation, or a given one; and the file that says so."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from sklearn.model_selection import KFold

from data_pipeline.errors import InputError
from data_pipeline.files import write_atomically
from kd_jax.runs.folds import Fold, read_folds

SPLIT_FILE = "split.json"
SPLIT_SEED = 12345
"""nnU-Net's seed of the cross-validation."""


@dataclass(frozen=True)
class SplitRecord:
    """What `RUN/split.json` holds.

    Attributes:
      data_root: folders of the cases, or CSV files.
      label_map: meaning of label values, where given.
      ignore_affine: whether modalities whose affines differ were accepted.
      train: ids of the training cases.
      validation: ids of the held-out cases.
      layout: that the names were taken for, where given.
    """

    data_root: list[str]
    label_map: str | None
    ignore_affine: bool
    train: list[str]
    validation: list[str]
    layout: str | None = None

    @property
    def roots(self) -> list[Path]:
        """Where the cases are."""
        return [Path(root) for root in self.data_root]

    @property
    def place(self) -> str:
        """Where the cases are, in words."""
        return ", ".join(self.data_root)

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
            values = json.loads(path.read_text())
            if isinstance(values["data_root"], str):  # written by an earlier version
                values["data_root"] = [values["data_root"]]
            return cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: damaged ({error}); train again, or give labelled cases with --data") from error


def joined_name(roots: Sequence[Path]) -> str:
    """What results on these data are called after."""
    return "+".join(root.resolve().stem if root.is_file() else root.resolve().name for root in roots)


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


def cross_validation(cases: Sequence[str], patients: Sequence[str], folds: int) -> list[Fold]:
    """All folds of `split_patients`, by id; with fewer patients than folds, one that trains and validates on all.

    Args:
      cases: ids.
      patients: whose the cases are.
      folds: how many.
    """
    numbers: Sequence[int | str] = range(folds) if len(set(patients)) >= folds else ["all"]
    splits = [split_patients(patients, folds, number) for number in numbers]
    return [Fold(sorted(cases[i] for i in train), sorted(cases[i] for i in held)) for train, held in splits]


def given_split(
    file: Path, fold: int | str, cases: Sequence[str], patients: Sequence[str], *, some_left_out: bool = False
) -> tuple[list[int], list[int]]:
    """Indices of training and validation cases as a file in nnU-Net's form says: [{"train": […], "val": […]}, …].

    Args:
      file: nnU-Net's `splits_final.json`, or one like it.
      fold: which entry; "all" trains and validates on every case of the file.
      cases: identifiers of the cases there are. Those the fold does not name are in neither part.
      patients: whose these are.
      some_left_out: cases of the file may be missing from `cases`, because they could not be used.

    Raises:
      InputError: the file cannot be read or is of another form, has no such fold, names a case that is not there or
        one case twice, has a patient on both sides, or leaves a part empty.
    """
    folds = read_folds(file)
    if fold == "all":
        everyone = sorted({name for entry in folds for name in (*entry.train, *entry.val)})
        chosen = Fold(everyone, everyone)
    elif int(fold) >= len(folds):
        raise InputError(f"{file}: has {len(folds)} folds; data.fold {fold} is not there: give 0 to {len(folds) - 1}")
    else:
        chosen = folds[int(fold)]
        if both := sorted(set(chosen.train) & set(chosen.val)):
            raise InputError(f"{file}: fold {fold} trains on what it holds out, first {both[0]}; remove one of the two")
        _refuse_shared_patients(file, fold, chosen, dict(zip(cases, patients, strict=True)))
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


def _refuse_shared_patients(file: Path, fold: int | str, chosen: Fold, patients: Mapping[str, str]) -> None:
    """The time points of a patient look alike: held-out ones would be known from training."""
    held = {patients[name] for name in chosen.val if name in patients}
    shared = sorted({patients[name] for name in chosen.train if name in patients} & held)
    if not shared:
        return
    of_first = [[name for name in part if patients.get(name) == shared[0]] for part in (chosen.train, chosen.val)]
    raise InputError(
        f"{file}: fold {fold} has {len(shared)} patients on both sides, first {shared[0]} (trains on "
        f"{', '.join(of_first[0])}; holds out {', '.join(of_first[1])}); put all cases of a patient on one side, or "
        "leave --data.splits out: folds are then made by patient"
    )
