"""Decide which post-processing helps: `kd-jax postprocess runs/FOLD_0 runs/FOLD_1`.

The command does what nnU-Net does after its cross-validation: it segments the held-out cases of all runs and decides by
their Dice whether to keep only the largest component, of all foreground and then of each class or region. If thresholds
are given, it also decides on the smallest volume of enhancing tumour. It writes the rule to RUN/postprocessing.json of
every run.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from data_pipeline.command_line import add_naming_options, run_command
from data_pipeline.conventions import Region
from data_pipeline.errors import InputError
from data_pipeline.files import ensure_writable
from kd_jax.config.options import add_network_options
from kd_jax.config.schema import Outputs
from kd_jax.evaluation.cases import EvaluationData, evaluation_data
from kd_jax.inference.cases import Task, missing_modalities, segment_cases
from kd_jax.inference.findings import print_findings
from kd_jax.inference.load import load_segmenter
from kd_jax.inference.segmenter import Segmenter
from kd_jax.metrics import REGIONS
from kd_jax.postprocessing.choice import parse_millilitres
from kd_jax.postprocessing.decision import (
    CaseCounts,
    best_threshold,
    count_case,
    decide_steps,
    decide_threshold,
    region_dice,
)
from kd_jax.postprocessing.decision_tables import decision_tables
from kd_jax.postprocessing.rule import (
    PARTS,
    POSTPROCESSING_FILE,
    DecidedOn,
    LabelOrRegion,
    Postprocessing,
    When,
    describe_rule,
    load_postprocessing,
    save_postprocessing,
)
from kd_jax.runs.store import Which


def main(arguments: Sequence[str]) -> int:
    """Decide and write as the command line says."""
    args = _parser().parse_args(arguments)
    segmenter = load_segmenter(args.runs, args.network, args.checkpoint, mirror=args.mirror)
    data = evaluation_data(args.runs, args.data, args.label_map, args.layout)
    _refuse_trained_on(data, args.runs)
    tasks = data.tasks({segmenter.name: segmenter}, ignore_affine=args.ignore_affine)
    _refuse_unusable(tasks)
    _refuse_existing(segmenter, overwrite=args.overwrite)
    for run in args.runs:
        ensure_writable(run)
    counts = dict(_count(tasks, PARTS[args.parts or segmenter.outputs]))
    decided_on = DecidedOn(
        runs={str(member.run): member.step for member in segmenter.members},
        cases=tuple(sorted(counts)),
        checkpoint=args.checkpoint,
        mirror=segmenter.mirror,
        parts=args.parts or segmenter.outputs,
    )
    rule = _decide(counts, decided_on, args.min_et)
    for member in segmenter.members:
        save_postprocessing(member.run, member.name, rule)
    _show(rule, segmenter, data)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kd-jax postprocess",
        description="Decide on the held-out cases of the runs, all together, whether keeping only the largest "
        f"component improves Dice, as nnU-Net does, and write RUN/{POSTPROCESSING_FILE} for predict and evaluate.",
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folder of a run, as kd-jax train printed it; give the runs of all folds, each scores what it held out",
    )
    add_network_options(parser, get_args(Which))
    parser.add_argument(
        "--min-et",
        type=parse_millilitres,
        nargs="+",
        default=(),
        metavar="ML",
        help="thresholds to try: enhancing tumour below ML in total becomes necrotic core (1 ml: 1000 voxels of "
        "1 mm³); the one with the best mean Dice of ET is taken (1 where both are empty), if it improves on none",
    )
    parser.add_argument(
        "--parts",
        choices=get_args(Outputs),
        help="parts whose Dice decides: NCR, ED and ET, or WT, TC and ET (default: those the network was trained on)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        metavar="DATA",
        help="decide on these labelled cases instead, folders or CSV files; none may have been trained on",
    )
    add_naming_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a rule that is already there")
    return parser


def _refuse_trained_on(data: EvaluationData, runs: Sequence[Path]) -> None:
    if data.count == 0:
        raise InputError(f"{runs[0]}: holds out no case, so nothing can be decided; give labelled cases with --data")
    if data.trained_on:
        raise InputError(
            f"{data.place}: {len(data.trained_on)} of the {data.count} cases were trained on (first "
            f"{data.trained_on[0]}), and a decision needs others; give the runs of a cross-validation (data.fold a "
            "number instead of all), or with --data cases that were not trained on"
        )


def _refuse_unusable(tasks: Sequence[Task]) -> None:
    """Refuses cases that cannot be used, before the work: a rule holds for the cases it was decided on."""
    for task in tasks:
        if task.case.label is None:
            raise InputError(f"{task.case.id}: has no label, and a decision needs every one; add it, or leave it out")
        for name, segmenter in task.segmenters.items():
            if missing := missing_modalities(task.case, segmenter):
                raise InputError(f"{task.case.id}: has no {', '.join(missing)}, which the {name} needs; add the files")


def _refuse_existing(segmenter: Segmenter, *, overwrite: bool) -> None:
    for member in segmenter.members:
        if load_postprocessing(member.run, member.name) is not None and not overwrite:
            raise InputError(
                f"{member.run / POSTPROCESSING_FILE}: holds a rule for the {member.name}; replace it with --overwrite"
            )


def _count(tasks: Sequence[Task], parts: Sequence[LabelOrRegion]) -> Iterator[tuple[str, CaseCounts]]:
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


def _decide(counts: dict[str, CaseCounts], decided_on: DecidedOn, thresholds_ml: Sequence[float]) -> Postprocessing:
    cases = [counts[name] for name in decided_on.cases]
    decisions = decide_steps(cases, PARTS[decided_on.parts])
    steps = tuple(decision.step for decision in decisions if decision.applied)
    thresholds = decide_threshold(cases, steps, thresholds_ml) if thresholds_ml else []
    min_et_ml = best_threshold(thresholds) if thresholds else None
    dice: dict[When, dict[Region, float]] = {
        "before": {region: region_dice(cases, (), region, None) for region in REGIONS},
        "after": {region: region_dice(cases, steps, region, min_et_ml) for region in REGIONS},
    }
    return Postprocessing(steps, min_et_ml, decided_on, tuple(decisions), tuple(thresholds), dice)


def _show(rule: Postprocessing, segmenter: Segmenter, data: EvaluationData) -> None:
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


if __name__ == "__main__":
    sys.exit(run_command(main))
