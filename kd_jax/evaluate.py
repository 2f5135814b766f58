"""Score the networks of a run: `kd-jax evaluate runs/NAME`.

Every case is segmented by sliding window, resampled to its original grid and compared there with its label. Several
runs form an ensemble on the cases of --data; without --data each scores the cases it held out, and the table covers all
of them. RUN/evaluation/<data>/ (of the first run) then holds one CSV per network with a row per case, summary.json with
the distributions and everything needed to repeat them, and cases.png with cases from the worst to the best.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from data_pipeline.command_line import CASES_FAILED, add_naming_options, run_command
from data_pipeline.files import ensure_writable, write_json
from data_pipeline.layouts.find import describe
from kd_jax.config.options import add_network_options
from kd_jax.evaluation.cases import evaluation_data, refuse_other_data
from kd_jax.evaluation.results import Conditions, draw, show, summary
from kd_jax.evaluation.score import Evaluation, file_name, score_cases
from kd_jax.evaluation.tables import write_case_scores
from kd_jax.inference.load import load_segmenters
from kd_jax.metrics import EMPTY_RULES, EmptyRule
from kd_jax.postprocessing.choice import add_postprocessing_options, choose_postprocessing
from kd_jax.runs.store import Which

SUMMARY_FILE = "summary.json"
PICTURE_FILE = "cases.png"


def main(arguments: Sequence[str]) -> int:
    """Evaluate as the command line says; returns 1 if the files of a case could not be used."""
    args = _parser().parse_args(arguments)
    segmenters = load_segmenters(args.runs, args.network, args.checkpoint, mirror=args.mirror)
    data = evaluation_data(args.runs, args.data, args.label_map, args.layout)
    conditions = Conditions(args.runs, args.checkpoint, args.empty, data)
    folder = args.output or args.runs[0] / "evaluation" / data.name
    for line in describe([case for group in data.groups for case in group.cases]):
        print(line, file=sys.stderr)
    refuse_other_data(folder / SUMMARY_FILE, data, args.runs)
    ensure_writable(folder)
    evaluations = {
        name: Evaluation(segmenter, choose_postprocessing(args.postprocess, segmenter.origins, args.min_et))
        for name, segmenter in segmenters.items()
    }
    predictions = folder if args.save_predictions else None
    score_cases(evaluations, data, empty=args.empty, ignore_affine=args.ignore_affine, predictions=predictions)
    for name, evaluation in evaluations.items():
        write_case_scores(folder / f"{file_name(name)}.csv", evaluation.scores)
    drawn = draw(folder / PICTURE_FILE, evaluations, conditions)
    write_json(folder / SUMMARY_FILE, summary(evaluations, conditions))
    console = Console()
    show(console, evaluations, conditions)
    for line in (f"Picture: {folder / PICTURE_FILE} ({drawn})", f"Written to {folder}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return CASES_FAILED if any(e.failed for e in evaluations.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kd-jax evaluate",
        description="Score the networks of a run: Dice, HD95, sensitivity, specificity and volume of WT, TC and ET "
        "at the original resolution. The data are the held-out cases unless --data says otherwise; --network both puts "
        "student and teacher side by side, with paired differences.",
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folder of a run, as kd-jax train printed it. The logits of several are averaged on the cases of --data; "
        "without --data each scores the cases it held out (cross-validation)",
    )
    add_network_options(parser, get_args(Which), several=True)
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


if __name__ == "__main__":
    sys.exit(run_command(main))
