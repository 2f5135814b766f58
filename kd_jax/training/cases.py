"""Which cases a run trains and validates on."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from data_pipeline.cache.entry import PreparedCase
from data_pipeline.cache.fill import prepare_cases
from data_pipeline.cache.place import cache_home, prepared_folder
from data_pipeline.case import Case
from data_pipeline.conventions import MODALITIES, Modality
from data_pipeline.errors import InputError
from data_pipeline.layouts.find import describe, find_cases
from data_pipeline.patches.loader import LoaderSettings
from data_pipeline.patches.sampling import EACH_CLASS, EACH_REGION
from data_pipeline.phantom.data_set import phantom_folder
from data_pipeline.workers import available_cores
from kd_jax.config.schema import Config, DataConfig
from kd_jax.runs.folds import Fold, read_folds
from kd_jax.runs.split import SplitRecord, cross_validation, given_split, split_patients
from kd_jax.training.devices import on_first_host


@dataclass(frozen=True)
class Split:
    """The prepared cases of a run.

    Attributes:
      train: those it trains on.
      validation: those held out.
      roots: where the cases are.
      folds: all folds, this one among them, as the run folder has them.
    """

    train: tuple[PreparedCase, ...]
    validation: tuple[PreparedCase, ...]
    roots: tuple[Path, ...]
    folds: tuple[Fold, ...]

    @property
    def place(self) -> str:
        """Where the cases are, in words."""
        return ", ".join(map(str, self.roots))

    def record(self, data: DataConfig) -> SplitRecord:
        """What is kept of it in the run folder."""
        return SplitRecord(
            data_root=[str(root.resolve()) for root in self.roots],
            layout=data.layout,
            label_map=data.label_map,
            ignore_affine=data.ignore_affine,
            train=[case.id for case in self.train],
            validation=[case.id for case in self.validation],
        )


def gather_cases(config: Config) -> Split:
    """Finds (or makes) the cases, prepares them once, and splits them by patient.

    On several hosts the first one prepares, the others then find its cache on the shared file system.

    Raises:
      InputError: from reading or preparing; a case misses a modality a network needs; too few patients.
    """
    if jax.process_count() > 1:
        on_first_host("cases prepared", lambda: _gather(config, progress=True))
        return _gather(config, progress=False)
    return _gather(config, progress=True)


def needed_modalities(config: Config) -> tuple[Modality, ...]:
    """What the networks of a run see together, in channel order."""
    seen = {modality for network in config.networks.values() for modality in network.modalities}
    return tuple(name for name in MODALITIES if name in seen)


def loader_settings(config: Config) -> LoaderSettings:
    """What the loader needs of a run's configuration."""
    data = config.data
    return LoaderSettings(
        patch=data.patch,
        batch=config.train.batch,
        foreground=data.foreground,
        workers=data.workers,
        augmentation=data.augmentation,
        modalities=needed_modalities(config),
        groups=EACH_REGION if config.outputs == "regions" else EACH_CLASS,
    )


def _gather(config: Config, *, progress: bool) -> Split:
    data = config.data
    roots, cases = _find(data, progress=progress)
    if progress:
        print("\n".join(describe(cases, roots)), file=sys.stderr)
    # What is wrong with the split is said before the work, and cases it does not name are not prepared.
    chosen = sorted({index for part in _split(cases, data) for index in part})
    prepared = _prepare([cases[index] for index in chosen], config, progress=progress)
    train, validation = _split(prepared, data, some_left_out=data.skip_bad)
    return Split(
        tuple(prepared[i] for i in train), tuple(prepared[i] for i in validation), roots, _folds(prepared, data)
    )


def _split(
    cases: Sequence[Case | PreparedCase], data: DataConfig, *, some_left_out: bool = False
) -> tuple[list[int], list[int]]:
    if data.splits is None:
        return split_patients([case.patient for case in cases], data.folds, data.fold)
    ids, patients = [case.id for case in cases], [case.patient for case in cases]
    return given_split(data.splits, data.fold, ids, patients, some_left_out=some_left_out)


def _folds(cases: Sequence[PreparedCase], data: DataConfig) -> tuple[Fold, ...]:
    """Those of a given split as they are, or the cross-validation of the cases that can be used."""
    if data.splits is not None:
        return tuple(read_folds(data.splits))
    return tuple(cross_validation([case.id for case in cases], [case.patient for case in cases], data.folds))


def _find(data: DataConfig, *, progress: bool) -> tuple[tuple[Path, ...], list[Case]]:
    roots = data.root
    if roots is None:
        spacing = min(data.spacing)
        cache = cache_home(data.cache)
        made = phantom_folder(data.phantom_cases, data.phantom_seed, spacing, cache=cache, progress=progress)
        return (made,), find_cases(made)
    return roots, find_cases(roots, data.label_map, data.layout)


def _prepare(cases: Sequence[Case], config: Config, *, progress: bool) -> list[PreparedCase]:
    """Everything that is wrong with the cases is said at once: files that cannot be used and modalities not there."""
    data, needed = config.data, set(needed_modalities(config))
    lacking = {case.id: sorted(needed.difference(case.images)) for case in cases if needed.difference(case.images)}
    lines = [f"  {name}: has no {', '.join(missing)}" for name, missing in lacking.items()]
    problem = "\n".join(
        [
            f"{len(lacking)} of {len(cases)} cases miss a modality that teacher or student sees; leave them out with "
            "--data.skip_bad true, or change teacher.modalities:",
            *lines,
        ]
    )
    usable = [case for case in cases if case.id not in lacking]
    if not usable:
        raise InputError(problem)
    try:
        prepared = prepare_cases(
            usable,
            data.spacing,
            prepared_folder(data.cache),
            workers=min(available_cores(), len(usable)),
            skip_bad=data.skip_bad,
            progress=progress,
            ignore_affine=data.ignore_affine,
        )
    except InputError as error:
        raise InputError(f"{error}\n{problem}") if lacking and not data.skip_bad else error from error
    if lacking and not data.skip_bad:
        raise InputError(problem)
    if lacking and progress:
        print("\n".join(["left out:", *lines]), file=sys.stderr)
    return prepared
