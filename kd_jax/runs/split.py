"""Training and held-out cases, computed once from their ids: nnU-Net's folds, or a given split."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from data_pipeline.errors import InputError
from kd_jax.config.data import DataConfig

SPLIT_SEED = 12345
"""nnU-Net's seed of the cross-validation."""


@dataclass(frozen=True)
class Fold:
    """Ids of the training cases and of the held-out cases, under nnU-Net's names."""

    train: list[str]
    val: list[str]


@dataclass(frozen=True)
class Split:
    """The cases that one run trains on, and those it holds out.

    Attributes:
      train: ids, sorted.
      validation: ids, sorted.
      folds: all folds of the cross-validation, this one among them.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    folds: tuple[Fold, ...]


def split_cases(
    cases: Sequence[str], patients: Sequence[str], data: DataConfig, *, some_left_out: bool = False
) -> Split:
    """The split that the settings ask for.

    Args:
      cases: ids of all cases.
      patients: the patient of each case.
      data: `splits` is a file of folds in nnU-Net's form, or none for the seeded cross-validation; `fold` says which,
        or all. Cases that a given fold does not name are in neither part.
      some_left_out: cases that the file names may be missing, because they could not be used.

    Raises:
      InputError: there are fewer patients than folds; or the file cannot be read, has no such fold, names a case that
        is not there or one case twice, has a patient on both sides, or leaves a part empty.
    """
    if data.splits is not None:
        folds = tuple(read_folds(data.splits))
        chosen = _given_fold(data.splits, folds, data.fold, dict(zip(cases, patients, strict=True)), some_left_out)
    else:
        folds = cross_validation(cases, patients, data.folds)
        chosen = Fold(sorted(cases), sorted(cases)) if data.fold == "all" else _made_fold(folds, patients, data)
    return Split(tuple(sorted(chosen.train)), tuple(sorted(chosen.val)), folds)


def cross_validation(cases: Sequence[str], patients: Sequence[str], folds: int) -> tuple[Fold, ...]:
    """nnU-Net's folds: `KFold` with shuffling and seed 12345 over sorted identifiers.

    The folds are made over patients rather than cases, so that the time points of a patient stay together; if each
    patient has one case, they are nnU-Net's. With fewer patients than folds there is one fold, which trains on
    everything it holds out.
    """
    from sklearn.model_selection import KFold  # imported here because it takes most of a second

    names = sorted(set(patients))
    if len(names) < folds:
        return (Fold(sorted(cases), sorted(cases)),)
    held = [{names[i] for i in part} for _, part in KFold(folds, shuffle=True, random_state=SPLIT_SEED).split(names)]
    owned = sorted(zip(cases, patients, strict=True))
    return tuple(
        Fold([case for case, owner in owned if owner not in part], [case for case, owner in owned if owner in part])
        for part in held
    )


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


def _made_fold(folds: Sequence[Fold], patients: Sequence[str], data: DataConfig) -> Fold:
    if len(folds) < data.folds:
        raise InputError(
            f"data.folds is {data.folds}, but there are {len(set(patients))} patients: give fewer folds, or "
            "--data.fold all to train and validate on every case"
        )
    return folds[int(data.fold)]


def _given_fold(
    file: Path, folds: Sequence[Fold], fold: int | str, patients: Mapping[str, str], some_left_out: bool
) -> Fold:
    """One fold of a file, checked against the cases; `patients` by case."""
    if fold == "all":
        everyone = sorted({name for entry in folds for name in (*entry.train, *entry.val)})
        chosen = Fold(everyone, everyone)
    elif int(fold) >= len(folds):
        raise InputError(f"{file}: has {len(folds)} folds; data.fold {fold} is not there: give 0 to {len(folds) - 1}")
    else:
        chosen = folds[int(fold)]
        if both := sorted(set(chosen.train) & set(chosen.val)):
            raise InputError(f"{file}: fold {fold} trains on what it holds out, first {both[0]}; remove one of the two")
        _refuse_shared_patients(file, fold, chosen, patients)
    unknown = [name for name in (*chosen.train, *chosen.val) if name not in patients]
    if unknown and not some_left_out:
        raise InputError(
            f"{file}: names {len(unknown)} cases that are not in the data, first {unknown[0]} (there is, for example, "
            f"{next(iter(patients))}); correct the names, or give the data the file was made for"
        )
    train, held = ([name for name in names if name in patients] for names in (chosen.train, chosen.val))
    if not train or not held:
        raise InputError(f"{file}: fold {fold} has {len(train)} training and {len(held)} held-out cases; both need one")
    return Fold(train, held)


def _refuse_shared_patients(file: Path, fold: int | str, chosen: Fold, patients: Mapping[str, str]) -> None:
    """Refuses folds that separate a patient's time points, which look alike: training would leak into validation."""
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
