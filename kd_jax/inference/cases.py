"""The loop over cases that predict, evaluate and postprocess share: each case is read once for all networks.

For each case in turn it reads the label if one is needed, reads the images, and runs every network. A file that cannot
be used gives a result like any other, so that one bad file never costs the results of other cases.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from data_pipeline.case import Case
from data_pipeline.conventions import without_cavity
from data_pipeline.errors import InputError
from data_pipeline.reading.checks import check_same_grid
from data_pipeline.reading.nifti import Geometry, read_label
from kd_jax.inference.segmenter import CaseReader, Segmentation, Segmenter, apply_segmenter, missing_modalities


@dataclass(frozen=True, eq=False)
class Task:
    """One case and the segmenters for it.

    Attributes:
      case: its files.
      segmenters: by name.
      ignore_affine: accept files whose affines differ, as if they lay on one grid.
    """

    case: Case
    segmenters: Mapping[str, Segmenter]
    ignore_affine: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of one segmenter for one case: a segmentation, or the reason why there is none.

    Attributes:
      case: its files.
      network: name of the segmenter.
      segmentation: on the canonical grid of the case.
      reference: internal classes of the label on that grid, background in the resection cavity; None if not asked for.
      skipped: the files that the case lacks for this network, in words.
      problem: the reason why a file cannot be used.
    """

    case: Case
    network: str
    segmentation: Segmentation | None = None
    reference: UInt8[np.ndarray, "d h w"] | None = None
    skipped: str | None = None
    problem: InputError | None = None


def segment_cases(
    tasks: Sequence[Task],
    *,
    labelled: bool = False,
    probabilities: bool = False,
    refuse_raw: bool = False,
    announce: Callable[[int, Task], None],
) -> Iterator[Outcome]:
    """Segment cases one after the other, each by all of its segmenters.

    Args:
      tasks: in order.
      labelled: read the label too; a case without one is skipped.
      probabilities: keep them as well.
      refuse_raw: a raw clinical scan is a problem that brings the commands to prepare it.
      announce: called with the number, from 1, and the task of each case before the work on it.

    Yields:
      An outcome for each case and segmenter; those of one case follow each other.
    """
    for number, task in enumerate(tasks, 1):
        announce(number, task)
        reader = CaseReader(
            task.case, task.segmenters.values(), ignore_affine=task.ignore_affine, refuse_raw=refuse_raw
        )
        read_reference = functools.cache(functools.partial(_read_reference, task.case))
        for name, segmenter in task.segmenters.items():
            if reason := why_unusable(task.case, name, segmenter, labelled=labelled):
                yield Outcome(task.case, name, skipped=reason)
                continue
            try:
                # The label is read first: a file that cannot be used should not cost a segmentation.
                reference, grid = read_reference() if labelled else (None, None)
                segmentation = apply_segmenter(segmenter, reader, probabilities=probabilities)
                if grid is not None:
                    check_same_grid(segmentation.subject.reference, grid, ignore_affine=task.ignore_affine)
            except InputError as error:
                yield Outcome(task.case, name, problem=error)
                continue
            yield Outcome(task.case, name, segmentation, reference)


def _read_reference(case: Case) -> tuple[UInt8[np.ndarray, "d h w"], Geometry]:
    """Internal classes of a case's label, and their grid."""
    assert case.label is not None  # cases without one are skipped
    classes, grid = read_label(case.label, case.convention)
    return without_cavity(classes), grid


def why_unusable(case: Case, name: str, segmenter: Segmenter, *, labelled: bool) -> str | None:
    """The files that a case lacks for one segmenter, in words; None if it lacks none."""
    if missing := missing_modalities(case, segmenter):
        return f"no {', '.join(missing)}, which the {name} needs"
    return "no label" if labelled and case.label is None else None
