"""Segment patients: `kd-jax predict runs/NAME patient/ -o out/`.

NIfTI in, NIfTI out: the label map lies on the original grid of the case, in its orientation and with its affine,
and is written in the label convention of its source. The networks of several runs are averaged.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from data_pipeline.command_line import CASES_FAILED, NamingOptions, parse_options, run_command
from data_pipeline.conventions import CLASSES, REGION_CLASSES
from kd_jax.config.options import NetworkOptions, PostprocessingOptions

DISCLAIMER = "For research use only. Not a medical device: do not base clinical decisions on these results."


@dataclass(frozen=True, kw_only=True)
class PredictOptions(NamingOptions, PostprocessingOptions, NetworkOptions):
    """Segment brain tumours in NIfTI files.

    Writes OUT/<case>.nii.gz on the original grid of the case in its source's label convention, and prints the volumes
    of WT, TC and ET.
    """

    runs: Annotated[
        tuple[Path, ...],
        Parameter(
            name="RUN",
            help="folder of a run, as kd-jax train printed it; the logits of several (folds, for example) are averaged",
        ),
    ] = field(kw_only=False)
    input: Annotated[Path, Parameter(help="folder of one case or of many, or a CSV file")] = field(kw_only=False)
    output: Annotated[Path, Parameter(alias="-o", metavar="OUT", help="folder for the results")]
    probabilities: Annotated[
        bool,
        Parameter(
            help="also write OUT/<case>_probabilities.nii.gz, 4-D, of the logits on the original grid: one volume each "
            f"for {', '.join(CLASSES)} (softmax), or for {', '.join(REGION_CLASSES)} (sigmoid) of a run with "
            "loss.segmentation dice_bce; they are not post-processed",
        ),
    ] = False
    accept_raw: Annotated[
        bool,
        Parameter(
            help="segment raw clinical scans (with skull) as they are; without it they are refused with the commands "
            "that prepare them, as networks trained on BraTS fail on them"
        ),
    ] = False
    overwrite: Annotated[bool, Parameter(help="replace results that are already there")] = False


def main(arguments: Sequence[str]) -> int:
    """Predict as the command line says; returns 1 if a case could not be segmented."""
    options = parse_options(PredictOptions, arguments, name="kd-jax predict", epilogue=DISCLAIMER)
    # Imported when work begins: --help does not wait for JAX.
    from data_pipeline.files import ensure_writable
    from data_pipeline.layouts.find import find_cases
    from data_pipeline.layouts.unused import unused_files
    from kd_jax.inference.cases import Task, segment_cases
    from kd_jax.inference.findings import print_findings
    from kd_jax.inference.load import load_segmenter
    from kd_jax.inference.predicted_files import (
        PredictedFiles,
        describe_task,
        explain_failure,
        refuse_existing,
        write_case,
        write_failures,
    )
    from kd_jax.postprocessing.choice import choose_postprocessing
    from kd_jax.postprocessing.rule import apply_postprocessing

    files = PredictedFiles(options.output, options.probabilities)
    cases = find_cases(options.input, options.label_map, options.layout)
    if not options.overwrite:
        refuse_existing(cases, files)
    segmenter = load_segmenter(options.runs, options.network, options.checkpoint, mirror=options.axes)
    chosen = choose_postprocessing(options.postprocess, segmenter.origins, options.min_et)
    ensure_writable(files.folder)
    print(DISCLAIMER)
    for member in segmenter.members:
        print(f"{member.name} of {member.run}, step {member.step}, uses {', '.join(member.modalities)}")
    if len(segmenter.members) > 1:
        print(f"ensemble of {len(segmenter.members)}: logits averaged on the original grid")
    print(chosen.line)
    for finding in unused_files([options.input], cases):
        print(f"{finding.severity}: {finding}")
    outcomes = segment_cases(
        [Task(case, {segmenter.name: segmenter}, options.ignore_affine) for case in cases],
        probabilities=files.probabilities,
        refuse_raw=not options.accept_raw,
        announce=lambda number, task: print(
            f"[{number}/{len(cases)}] {describe_task(task.case, segmenter, options.layout, options.label_map)}",
            flush=True,
        ),
    )
    failures: dict[str, str] = {}
    for outcome in outcomes:
        case, segmentation = outcome.case, outcome.segmentation
        if segmentation is None:
            failures[case.id] = explain_failure(outcome, segmenter)
            print(f"error: {case.id}: {failures[case.id]}", file=sys.stderr, flush=True)
        else:
            print_findings(segmentation.findings, case.id, set(), sys.stdout)
            spacing = segmentation.subject.reference.spacing
            classes = apply_postprocessing(segmentation.classes, spacing, chosen.rule)
            write_case(replace(segmentation, classes=classes), segmenter, case, files)
    write_failures(failures, len(cases), files)
    return CASES_FAILED if failures else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
