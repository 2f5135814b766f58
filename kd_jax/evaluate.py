"""Score the networks of a run: `python -m kd_jax.evaluate runs/NAME`.

Every case is segmented by sliding window, resampled to its original grid and compared there with its label at
original resolution. Several runs are an ensemble on the cases of --data; without it each scores the cases it held
out, and the table is over all of them. Written under RUN/evaluation/<data>/ (of the first run): one CSV per network
with a row per case, summary.json with the distributions and everything needed to repeat them, and cases.png with
cases from the worst to the best.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from data_pipeline.case import Case
from data_pipeline.command_line import CASES_FAILED, add_naming_options, run_command
from data_pipeline.conventions import without_cavity
from data_pipeline.errors import InputError, one_line
from data_pipeline.files import ensure_writable, write_json
from data_pipeline.layouts.find import describe
from data_pipeline.reading.checks import check_same_grid
from data_pipeline.reading.nifti import read_label
from data_pipeline.reading.write_back import write_label
from kd_jax.config.options import add_network_options
from kd_jax.evaluation.cases import EvaluationData, Part, evaluation_data, refuse_other_data
from kd_jax.evaluation.picture import take_classes, take_view
from kd_jax.evaluation.results import Conditions, Evaluation, Evaluations, draw, show, summary
from kd_jax.evaluation.tables import write_case_scores
from kd_jax.inference.segmenter import Segmentation, Segmenter, load_segmenter, missing_modalities, segment_case
from kd_jax.metrics import EMPTY_RULES, EmptyRule, region_scores
from kd_jax.postprocessing.choice import Chosen, add_postprocessing_options, choose_postprocessing
from kd_jax.postprocessing.rule import Postprocessing, apply_postprocessing
from kd_jax.runs.store import Which

SUMMARY_FILE = "summary.json"
PICTURE_FILE = "cases.png"


@dataclass(frozen=True)
class Options:
    """What the command line asks for every case.

    Attributes:
      empty: rule for regions without voxels.
      ignore_affine: files whose affines differ are taken to be on one grid all the same.
      predictions: folder that label maps go to; None writes none.
    """

    empty: EmptyRule
    ignore_affine: bool
    predictions: Path | None


def main(arguments: Sequence[str]) -> int:
    """Evaluate as the command line says; returns 1 if the files of a case could not be used."""
    args = _parser().parse_args(arguments)
    networks: tuple[str | None, ...] = ("student", "teacher") if args.network == "both" else (args.network,)
    segmenters = [load_segmenter(args.runs, network, args.checkpoint, mirror=args.mirror) for network in networks]
    data = evaluation_data(args.runs, args.data, args.label_map, args.layout)
    conditions = Conditions(args.runs, args.checkpoint, args.empty, data)
    folder = args.output or args.runs[0] / "evaluation" / data.name
    for line in describe([case for part in data.parts for case in part.cases]):
        print(line, file=sys.stderr)
    refuse_other_data(folder / SUMMARY_FILE, data, args.runs)
    ensure_writable(folder)
    evaluations: dict[str, Evaluation] = {}
    for segmenter in segmenters:
        predictions = folder / f"predictions_{_file_name(segmenter)}" if args.save_predictions else None
        options = Options(args.empty, args.ignore_affine, predictions)
        before = next(iter(evaluations.values()), None)
        members = [(member.run, member.name) for member in segmenter.members]
        chosen = choose_postprocessing(args.postprocess, members, args.min_et)
        evaluations[segmenter.name] = _evaluate(segmenter, data, options, chosen, before)
    _require_scores(evaluations, data)
    for evaluation in evaluations.values():
        write_case_scores(folder / f"{_file_name(evaluation.segmenter)}.csv", evaluation.scores)
    drawn = draw(folder / PICTURE_FILE, evaluations, conditions)
    write_json(folder / SUMMARY_FILE, summary(evaluations, conditions))
    console = Console()
    show(console, evaluations, conditions)
    for line in (f"Picture: {folder / PICTURE_FILE} ({drawn})", f"Written to {folder}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return CASES_FAILED if any(e.failed for e in evaluations.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kd_jax.evaluate",
        description="Score the networks of a run: Dice, HD95, sensitivity, specificity and volume of WT, TC and ET "
        "at the original resolution. The data are the held-out cases unless --data says otherwise; --network both puts "
        "student and teacher side by side, with paired differences.",
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folder of a run, as kd_jax.train printed it. The logits of several are averaged on the cases of --data; "
        "without --data each scores the cases it held out (cross-validation)",
    )
    add_network_options(parser, (*("student", "teacher"), "both"), get_args(Which))
    add_postprocessing_options(parser)
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        metavar="DATA",
        help="folders of labelled cases, of one patient, or CSV files; several are joined",
    )
    add_naming_options(parser)
    parser.add_argument(
        "--empty",
        choices=get_args(EmptyRule),
        default="brats",
        help="regions without voxels. "
        + "; ".join(f"{rule}: {meaning}" for rule, meaning in EMPTY_RULES.items())
        + " (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="(default: evaluation/<data> in the first RUN)")
    parser.add_argument("--save-predictions", action="store_true", help="also write the predicted label maps")
    return parser


def _evaluate(
    segmenter: Segmenter, data: EvaluationData, options: Options, chosen: Chosen, before: Evaluation | None
) -> Evaluation:
    """Score every case; `before` is the evaluation of another network, whose slices and complaints hold here too."""
    evaluation = Evaluation(segmenter, chosen)
    scorers = segmenter.apart() if len(data.parts) > 1 else (segmenter,)
    for scorer, part in zip(scorers, data.parts, strict=True):
        _score(scorer, part, data.count, options, evaluation, before)
    return evaluation


def _score(
    segmenter: Segmenter, part: Part, count: int, options: Options, evaluation: Evaluation, before: Evaluation | None
) -> None:
    """Score one part of `count` cases; what was found goes into `evaluation`."""
    ignore_affine = options.ignore_affine or part.ignore_affine
    for case in part.cases:
        number = 1 + len(evaluation.scores) + len(evaluation.skipped) + len(evaluation.failed)
        if reason := _why_unusable(case, segmenter):
            evaluation.skipped[case.id] = reason
            continue
        print(f"{segmenter.name} {number}/{count} {case.id}", file=sys.stderr)
        try:
            segmentation, reference = _segment(segmenter, case, evaluation.postprocessing.rule, ignore_affine)
        except InputError as error:
            evaluation.failed[case.id] = problem = one_line(error)
            if before is None or _file_of(before.failed.get(case.id, "")) != _file_of(problem):
                print(f"error: {case.id}: {problem}", file=sys.stderr)
            continue
        grid = segmentation.subject.reference
        # Not inside the try: where one label map cannot be written, no other can.
        if options.predictions is not None:
            write_label(options.predictions / f"{case.id}.nii.gz", segmentation.classes, grid, case.convention)
        evaluation.scores[case.id] = region_scores(segmentation.classes, reference, grid.spacing, options.empty)
        known = None if before is None else before.views.get(case.id)
        view = known or take_view(segmentation, reference, segmentation.subject.modalities)
        evaluation.views[case.id], evaluation.classes[case.id] = view, take_classes(segmentation, view)


def _file_name(segmenter: Segmenter) -> str:
    return segmenter.name.replace(" ", "_")


def _file_of(problem: str) -> str:
    """What a message begins with; two networks that stumble over one file are one problem."""
    return problem.partition(": ")[0]


def _why_unusable(case: Case, segmenter: Segmenter) -> str | None:
    if missing := missing_modalities(case, segmenter.modalities):
        return f"no {', '.join(missing)}, which the {segmenter.name} needs"
    return "no label" if case.label is None else None


def _segment(
    segmenter: Segmenter, case: Case, rule: Postprocessing, ignore_affine: bool
) -> tuple[Segmentation, UInt8[np.ndarray, "d h w"]]:
    """The case as the network sees it, post-processed, and its reference on the same grid."""
    if case.label is None:
        raise ValueError(f"{case.id} has no label")
    # The label is read first: a file that cannot be used should not cost a segmentation.
    reference, geometry = read_label(case.label, case.convention)
    segmentation = segment_case(segmenter, case, ignore_affine=ignore_affine)
    grid = segmentation.subject.reference
    check_same_grid(grid, geometry, ignore_affine=ignore_affine)
    classes = apply_postprocessing(segmentation.classes, grid.spacing, rule)
    return replace(segmentation, classes=classes), without_cavity(reference)


def _require_scores(evaluations: Evaluations, data: EvaluationData) -> None:
    if any(evaluation.scores for evaluation in evaluations.values()):
        return
    first = next(iter(evaluations.values()))
    # What failed has been said, case by case; what was skipped has not.
    reason = "" if first.failed else ", first {}: {}".format(*next(iter(first.skipped.items())))
    raise InputError(f"{data.place}: none of the {data.count} cases can be scored, nothing is written{reason}")


if __name__ == "__main__":
    sys.exit(run_command(main))
