"""Score the networks of a run: `kd-jax evaluate runs/NAME`.

Every case is segmented by sliding window, resampled to its original grid and compared there with its label. Several
runs form an ensemble on the cases of --data; without --data each scores the cases it held out, and the table covers all
of them. RUN/evaluation/<data>/ (of the first run) then holds one CSV per network with a row per case, summary.json with
the distributions and everything needed to repeat them, and cases.png with cases from the worst to the best.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from data_pipeline.command_line import CASES_FAILED, NamingOptions, parse_options, run_command
from kd_jax.config.options import NETWORK, NetworkOptions, PostprocessingOptions
from kd_jax.metrics import EMPTY_RULES, EmptyRule

SUMMARY_FILE = "summary.json"
PICTURE_FILE = "cases.png"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(NamingOptions, PostprocessingOptions, NetworkOptions):
    """Score the networks of a run: Dice, HD95, sensitivity, specificity and volume of WT, TC and ET.

    Everything is compared at the original resolution. The data are the held-out cases unless --data says otherwise;
    --network both puts student and teacher side by side, with paired differences.
    """

    runs: Annotated[
        tuple[Path, ...],
        Parameter(
            name="RUN",
            required=True,
            help="folder of a run, as kd-jax train printed it. The logits of several are averaged on the cases of "
            "--data; without --data each scores the cases it held out (cross-validation)",
        ),
    ] = field(kw_only=False)
    network: Annotated[
        str | None,
        Parameter(
            group=NETWORK,
            metavar="NAME",
            help="teacher, student, or the name of one of several students; several with commas between them, both for "
            "student and teacher, or all; by default the student, or the teacher of a run without a student",
        ),
    ] = None
    data: Annotated[
        tuple[Path, ...] | None,
        Parameter(
            metavar="DATA...", help="folders of labelled cases, of one patient, or CSV files; several are joined"
        ),
    ] = None
    empty: Annotated[
        EmptyRule,
        Parameter(
            metavar="|".join(EMPTY_RULES),
            show_choices=False,
            help="regions without voxels. " + "; ".join(f"{rule}: {meaning}" for rule, meaning in EMPTY_RULES.items()),
        ),
    ] = "brats"
    output: Annotated[
        Path | None,
        Parameter(
            alias="-o", metavar="DIR", help="folder for the results; by default evaluation/<data> in the first RUN"
        ),
    ] = None
    save_predictions: Annotated[bool, Parameter(help="also write the predicted label maps")] = False


def main(arguments: Sequence[str]) -> int:
    """Evaluate as the command line says; returns 1 if the files of a case could not be used."""
    options = parse_options(EvaluateOptions, arguments, name="kd-jax evaluate")
    # Imported when work begins: --help does not wait for JAX.
    from rich.console import Console

    from data_pipeline.files import ensure_writable, write_json
    from data_pipeline.layouts.find import describe
    from kd_jax.evaluation.cases import evaluation_data, refuse_other_data
    from kd_jax.evaluation.results import Conditions, draw, show, summary
    from kd_jax.evaluation.score import Evaluation, file_name, score_cases
    from kd_jax.evaluation.tables import write_case_scores
    from kd_jax.inference.load import load_segmenters
    from kd_jax.postprocessing.choice import choose_postprocessing

    segmenters = load_segmenters(options.runs, options.network, options.checkpoint, mirror=options.axes)
    data = evaluation_data(options.runs, options.data, options.label_map, options.layout)
    conditions = Conditions(options.runs, options.checkpoint, options.empty, data)
    folder = options.output or options.runs[0] / "evaluation" / data.name
    for line in describe([case for group in data.groups for case in group.cases]):
        print(line, file=sys.stderr)
    refuse_other_data(folder / SUMMARY_FILE, data, options.runs)
    ensure_writable(folder)
    evaluations = {
        name: Evaluation(segmenter, choose_postprocessing(options.postprocess, segmenter.origins, options.min_et))
        for name, segmenter in segmenters.items()
    }
    predictions = folder if options.save_predictions else None
    score_cases(evaluations, data, empty=options.empty, ignore_affine=options.ignore_affine, predictions=predictions)
    for name, evaluation in evaluations.items():
        write_case_scores(folder / f"{file_name(name)}.csv", evaluation.scores)
    drawn = draw(folder / PICTURE_FILE, evaluations, conditions)
    write_json(folder / SUMMARY_FILE, summary(evaluations, conditions))
    console = Console()
    show(console, evaluations, conditions)
    for line in (f"Picture: {folder / PICTURE_FILE} ({drawn})", f"Written to {folder}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return CASES_FAILED if any(e.failed for e in evaluations.values()) else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
