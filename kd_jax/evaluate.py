"""Score the networks of a run: `python -m kd_jax.evaluate runs/NAME`.

Every case is segmented by sliding window, resampled to its original grid and compared there with its label at
original resolution. Written under RUN/evaluation/<data>/: one CSV per network with a row per case, summary.json
with the distributions and everything needed to repeat them, and cases.png with cases from the worst to the best.
"""

import argparse
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from data_pipeline.checks import check_same_grid
from data_pipeline.conventions import Region
from data_pipeline.errors import InputError
from data_pipeline.formats import Case
from data_pipeline.nifti import read_label, write_label
from kd_jax import __version__
from kd_jax.checkpoint import NetworkName, Which
from kd_jax.cli import CASES_FAILED, ensure_writable, one_line, run_command
from kd_jax.evaluation_data import EvaluationData, evaluation_data, refuse_other_data
from kd_jax.metrics import (
    EMPTY_RULES,
    HD95_DEFINITION,
    EmptyRule,
    Paired,
    RegionScores,
    region_scores,
    summarise_cases,
    summarise_pairs,
)
from kd_jax.picture import CaseView, Outcome, Row, draw_cases, mean_dice, pick_cases, take_classes, take_view
from kd_jax.report import as_json, comparison_table, summary_table, write_case_scores, write_json
from kd_jax.segment import Segmentation, Segmenter, load_segmenter, missing_modalities, segment_case

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


@dataclass(frozen=True)
class Evaluation:
    """One network on one data set, by case id: scores and the slice for the picture, or why a case has none."""

    segmenter: Segmenter
    scores: dict[str, dict[Region, RegionScores]]
    views: dict[str, CaseView]
    classes: dict[str, UInt8[np.ndarray, "d h"]]
    skipped: dict[str, str]
    failed: dict[str, str]


def main(arguments: Sequence[str]) -> int:
    """Evaluate as the command line says; returns 1 if the files of a case could not be used."""
    args = _parser().parse_args(arguments)
    networks: tuple[NetworkName, ...] = ("student", "teacher") if args.network == "both" else (args.network,)
    segmenters = [load_segmenter(args.run, network, args.checkpoint, mirror=args.mirror) for network in networks]
    data = evaluation_data(args.run, args.data, args.label_map)
    folder = args.output or args.run / "evaluation" / data.name
    refuse_other_data(folder / SUMMARY_FILE, data)
    ensure_writable(folder)
    evaluations: dict[NetworkName, Evaluation] = {}
    for segmenter in segmenters:
        predictions = folder / f"predictions_{segmenter.name}" if args.save_predictions else None
        options = Options(args.empty, args.ignore_affine or data.ignore_affine, predictions)
        before = next(iter(evaluations.values()), None)
        evaluations[segmenter.name] = _evaluate(segmenter, data, options, before)
    _require_scores(evaluations, data)
    for network, evaluation in evaluations.items():
        write_case_scores(folder / f"{network}.csv", evaluation.scores)
    drawn = _draw(folder / PICTURE_FILE, evaluations, data, args)
    write_json(folder / SUMMARY_FILE, _summary(evaluations, data, args))
    console = Console()
    _show(console, evaluations, data, args.empty)
    for line in (f"Picture: {folder / PICTURE_FILE} ({drawn})", f"Written to {folder}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return CASES_FAILED if any(e.failed for e in evaluations.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kd_jax.evaluate",
        description="Score the networks of a run: Dice, HD95, sensitivity, specificity and volume of WT, TC and ET "
        "at the original resolution. The data are the run's held-out cases unless --data says otherwise.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, as kd_jax.train printed it")
    parser.add_argument(
        "--network",
        choices=(*get_args(NetworkName), "both"),
        default="student",
        help="both puts student and teacher side by side, with paired differences (default: %(default)s)",
    )
    parser.add_argument("--checkpoint", choices=get_args(Which), default="best", help="(default: %(default)s)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of labelled cases, or of one patient")
    parser.add_argument(
        "--label-map",
        metavar="MAP",
        help='meaning of the label values, e.g. "1=NCR,2=ED,4=ET" (default: by file names)',
    )
    parser.add_argument(
        "--empty",
        choices=get_args(EmptyRule),
        default="brats",
        help="regions without voxels. "
        + "; ".join(f"{rule}: {meaning}" for rule, meaning in EMPTY_RULES.items())
        + " (default: %(default)s)",
    )
    parser.add_argument("--mirror", action="store_true", help="average over the eight mirrorings: 8 times the work")
    parser.add_argument("--output", type=Path, metavar="DIR", help="(default: RUN/evaluation/<data>)")
    parser.add_argument("--save-predictions", action="store_true", help="also write the predicted label maps")
    parser.add_argument("--ignore-affine", action="store_true", help="accept modalities whose affines differ")
    return parser


