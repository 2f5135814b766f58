"""Counts how many swapped modalities the check notices: `python -m experiments.swaps DATA [DATA ...]`.

Each case with four modalities is checked unchanged and with each pair of modalities exchanged, with and without its
label. The first line counts false alarms. The last line counts labels exchanged between cases with FLAIR.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from data_pipeline.case import Case
from data_pipeline.command_line import run_command
from data_pipeline.conventions import MODALITIES, Modality
from data_pipeline.errors import InputError
from data_pipeline.layouts.find import find_cases
from data_pipeline.reading.contrast import check_contrast
from data_pipeline.reading.nifti import read_label
from data_pipeline.reading.scan import Scan, read_scan

AS_IT_IS = "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one line per swap; returns the exit status."""
    return run_command(_count, arguments)


def suspected(case: Case, scan: Scan, swap: tuple[Modality, Modality] | None, *, labelled: bool) -> bool:
    """Whether the check suspects a case whose modalities are exchanged."""
    images = dict(scan.images)
    if swap is not None:
        a, b = swap
        images[a], images[b] = images[b], images[a]
    classes = scan.classes[scan.crop] if labelled and scan.classes is not None else None
    voxel_ml = float(np.prod(scan.reference.spacing)) * 1e-3
    return bool(check_contrast(images, scan.mask, classes, case.images, voxel_ml))


def _count(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.swaps", description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, nargs="+", metavar="DATA", help="folders of labelled cases")
    known = find_cases(parser.parse_args(arguments).data)
    cases = [case for case in known if len(case.images) == len(MODALITIES)]
    if not cases:
        raise InputError("no case has all of " + ", ".join(MODALITIES))
    swaps = (None, *combinations(MODALITIES, 2))
    found = np.zeros((len(swaps), 2), int)
    for case in cases:
        scan = read_scan(case, label=True)
        found += [[suspected(case, scan, swap, labelled=labelled) for labelled in (True, False)] for swap in swaps]
    print(f"{len(cases)} cases; suspected with and without their label")
    for swap, (with_label, without) in zip(swaps, found, strict=True):
        print(f"{AS_IT_IS if swap is None else '/'.join(swap):12} {with_label:4} {without:4}")
    noticed, tried = _exchange_labels([case for case in known if case.label and "flair" in case.images])
    print(f"labels of other cases noticed: {noticed} of {tried}")
    return 0


def _exchange_labels(cases: Sequence[Case]) -> tuple[int, int]:
    """Every case with every other's label on the same grid: how many are suspected, of how many."""
    labels = [read_label(case.label, case.convention)[0] for case in cases if case.label]
    noticed = tried = 0
    for case, own in zip(cases, labels, strict=True):
        scan = read_scan(case)
        for other in labels:
            if other is not own and other.shape == own.shape:
                noticed += suspected(case, replace(scan, classes=other), None, labelled=True)
                tried += 1
    return noticed, tried


if __name__ == "__main__":
    raise SystemExit(main())
