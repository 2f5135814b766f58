"""Segment patients: `kd-jax predict runs/NAME patient/ -o out/`.

NIfTI in, NIfTI out: the label map lies on the original grid of the case, in its orientation and with its affine,
and is written in the label convention of its source. The networks of several runs are averaged.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from data_pipeline.case import Case
from data_pipeline.command_line import CASES_FAILED, add_naming_options, run_command
from data_pipeline.conventions import CLASSES
from data_pipeline.errors import InputError
from data_pipeline.files import ensure_writable, write_json
from data_pipeline.layouts.find import find_cases
from data_pipeline.layouts.unused import unused_files
from data_pipeline.reading.findings import Refusal
from data_pipeline.reading.write_back import write_label, write_probabilities
from kd_jax.config.options import add_network_options
from kd_jax.inference.cases import Outcome, Task, segment_cases
from kd_jax.inference.findings import print_findings
from kd_jax.inference.load import load_segmenter
from kd_jax.inference.segmenter import Segmentation, Segmenter, missing_modalities
from kd_jax.metrics import region_volumes_ml
from kd_jax.models.outputs import CHANNEL_NAMES
from kd_jax.postprocessing.choice import add_postprocessing_options, choose_postprocessing
from kd_jax.postprocessing.rule import Postprocessing, apply_postprocessing
from kd_jax.runs.store import Which

DISCLAIMER = "For research use only. Not a medical device: do not base clinical decisions on these results."
FAILURES_FILE = "failures.json"


@dataclass(frozen=True)
class ResultFiles:
    """Paths of the results of every case.

    Attributes:
      folder: folder of all results.
      probabilities: whether maps of probabilities are written as well.
    """

    folder: Path
    probabilities: bool

    def label_path(self, case: Case) -> Path:
        """Path of the label map of a case."""
        return self.folder / f"{case.id}.nii.gz"

    def probabilities_path(self, case: Case) -> Path:
        """Path of the class probabilities of a case."""
        return self.folder / f"{case.id}_probabilities.nii.gz"


def main(arguments: Sequence[str]) -> int:
    """Predict as the command line says; returns 1 if a case could not be segmented."""
    args = _parser().parse_args(arguments)
    files = ResultFiles(args.output, args.probabilities)
    cases = find_cases(args.input, args.label_map, args.layout)
    if not args.overwrite:
        _refuse_existing(cases, files)
    segmenter = load_segmenter(args.runs, args.network, args.checkpoint, mirror=args.mirror)
    chosen = choose_postprocessing(args.postprocess, segmenter.origins, args.min_et)
    ensure_writable(files.folder)
    print(DISCLAIMER)
    for member in segmenter.members:
        print(f"{member.name} of {member.run}, step {member.step}, uses {', '.join(member.modalities)}")
    if len(segmenter.members) > 1:
        print(f"ensemble of {len(segmenter.members)}: logits averaged on the original grid")
    print(chosen.line)
    for finding in unused_files([args.input], cases):
        print(f"{finding.severity}: {finding}")
    outcomes = segment_cases(
        [Task(case, {segmenter.name: segmenter}, args.ignore_affine) for case in cases],
        probabilities=files.probabilities,
        refuse_raw=not args.accept_raw,
        announce=lambda number, task: print(
            f"[{number}/{len(cases)}] {_describe(task.case, segmenter, args.layout, args.label_map)}", flush=True
        ),
    )
    failures: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.segmentation is None:
            failures[outcome.case.id] = _explain(outcome, segmenter)
            print(f"error: {outcome.case.id}: {failures[outcome.case.id]}", file=sys.stderr, flush=True)
        else:
            print_findings(outcome.segmentation.findings, outcome.case.id, set(), sys.stdout)
            _write(_postprocessed(outcome.segmentation, chosen.rule), segmenter, outcome.case, files)
    return _finish(failures, len(cases), files)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kd-jax predict",
        description="Segment brain tumours in NIfTI files. Writes OUT/<case>.nii.gz on the original grid of the case "
        "in its source's label convention, and prints the volumes of WT, TC and ET.",
        epilog=DISCLAIMER,
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folder of a run, as kd-jax train printed it; the logits of several (folds, for example) are averaged",
    )
    parser.add_argument("input", type=Path, metavar="INPUT", help="folder of one case or of many, or a CSV file")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", required=True, help="folder for the results")
    add_network_options(parser, get_args(Which))
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="also write OUT/<case>_probabilities.nii.gz, 4-D, of the logits on the original grid: one volume each for "
        f"{', '.join(CHANNEL_NAMES['classes'])} (softmax), or for {', '.join(CHANNEL_NAMES['regions'])} (sigmoid) of a "
        "run with loss.segmentation dice_bce; they are not post-processed",
    )
    add_postprocessing_options(parser)
    add_naming_options(parser)
    parser.add_argument(
        "--accept-raw",
        action="store_true",
        help="segment raw clinical scans (with skull) as they are; without it they are refused with the commands that "
        "prepare them, as networks trained on BraTS fail on them",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that are already there")
    return parser


def _refuse_existing(cases: Sequence[Case], files: ResultFiles) -> None:
    paths = [files.label_path(case) for case in cases]
    if files.probabilities:
        paths += [files.probabilities_path(case) for case in cases]
    if existing := [path for path in paths if path.exists()]:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise InputError(f"{existing[0]}{more}: already there; choose another --output, or pass --overwrite")


def _describe(case: Case, segmenter: Segmenter, layout: str | None, label_map: str | None) -> str:
    """One line with the files of a case and the label values of its result."""
    values = ", ".join(f"{case.convention.from_class[i]} {name}" for i, name in enumerate(CLASSES) if i > 0)
    given = "--layout" if layout else f"file names as in {case.layout}"
    why = "--label-map" if label_map else given
    used = ", ".join(m for m in segmenter.modalities if m in case.images) or "none"
    return (
        f"{case.id}: found {', '.join(case.images) or 'no modality'}; used {used}; "
        f"writes label values {values} ({case.convention.name}, because of {why})"
    )


def _explain(outcome: Outcome, segmenter: Segmenter) -> str:
    """The reason why a case could not be segmented, with its remedy."""
    if outcome.problem is not None:
        return outcome.problem.with_commands() if isinstance(outcome.problem, Refusal) else str(outcome.problem)
    runs = "this run" if len(segmenter.members) == 1 else "these runs"
    return (
        f"{', '.join(missing_modalities(outcome.case, segmenter))} missing; the {segmenter.name} of {runs} needs "
        f"{', '.join(segmenter.modalities)}: add the files, or use a run trained without them"
    )


def _postprocessed(segmentation: Segmentation, rule: Postprocessing) -> Segmentation:
    spacing = segmentation.subject.reference.spacing
    return replace(segmentation, classes=apply_postprocessing(segmentation.classes, spacing, rule))


def _write(segmentation: Segmentation, segmenter: Segmenter, case: Case, files: ResultFiles) -> None:
    """Write the files of one case; the label map comes last, so it stands for a complete case.

    Raises:
      InputError: a file cannot be written. Files of other cases could not be written either, so the command ends.
    """
    grid, probabilities = segmentation.subject.reference, files.probabilities_path(case)
    if segmentation.probabilities is not None:
        channels = CHANNEL_NAMES[segmenter.outputs]
        write_probabilities(probabilities, segmentation.probabilities, grid, channels)
        print(f"  probabilities of {', '.join(channels)} -> {probabilities}")
    try:
        write_label(files.label_path(case), segmentation.classes, grid, case.convention)
    except InputError:
        if segmentation.probabilities is not None:  # half a result would block the next attempt
            probabilities.unlink(missing_ok=True)
        raise
    volumes = region_volumes_ml(segmentation.classes, grid.spacing)
    listed = ", ".join(f"{region} {volume:.1f} ml" for region, volume in volumes.items())
    print(f"  {listed} -> {files.label_path(case)}", flush=True)


def _finish(failures: dict[str, str], cases: int, files: ResultFiles) -> int:
    """Leave `failures.json` if and only if there were failures in this call."""
    path = files.folder / FAILURES_FILE
    if not failures:
        path.unlink(missing_ok=True)
        return 0
    write_json(path, failures)
    print(f"{len(failures)} of {cases} cases failed, see {path}", file=sys.stderr)
    return CASES_FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