def _evaluate(segmenter: Segmenter, data: EvaluationData, options: Options, before: Evaluation | None) -> Evaluation:
    """Score every case; `before` is the evaluation of another network, whose slices and complaints hold here too."""
    evaluation = Evaluation(segmenter, {}, {}, {}, {}, {})
    for number, case in enumerate(data.cases, 1):
        if reason := _why_unusable(case, segmenter):
            evaluation.skipped[case.id] = reason
            continue
        print(f"{segmenter.name} {number}/{len(data.cases)} {case.id}", file=sys.stderr)
        try:
            segmentation, reference = _segment(segmenter, case, options.ignore_affine)
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
        view = known or take_view(segmentation, reference, segmenter.modalities)
        evaluation.views[case.id], evaluation.classes[case.id] = view, take_classes(segmentation, view)
    return evaluation


def _file_of(problem: str) -> str:
    """What a message begins with; two networks that stumble over one file are one problem."""
    return problem.partition(": ")[0]


def _why_unusable(case: Case, segmenter: Segmenter) -> str | None:
    if missing := missing_modalities(case, segmenter.modalities):
        return f"no {', '.join(missing)}, which the {segmenter.name} needs"
    return "no label" if case.label is None else None


def _segment(segmenter: Segmenter, case: Case, ignore_affine: bool) -> tuple[Segmentation, UInt8[np.ndarray, "d h w"]]:
    """The case as the network sees it, and its reference on the same grid."""
    if case.label is None:
        raise ValueError(f"{case.id} has no label")
    # The label is read first: a file that cannot be used should not cost a segmentation.
    reference, geometry = read_label(case.label, case.convention)
    segmentation = segment_case(segmenter, case, ignore_affine=ignore_affine)
    check_same_grid(segmentation.subject.reference, geometry, ignore_affine=ignore_affine)
    return segmentation, reference


def _require_scores(evaluations: Mapping[NetworkName, Evaluation], data: EvaluationData) -> None:
    if any(evaluation.scores for evaluation in evaluations.values()):
        return
    first = next(iter(evaluations.values()))
    # What failed has been said, case by case; what was skipped has not.
    reason = "" if first.failed else ", first {}: {}".format(*next(iter(first.skipped.items())))
    raise InputError(f"{data.path}: none of the {len(data.cases)} cases can be scored, nothing is written{reason}")


def _paired(evaluations: Mapping[NetworkName, Evaluation]) -> tuple[list[str], Paired]:
    """The cases that both networks could use, and the student beside the teacher on them."""
    student, teacher = evaluations["student"].scores, evaluations["teacher"].scores
    ids = [case for case in student if case in teacher]
    return ids, summarise_pairs([student[case] for case in ids], [teacher[case] for case in ids])


def _draw(
    path: Path, evaluations: Mapping[NetworkName, Evaluation], data: EvaluationData, args: argparse.Namespace
) -> str:
    """Draw a few cases, chosen by the student's scores where there are any; returns in words which."""
    network, leading = next((n, e) for n, e in evaluations.items() if e.scores)
    chosen = pick_cases({case: mean_dice(scores) for case, scores in leading.scores.items()})
    rows = [
        Row(case, leading.views[case], {name: _outcome(e, case) for name, e in evaluations.items()}) for case in chosen
    ]
    drawn = _counted(len(leading.scores))
    if len(chosen) > 1:
        drawn = f"{len(chosen)} of {drawn}, from the {network}'s worst mean Dice to its best"
    phantom = " (embedded phantom)" if _is_phantom(evaluations, data) else ""
    draw_cases(path, rows, f"{args.run.resolve().name} on {data.name}{phantom}: {drawn}")
    return drawn


