"""The cases that a post-processing rule is decided on: which may be used, their counts, and the decision in words."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from data_pipeline.errors import InputError
from kd_jax.evaluation.cases import EvaluationData
from kd_jax.inference.cases import Task, segment_cases
from kd_jax.inference.findings import print_findings
from kd_jax.inference.segmenter import Segmenter, missing_modalities
from kd_jax.postprocessing.decision import CaseCounts, count_case
from kd_jax.postprocessing.decision_tables import decision_tables
from kd_jax.postprocessing.rule import (
    POSTPROCESSING_FILE,
    LabelOrRegion,
    Postprocessing,
    describe_rule,
    load_postprocessing,
)


def refuse_trained_on(data: EvaluationData, runs: Sequence[Path]) -> None:
    """Checks that there are cases, and that no network was trained on one of them.

    Raises:
      InputError: there are none, or one was.
    """
    if data.count == 0:
        raise InputError(f"{runs[0]}: holds out no case, so nothing can be decided; give labelled cases with --data")
    if data.trained_on:
        raise InputError(
            f"{data.place}: {len(data.trained_on)} of the {data.count} cases were trained on (first "
            f"{data.trained_on[0]}), and a decision needs others; give the runs of a cross-validation (data.fold a "
            "number instead of all), or with --data cases that were not trained on"
        )


def refuse_unusable(tasks: Sequence[Task]) -> None:
    """Checks before the work that all cases can be used: a rule holds for the cases it was decided on.

    Raises:
      InputError: a case lacks its label, or a modality that the network needs.
    """
    for task in tasks:
        if task.case.label is None:
            raise InputError(f"{task.case.id}: has no label, and a decision needs every one; add it, or leave it out")
        for name, segmenter in task.segmenters.items():
            if missing := missing_modalities(task.case, segmenter):
                raise InputError(f"{task.case.id}: has no {', '.join(missing)}, which the {name} needs; add the files")


def refuse_existing(segmenter: Segmenter, *, overwrite: bool) -> None:
    """Checks that no rule would be replaced without being asked to.

    Raises:
      InputError: a run already has a rule for this network.
    """
    for member in segmenter.members:
        if load_postprocessing(member.run, member.name) is not None and not overwrite:
            raise InputError(
                f"{member.run / POSTPROCESSING_FILE}: holds a rule for the {member.name}; replace it with --overwrite"
            )


def count_cases(tasks: Sequence[Task], parts: Sequence[LabelOrRegion]) -> Iterator[tuple[str, CaseCounts]]:
    """Segment every case and keep the counts that the decision needs, by case id.

    Raises:
      InputError: a file of a case cannot be used.
    """

    def announce(number: int, task: Task) -> None:
        print(f"[{number}/{len(tasks)}] {task.case.id}", file=sys.stderr, flush=True)

    for outcome in segment_cases(tasks, labelled=True, announce=announce):
        if outcome.problem is not None:
            raise outcome.problem
        segmentation, reference = outcome.segmentation, outcome.reference
        assert segmentation is not None and reference is not None  # unusable cases were refused before
        print_findings(segmentation.findings, outcome.case.id, set(), sys.stderr)
        spacing = segmentation.subject.reference.spacing
        yield outcome.case.id, count_case(segmentation.classes, reference, spacing, parts)


def show_rule(rule: Postprocessing, segmenter: Segmenter, data: EvaluationData) -> None:
    """Prints the decision, and where it was written."""
    console = Console()
    for table in decision_tables(rule):
        console.print(table)
    phantom = data.held_out and segmenter.members[0].config.data.root is None
    lines = [
        f"Data: {data.place}{' (embedded phantom: says nothing about patients)' if phantom else ''}",
        f"Post-processing of the {segmenter.name}: {describe_rule(rule)}",
        "Written to " + ", ".join(str(member.run / POSTPROCESSING_FILE) for member in segmenter.members),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
