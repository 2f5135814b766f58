"""Segments labelled cases with every network and scores the results."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_pipeline.conventions import Region
from data_pipeline.errors import InputError, one_line
from data_pipeline.reading.write_back import write_label
from kd_jax.evaluation.cases import EvaluationData
from kd_jax.evaluation.picture import CaseView, take_classes, take_view
from kd_jax.inference.cases import Task, segment_cases
from kd_jax.inference.findings import print_findings
from kd_jax.inference.segmenter import Segmentation, Segmenter
from kd_jax.metrics import EmptyRule, RegionScores, region_scores
from kd_jax.postprocessing.choice import Chosen
from kd_jax.postprocessing.rule import Postprocessing, apply_postprocessing


@dataclass(frozen=True)
class Evaluation:
    """One network, or the networks of several runs, on one data set.

    Attributes:
      segmenter: all of the networks; in a cross-validation each scored its own part of the cases.
      postprocessing: the rule applied to its label maps before they were scored.
      scores: by case id.
      views: the slice of each case that the picture may show.
      classes: this network's classes in each of these slices.
      skipped: the reason why a case could not be used, by case id.
      failed: the problem with a file of a case, by case id.
    """

    segmenter: Segmenter
    postprocessing: Chosen
    scores: dict[str, dict[Region, RegionScores]] = field(default_factory=dict)
    views: dict[str, CaseView] = field(default_factory=dict)
    classes: dict[str, UInt8[np.ndarray, "d h"]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


Evaluations = Mapping[str, Evaluation]
"""Evaluations by the name of the network."""


def score_cases(
    evaluations: Evaluations,
    data: EvaluationData,
    *,
    empty: EmptyRule,
    ignore_affine: bool,
    predictions: Path | None,
) -> None:
    """Fill the evaluations, case by case; each case is read once for all networks.

    Args:
      evaluations: without scores yet.
      data: the cases.
      empty: rule for regions without voxels.
      ignore_affine: accept files whose affines differ, as if they lay on one grid.
      predictions: folder for label maps, with a folder for each network; None writes none.

    Raises:
      InputError: a label map cannot be written, or not one case can be scored.
    """
    tasks = data.tasks({name: e.segmenter for name, e in evaluations.items()}, ignore_affine=ignore_affine)
    told: set[tuple[str, str]] = set()
    views: dict[str, CaseView] = {}  # all networks are drawn over the slice that the first one saw
    for outcome in segment_cases(tasks, labelled=True, announce=lambda number, task: _announce(number, task, data)):
        evaluation, case = evaluations[outcome.network], outcome.case.id
        if outcome.skipped:
            evaluation.skipped[case] = outcome.skipped
        elif outcome.problem:
            evaluation.failed[case] = _tell_once(case, outcome.problem, told)
        if outcome.segmentation is None or outcome.reference is None:
            continue
        print_findings(outcome.segmentation.findings, case, told, sys.stderr)
        segmentation = _postprocessed(outcome.segmentation, evaluation.postprocessing.rule)
        if predictions is not None:
            path = predictions / f"predictions_{file_name(outcome.network)}" / f"{case}.nii.gz"
            write_label(path, segmentation.classes, segmentation.subject.reference, outcome.case.convention)
        if case not in views:
            views[case] = take_view(segmentation, outcome.reference, segmentation.subject.modalities)
        spacing = segmentation.subject.reference.spacing
        evaluation.scores[case] = region_scores(segmentation.classes, outcome.reference, spacing, empty)
        evaluation.views[case], evaluation.classes[case] = views[case], take_classes(segmentation, views[case])
    _require_scores(evaluations, data)


def file_name(network: str) -> str:
    """A network's name as part of a file name."""
    return network.replace(" ", "_")


def _announce(number: int, task: Task, data: EvaluationData) -> None:
    print(f"[{number}/{data.count}] {task.case.id}: {', '.join(task.segmenters)}", file=sys.stderr, flush=True)


def _tell_once(case: str, problem: InputError, told: set[tuple[str, str]]) -> str:
    """A problem in one line, printed unless another network has met the same file."""
    message = one_line(problem)
    file = message.partition(": ")[0]
    if (case, file) not in told:
        print(f"error: {case}: {message}", file=sys.stderr)
        told.add((case, file))
    return message


def _postprocessed(segmentation: Segmentation, rule: Postprocessing) -> Segmentation:
    spacing = segmentation.subject.reference.spacing
    return replace(segmentation, classes=apply_postprocessing(segmentation.classes, spacing, rule))


def _require_scores(evaluations: Evaluations, data: EvaluationData) -> None:
    if any(evaluation.scores for evaluation in evaluations.values()):
        return
    first = next(iter(evaluations.values()))
    # Failures have been printed case by case; skipped cases have not.
    reason = "" if first.failed else ", first {}: {}".format(*next(iter(first.skipped.items())))
    raise InputError(f"{data.place}: none of the {data.count} cases can be scored, nothing is written{reason}")
