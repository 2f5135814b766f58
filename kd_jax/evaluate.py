"""Score the networks of a run: `python -m kd_jax.evaluate runs/NAME`.

Every case is segmented by sliding window, resampled to its original grid and compared there with its label at
original resolution. Written under RUN/evaluation/<data>/: one CSV per network with a row per case, and
summary.json with the distributions and everything needed to repeat them.
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
    RegionScores,
    paired_differences,
    region_scores,
    summarise_cases,
)
from kd_jax.report import as_json, comparison_table, summary_table, write_case_scores, write_json
from kd_jax.segment import Segmenter, load_segmenter, missing_modalities, segment_case

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Evaluation:
    """One network on one data set, by case id: scores, and why a case has none."""

    segmenter: Segmenter
    scores: Mapping[str, dict[Region, RegionScores]]
    skipped: Mapping[str, str]
    failed: Mapping[str, str]


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
        evaluations[segmenter.name] = _evaluate(segmenter, data, args.empty, predictions, args.ignore_affine)
    _require_scores(evaluations, data)
    for network, evaluation in evaluations.items():
        write_case_scores(folder / f"{network}.csv", evaluation.scores)
    write_json(folder / SUMMARY_FILE, _summary(evaluations, data, args))
    console = Console()
    _show(console, evaluations, data, args.empty)
    console.print(f"Written to {folder}", highlight=False, soft_wrap=True)
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


def _evaluate(
    segmenter: Segmenter, data: EvaluationData, empty: EmptyRule, predictions: Path | None, ignore_affine: bool
) -> Evaluation:
    scores, skipped, failed = {}, {}, {}
    for number, case in enumerate(data.cases, 1):
        if reason := _why_unusable(case, segmenter):
            skipped[case.id] = reason
            continue
        print(f"{segmenter.name} {number}/{len(data.cases)} {case.id}", file=sys.stderr)
        try:
            scores[case.id] = _score(segmenter, case, empty, predictions, ignore_affine)
        except InputError as error:
            failed[case.id] = one_line(error)
            print(f"error: {case.id}: {failed[case.id]}", file=sys.stderr)
    return Evaluation(segmenter, scores, skipped, failed)


def _why_unusable(case: Case, segmenter: Segmenter) -> str | None:
    if missing := missing_modalities(case, segmenter.modalities):
        return f"no {', '.join(missing)}, which the {segmenter.name} needs"
    return "no label" if case.label is None else None


def _score(
    segmenter: Segmenter, case: Case, empty: EmptyRule, predictions: Path | None, ignore_affine: bool
) -> dict[Region, RegionScores]:
    if case.label is None:
        raise ValueError(f"{case.id} has no label")
    # The label is read first: a file that cannot be used should not cost a segmentation.
    reference, geometry = read_label(case.label, case.convention)
    segmentation = segment_case(segmenter, case, ignore_affine=ignore_affine)
    grid = segmentation.subject.reference
    check_same_grid(grid, geometry, ignore_affine=ignore_affine)
    if predictions is not None:
        write_label(predictions / f"{case.id}.nii.gz", segmentation.classes, grid, case.convention)
    return region_scores(segmentation.classes, reference, grid.spacing, empty)


def _require_scores(evaluations: Mapping[NetworkName, Evaluation], data: EvaluationData) -> None:
    if any(evaluation.scores for evaluation in evaluations.values()):
        return
    reasons = {**next(iter(evaluations.values())).skipped, **next(iter(evaluations.values())).failed}
    case, reason = next(iter(reasons.items()))
    raise InputError(f"{data.path}: none of the {len(data.cases)} cases can be scored, first {case}: {reason}")


def _paired(
    evaluations: Mapping[NetworkName, Evaluation],
) -> tuple[list[str], list[dict[Region, RegionScores]], list[dict[Region, RegionScores]]]:
    """Ids and both networks' scores of the cases that both could use."""
    student, teacher = evaluations["student"].scores, evaluations["teacher"].scores
    ids = [case for case in student if case in teacher]
    return ids, [student[case] for case in ids], [teacher[case] for case in ids]


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
        ids, student, teacher = _paired(evaluations)
        summary["paired_difference"] = {
            "definition": "student - teacher, case by case",
            "cases": ids,
            "regions": as_json(paired_differences(student, teacher)),
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
            title = (
                f"{network} ({', '.join(s.modalities)}), step {s.step}, {len(evaluation.scores)} cases of {data.name}"
            )
            console.print(summary_table(title, summarise_cases(list(evaluation.scores.values()))))
    if len(evaluations) == 2:
        ids, student, teacher = _paired(evaluations)
        if ids:
            tables = summarise_cases(student), summarise_cases(teacher), paired_differences(student, teacher)
            console.print(comparison_table(f"student and teacher on the same {len(ids)} cases", *tables))
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