def _counted(cases: int) -> str:
    return "1 case" if cases == 1 else f"{cases} cases"


def _outcome(evaluation: Evaluation, case: str) -> Outcome | str:
    if case in evaluation.scores:
        return Outcome(evaluation.classes[case], evaluation.scores[case])
    return evaluation.skipped.get(case) or evaluation.failed[case]


def _summary(
    evaluations: Mapping[NetworkName, Evaluation], data: EvaluationData, args: argparse.Namespace
) -> dict[str, Any]:
    config = next(iter(evaluations.values())).segmenter.config
    summary: dict[str, Any] = {
        "run": args.run.resolve(),
        "checkpoint": args.checkpoint,
        "data": {
            "name": data.name,
            "path": data.path,
            "cases": len(data.cases),
            "phantom": _is_phantom(evaluations, data),
            "trained_on": data.trained_on,
        },
        "empty_regions": {"rule": args.empty, "meaning": EMPTY_RULES[args.empty]},
        "hd95": HD95_DEFINITION,
        "sd": "sample standard deviation (n - 1)",
        "grid": "the original grid of each case",
        "network_spacing_mm": config.data.spacing,
        "patch": config.data.patch,
        "mirror": args.mirror,
        "networks": {
            network: {
                "step": evaluation.segmenter.step,
                "modalities": evaluation.segmenter.modalities,
                "cases": list(evaluation.scores),
                "skipped": evaluation.skipped,
                "failed": evaluation.failed,
                "regions": as_json(summarise_cases(list(evaluation.scores.values()))),
            }
            for network, evaluation in evaluations.items()
        },
        "versions": {"kd_jax": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("jax", "flax", "numpy", "scipy", "nibabel")},
        "backend": jax.default_backend(),
    }
    if len(evaluations) == 2:
        ids, paired = _paired(evaluations)
        summary["paired_difference"] = {
            "definition": "student - teacher, case by case",
            "cases": ids,
            "regions": as_json(paired.difference),
        }
    return summary


def _is_phantom(evaluations: Mapping[NetworkName, Evaluation], data: EvaluationData) -> bool:
    """Whether these are the held-out cases of a run on the embedded phantom."""
    return data.held_out and next(iter(evaluations.values())).segmenter.config.data.root is None


def _show(
    console: Console, evaluations: Mapping[NetworkName, Evaluation], data: EvaluationData, empty: EmptyRule
) -> None:
    """Tables on screen, and with them what they are of."""
    for network, evaluation in evaluations.items():
        for kind, reasons in (("skipped", evaluation.skipped), ("failed", evaluation.failed)):
            for case, reason in reasons.items():
                console.print(f"{network}: {kind} {case}: {reason}", highlight=False, markup=False, soft_wrap=True)
        if evaluation.scores:
            s = evaluation.segmenter
            cases = _counted(len(evaluation.scores))
            title = f"{network} ({', '.join(s.modalities)}), step {s.step}, {cases} of {data.name}"
            console.print(summary_table(title, summarise_cases(list(evaluation.scores.values()))))
    if len(evaluations) == 2:
        ids, paired = _paired(evaluations)
        if ids:
            console.print(comparison_table(f"student and teacher on the same {_counted(len(ids))}", paired))
    phantom = " (embedded phantom: says nothing about patients)" if _is_phantom(evaluations, data) else ""
    lines = [f"Data: {data.path}{phantom}"]
    if data.trained_on:
        lines.append(
            f"Warning: the run was trained on {len(data.trained_on)} of these cases; their scores are no test."
        )
    lines += [f"Empty regions, {empty}: {EMPTY_RULES[empty]}.", f"HD95: {HD95_DEFINITION}"]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
