"""Which cases a run trains and validates on."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import platformdirs
from jax.experimental import multihost_utils
from sklearn.model_selection import KFold

from data_pipeline.conventions import Modality
from data_pipeline.errors import InputError
from data_pipeline.files import write_atomically
from data_pipeline.formats import Case, find_cases
from data_pipeline.loader import LoaderSettings
from data_pipeline.phantom import phantom_folder
from data_pipeline.prepare import PreparedCase, prepare_cases
from kd_jax.config import Config, DataConfig

SPLIT_SEED = 12345
"""nnU-Net's seed of the cross-validation."""
SPLIT_FILE = "split.json"


@dataclass(frozen=True)
class Split:
    """The prepared cases of a run."""

    train: tuple[PreparedCase, ...]
    validation: tuple[PreparedCase, ...]
    root: Path


def gather_cases(config: Config) -> Split:
    """Finds (or makes) the cases, prepares them once, and splits them by patient.

    On several hosts the first one prepares, the others then find its cache on the shared file system.

    Raises:
      InputError: from reading or preparing; a case misses a modality a network needs; too few patients.
    """
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("cases prepared")
    root, cases = _find(config.data)
    if jax.process_index() == 0 and jax.process_count() > 1:
        _prepare(cases, config.data)
        multihost_utils.sync_global_devices("cases prepared")
    prepared = _prepare(cases, config.data)
    prepared = _with_modalities(prepared, config)
    train, validation = split_patients([case.patient for case in prepared], config.data.folds, config.data.fold)
    return Split(tuple(prepared[i] for i in train), tuple(prepared[i] for i in validation), root)


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


def loader_settings(config: Config) -> LoaderSettings:
    """What the loader needs of a run's configuration."""
    data = config.data
    return LoaderSettings(
        patch=data.patch,
        batch=config.train.batch,
        foreground=data.foreground,
        workers=data.workers,
        augmentation=data.augmentation,
    )


def write_split(run: Path, split: Split, data: DataConfig) -> None:
    """Writes which cases train and which are held out, for `evaluate` and for people."""
    content = {
        "data_root": str(split.root.resolve()),
        "label_map": data.label_map,
        "ignore_affine": data.ignore_affine,
        "train": [case.id for case in split.train],
        "validation": [case.id for case in split.validation],
    }
    write_atomically(run / SPLIT_FILE, (json.dumps(content, indent=2) + "\n").encode())


def cache_folder(data: DataConfig) -> Path:
    """Where phantoms and prepared cases are kept."""
    return data.cache or Path(platformdirs.user_cache_dir("kd_jax"))


def _find(data: DataConfig) -> tuple[Path, list[Case]]:
    root = data.root
    if root is None:
        spacing = min(data.spacing)
        root = phantom_folder(data.phantom_cases, data.phantom_seed, spacing, cache=cache_folder(data))
        cases = find_cases(root, data.label_map)
        return root, cases[: data.phantom_cases]
    return root, find_cases(root, data.label_map)


def _prepare(cases: Sequence[Case], data: DataConfig) -> list[PreparedCase]:
    return prepare_cases(
        cases,
        data.spacing,
        cache_folder(data) / "prepared",
        workers=os.cpu_count() or 1,
        skip_bad=data.skip_bad,
        ignore_affine=data.ignore_affine,
    )


def _with_modalities(cases: Sequence[PreparedCase], config: Config) -> list[PreparedCase]:
    needed: set[Modality] = {*config.teacher.modalities, *config.student.modalities}
    lacking = [
        f"{case.id} has no {', '.join(sorted(needed.difference(case.modalities)))}"
        for case in cases
        if needed.difference(case.modalities)
    ]
    usable = [case for case in cases if not needed.difference(case.modalities)]
    if lacking and not (config.data.skip_bad and usable):
        listed = "".join(f"\n  {line}" for line in lacking)
        raise InputError(
            f"{len(lacking)} of {len(cases)} cases miss a modality that teacher or student sees; leave them out with "
            f"--data.skip_bad true, or change teacher.modalities:{listed}"
        )
    for line in lacking:
        print(f"left out: {line}")
    return usable
