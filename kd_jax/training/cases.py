"""The cases that a run trains and validates on."""

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
from data_pipeline.patches.sampling import EACH_CLASS, EACH_REGION
from data_pipeline.patches.stream import LoaderSettings
from data_pipeline.phantom.data_set import phantom_folder
from data_pipeline.workers import available_cores
from kd_jax.config.schema import Config, DataConfig
from kd_jax.runs.split import Fold, Split, split_cases
from kd_jax.runs.split_files import SplitRecord
from kd_jax.training.devices import on_first_host


@dataclass(frozen=True)
class RunCases:
    """The prepared cases of a run.

    Attributes:
      train: training cases.
      validation: held-out cases.
      folds: all folds of the cross-validation.
      record: the record of the split for the run folder.
    """

    train: tuple[PreparedCase, ...]
    validation: tuple[PreparedCase, ...]
    folds: tuple[Fold, ...]
    record: SplitRecord


def gather_cases(config: Config) -> RunCases:
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
    """The modalities that the networks of a run see together, in channel order."""
    seen = {modality for network in config.networks.values() for modality in network.modalities}
    return tuple(name for name in MODALITIES if name in seen)


def loader_settings(config: Config) -> LoaderSettings:
    """The settings of the loader, from a run's configuration."""
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


def _gather(config: Config, *, progress: bool) -> RunCases:
    data = config.data
    roots, cases = _find(data, progress=progress)
    if progress:
        print("\n".join(describe(cases, roots)), file=sys.stderr)
    # A split that cannot be made is reported before the work, and cases that it does not name are not prepared.
    split = _split(cases, data)
    named = {*split.train, *split.validation}
    prepared = {case.id: case for case in _prepare([c for c in cases if c.id in named], config, progress=progress)}
    if len(prepared) < len(named):  # cases that cannot be used are left out: the folds are those of the others
        split = _split(list(prepared.values()), data, some_left_out=True)
    train, validation = (tuple(prepared[name] for name in part) for part in (split.train, split.validation))
    return RunCases(train, validation, split.folds, SplitRecord.of(split, roots, data))


def _split(cases: Sequence[Case | PreparedCase], data: DataConfig, *, some_left_out: bool = False) -> Split:
    return split_cases([c.id for c in cases], [c.patient for c in cases], data, some_left_out=some_left_out)


def _find(data: DataConfig, *, progress: bool) -> tuple[tuple[Path, ...], list[Case]]:
    roots = data.root
    if roots is None:
        spacing = min(data.spacing)
        cache = cache_home(data.cache)
        made = phantom_folder(data.phantom_cases, data.phantom_seed, spacing, cache=cache, progress=progress)
        return (made,), find_cases(made)
    return roots, find_cases(roots, data.label_map, data.layout)


def _prepare(cases: Sequence[Case], config: Config, *, progress: bool) -> list[PreparedCase]:
    """Prepares the cases; reports all problems at once: files that cannot be used, and missing modalities."""
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
