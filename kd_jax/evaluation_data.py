"""Which cases an evaluation is of: a folder's, or those that a run held out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import InputError
from data_pipeline.formats import Case, find_cases
from kd_jax.split import SPLIT_FILE, SplitRecord

HELD_OUT = "validation"
"""Name of a run's own held-out cases."""


@dataclass(frozen=True)
class EvaluationData:
    """The cases to score.

    Attributes:
      name: of the folder the results go to.
      path: where the cases are.
      cases: sorted by id.
      held_out: these are the run's own validation cases.
      ignore_affine: they were accepted although affines differ.
      trained_on: ids among them that the run was trained on.
    """

    name: str
    path: Path
    cases: Sequence[Case]
    held_out: bool
    ignore_affine: bool
    trained_on: Sequence[str]


def evaluation_data(run: Path, data: Path | None, label_map: str | None) -> EvaluationData:
    """The cases of a folder, or the held-out cases of a run if `data` is None.

    Raises:
      InputError: the run does not say which cases it held out, they are no longer there, or `data` holds no cases.
    """
    split = SplitRecord.read(run)
    if data is None:
        if split is None:
            raise InputError(
                f"{run / SPLIT_FILE}: not there, so the held-out cases are unknown; check that {run} is a run folder, "
                "or give labelled cases with --data"
            )
        name, path, label_map = HELD_OUT, Path(split.data_root), label_map or split.label_map
        wanted = set(split.validation)
        if not path.is_dir():
            raise InputError(f"{path}: the data of {run} are no longer there; say where they are with --data")
        cases = [case for case in find_cases(path, label_map) if case.id in wanted]
        if missing := sorted(wanted - {case.id for case in cases}):
            raise InputError(
                f"{path}: {len(missing)} of the {len(wanted)} held-out cases of {run} are missing, first {missing[0]}; "
                "restore them, or choose other cases with --data"
            )
    else:
        name, path, cases = data.resolve().name, data, find_cases(data, label_map)
    trained = set(split.train) if split else set()
    trained_on = [case.id for case in cases if case.id in trained]
    ignore_affine = data is None and split is not None and split.ignore_affine
    return EvaluationData(name, path.resolve(), cases, data is None, ignore_affine, trained_on)


def refuse_other_data(summary: Path, data: EvaluationData) -> None:
    """Two data sets of the same name must not overwrite each other's results.

    Raises:
      InputError: `summary` is of another data set.
    """
    try:
        found = json.loads(summary.read_text())["data"]["path"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if found != str(data.path):
        raise InputError(
            f"{summary.parent}: holds the evaluation of {found}, not of {data.path}; choose another --output"
        )
