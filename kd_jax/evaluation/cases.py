"""The cases of an evaluation: those of a folder, or those that the runs held out."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.case import Case
from data_pipeline.errors import InputError
from data_pipeline.layouts.find import find_cases
from kd_jax.inference.cases import Task
from kd_jax.inference.segmenter import Segmenter
from kd_jax.runs.split_files import SPLIT_FILE, SplitRecord, joined_name

HELD_OUT = "validation"
"""Name of a run's own held-out cases."""
CROSS_VALIDATION = "cross-validation"
"""Name of the held-out cases of several runs together."""


@dataclass(frozen=True)
class CaseGroup:
    """Cases that the same networks score.

    Attributes:
      cases: sorted by id.
      ignore_affine: they were accepted although affines differ.
    """

    cases: Sequence[Case]
    ignore_affine: bool


@dataclass(frozen=True)
class EvaluationData:
    """The cases to score.

    Attributes:
      name: name of the folder for the results.
      paths: folders of the cases, or CSV files.
      groups: one for each of several runs that score their own held-out cases, else one.
      held_out: these are the runs' own validation cases.
      trained_on: ids of cases that are scored by a run that was trained on them.
    """

    name: str
    paths: Sequence[Path]
    groups: Sequence[CaseGroup]
    held_out: bool
    trained_on: Sequence[str]

    @property
    def count(self) -> int:
        """Number of cases."""
        return sum(len(group.cases) for group in self.groups)

    @property
    def place(self) -> str:
        """The place of the cases, in words."""
        return ", ".join(map(str, self.paths))

    def tasks(self, segmenters: Mapping[str, Segmenter], *, ignore_affine: bool) -> list[Task]:
        """Pairs cases with their segmenters: in a cross-validation, each run's network segments the cases it held out.

        Args:
          segmenters: by name; with several groups, of as many members.
          ignore_affine: files whose affines differ are accepted even where training did not.
        """
        several = len(self.groups) > 1
        shares = [
            {name: segmenter.split()[number] if several else segmenter for name, segmenter in segmenters.items()}
            for number in range(len(self.groups))
        ]
        return [
            Task(case, share, ignore_affine or group.ignore_affine)
            for group, share in zip(self.groups, shares, strict=True)
            for case in group.cases
        ]


def evaluation_data(
    runs: Sequence[Path], data: Sequence[Path] | None, label_map: str | None, layout: str | None = None
) -> EvaluationData:
    """The cases of folders (or CSV files), or the held-out cases of each run if `data` is None.

    Raises:
      InputError: a run does not say which cases it held out, they are no longer there, two runs held out the same
        case, or `data` holds no cases.
    """
    splits = [SplitRecord.read(run) for run in runs]
    if data is not None:
        cases = find_cases(data, label_map, layout)
        trained = {case for split in splits if split for case in split.train}
        name = joined_name(data) + ("_ensemble" if len(runs) > 1 else "")
        trained_on = [case.id for case in cases if case.id in trained]
        return EvaluationData(name, [root.resolve() for root in data], [CaseGroup(cases, False)], False, trained_on)
    groups, paths, trained_on = [], [], []
    owners: dict[str, Path] = {}
    for run, split in zip(runs, splits, strict=True):
        if split is None:
            raise InputError(
                f"{run / SPLIT_FILE}: not there, so the held-out cases are unknown; check that {run} is a run folder, "
                "or give labelled cases with --data"
            )
        cases = _held_out(run, split, label_map, layout)
        _claim(owners, run, cases)
        trained_on += [case.id for case in cases if case.id in split.train]
        groups.append(CaseGroup(cases, split.ignore_affine))
        paths += [root.resolve() for root in split.roots]
    name = CROSS_VALIDATION if len(runs) > 1 else HELD_OUT
    return EvaluationData(name, list(dict.fromkeys(paths)), groups, True, trained_on)


def _held_out(run: Path, split: SplitRecord, label_map: str | None, layout: str | None) -> list[Case]:
    wanted = set(split.validation)
    if (lost := next((root for root in split.roots if not root.exists()), None)) is not None:
        raise InputError(f"{lost}: the data of {run} are no longer there; say where they are with --data")
    found = find_cases(split.roots, label_map or split.label_map, layout or split.layout)
    cases = [case for case in found if case.id in wanted]
    if missing := sorted(wanted - {case.id for case in cases}):
        raise InputError(
            f"{split.place}: {len(missing)} of the {len(wanted)} held-out cases of {run} are missing, first "
            f"{missing[0]}; restore them, or choose other cases with --data"
        )
    return cases


def _claim(owners: dict[str, Path], run: Path, cases: Iterable[Case]) -> None:
    """Refuses a case that two runs hold out: a cross-validation holds out every case once."""
    for case in cases:
        if case.id in owners:
            raise InputError(
                f"{run}: holds out {case.id}, and so does {owners[case.id]}; give the runs of different folds, or "
                "with --data the cases on which the networks are to be averaged"
            )
        owners[case.id] = run


def refuse_other_data(summary: Path, data: EvaluationData, runs: Sequence[Path]) -> None:
    """Keeps an evaluation from overwriting one of other data, or of another ensemble, that has the same name.

    Raises:
      InputError: `summary` describes other data, or other runs if there are several.
    """
    try:
        found = json.loads(summary.read_text())
        paths, names = found["data"]["paths"], [Path(run).name for run in found["runs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if paths != [str(path) for path in data.paths]:
        raise InputError(
            f"{summary.parent}: holds the evaluation of {', '.join(paths)}, not of {data.place}; "
            "choose another --output"
        )
    # One run's results lie in its own folder, which may have been renamed.
    wanted = [run.resolve().name for run in runs]
    if len(runs) > 1 and names != wanted:
        raise InputError(
            f"{summary.parent}: holds the evaluation of the runs {', '.join(names)}, not of {', '.join(wanted)}; "
            "choose another --output"
        )
