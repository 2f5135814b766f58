"""Decide which post-processing helps: `kd-jax postprocess runs/FOLD_0 runs/FOLD_1`.

The command does what nnU-Net does after its cross-validation: it segments the held-out cases of all runs and decides by
their Dice whether to keep only the largest component, of all foreground and then of each class or region. If thresholds
are given, it also decides on the smallest volume of enhancing tumour. It writes the rule to RUN/postprocessing.json of
every run.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from data_pipeline.command_line import NamingOptions, parse_options, run_command
from kd_jax.config.options import VOLUME, NetworkOptions
from kd_jax.config.schema import Outputs


@dataclass(frozen=True, kw_only=True)
class PostprocessOptions(NamingOptions, NetworkOptions):
    """Decide whether keeping only the largest component improves Dice, as nnU-Net does.

    Decides on the held-out cases of the runs, all together, and writes RUN/postprocessing.json for predict and
    evaluate.
    """

    runs: Annotated[
        tuple[Path, ...],
        Parameter(
            name="RUN",
            required=True,
            help="folder of a run, as kd-jax train printed it; give the runs of all folds: each scores what it held "
            "out",
        ),
    ] = field(kw_only=False)
    min_et: Annotated[
        tuple[float, ...],
        Parameter(
            metavar="ML...",
            validator=VOLUME,
            help="thresholds to try: enhancing tumour below ML in total becomes necrotic core (1 ml: 1000 voxels of "
            "1 mm³); the one with the best mean Dice of ET is taken (1 where both are empty), if it improves on none",
        ),
    ] = ()
    parts: Annotated[
        Outputs | None,
        Parameter(
            metavar="classes|regions",
            show_choices=False,
            help="parts whose Dice decides: NCR, ED and ET, or WT, TC and ET; by default those the network was trained "
            "on",
        ),
    ] = None
    data: Annotated[
        tuple[Path, ...] | None,
        Parameter(
            metavar="DATA...",
            help="decide on these labelled cases instead, folders or CSV files; none may have been trained on",
        ),
    ] = None
    overwrite: Annotated[bool, Parameter(help="replace a rule that is already there")] = False


def main(arguments: Sequence[str]) -> int:
    """Decide and write as the command line says."""
    options = parse_options(PostprocessOptions, arguments, name="kd-jax postprocess")
    # Imported when work begins: --help does not wait for JAX.
    from data_pipeline.files import ensure_writable
    from kd_jax.evaluation.cases import evaluation_data
    from kd_jax.evaluation.decision_cases import (
        count_cases,
        refuse_existing,
        refuse_trained_on,
        refuse_unusable,
        show_rule,
    )
    from kd_jax.inference.load import load_segmenter
    from kd_jax.postprocessing.decision import decide_rule
    from kd_jax.postprocessing.rule import PARTS, DecidedOn, save_postprocessing

    segmenter = load_segmenter(options.runs, options.network, options.checkpoint, mirror=options.axes)
    data = evaluation_data(options.runs, options.data, options.label_map, options.layout)
    refuse_trained_on(data, options.runs)
    tasks = data.tasks({segmenter.name: segmenter}, ignore_affine=options.ignore_affine)
    refuse_unusable(tasks)
    refuse_existing(segmenter, overwrite=options.overwrite)
    for run in options.runs:
        ensure_writable(run)
    parts = options.parts or segmenter.outputs
    counts = dict(count_cases(tasks, PARTS[parts]))
    decided_on = DecidedOn(
        runs={str(member.run): member.step for member in segmenter.members},
        cases=tuple(sorted(counts)),
        checkpoint=options.checkpoint,
        mirror=segmenter.mirror,
        parts=parts,
    )
    rule = decide_rule(counts, decided_on, options.min_et)
    for member in segmenter.members:
        save_postprocessing(member.run, member.name, rule)
    show_rule(rule, segmenter, data)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
