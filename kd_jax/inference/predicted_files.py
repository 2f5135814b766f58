"""The files that `kd-jax predict` writes, and what it prints about each case."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.case import Case
from data_pipeline.conventions import CLASSES
from data_pipeline.errors import InputError
from data_pipeline.files import write_json
from data_pipeline.reading.findings import Refusal
from data_pipeline.reading.write_back import write_label, write_probabilities
from kd_jax.inference.cases import Outcome
from kd_jax.inference.segmenter import Segmentation, Segmenter, missing_modalities
from kd_jax.metrics import region_volumes_ml
from kd_jax.models.outputs import CHANNEL_NAMES

FAILURES_FILE = "failures.json"


@dataclass(frozen=True)
class PredictedFiles:
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


def refuse_existing(cases: Sequence[Case], files: PredictedFiles) -> None:
    """Checks that no result would be replaced.

    Raises:
      InputError: a file is already there.
    """
    paths = [files.label_path(case) for case in cases]
    if files.probabilities:
        paths += [files.probabilities_path(case) for case in cases]
    if existing := [path for path in paths if path.exists()]:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise InputError(f"{existing[0]}{more}: already there; choose another --output, or pass --overwrite")


def describe_task(case: Case, segmenter: Segmenter, layout: str | None, label_map: str | None) -> str:
    """One line with the files of a case and the label values of its result."""
    values = ", ".join(f"{case.convention.from_class[i]} {name}" for i, name in enumerate(CLASSES) if i > 0)
    given = "--layout" if layout else f"file names as in {case.layout}"
    why = "--label-map" if label_map else given
    used = ", ".join(m for m in segmenter.modalities if m in case.images) or "none"
    return (
        f"{case.id}: found {', '.join(case.images) or 'no modality'}; used {used}; "
        f"writes label values {values} ({case.convention.name}, because of {why})"
    )


def explain_failure(outcome: Outcome, segmenter: Segmenter) -> str:
    """The reason why a case could not be segmented, with its remedy."""
    if outcome.problem is not None:
        return outcome.problem.with_commands() if isinstance(outcome.problem, Refusal) else str(outcome.problem)
    runs = "this run" if len(segmenter.members) == 1 else "these runs"
    return (
        f"{', '.join(missing_modalities(outcome.case, segmenter))} missing; the {segmenter.name} of {runs} needs "
        f"{', '.join(segmenter.modalities)}: add the files, or use a run trained without them"
    )


def write_case(segmentation: Segmentation, segmenter: Segmenter, case: Case, files: PredictedFiles) -> None:
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


def write_failures(failures: Mapping[str, str], cases: int, files: PredictedFiles) -> None:
    """Leave `failures.json` if and only if there were failures in this call."""
    path = files.folder / FAILURES_FILE
    if not failures:
        path.unlink(missing_ok=True)
        return
    write_json(path, failures)
    print(f"{len(failures)} of {cases} cases failed, see {path}", file=sys.stderr)
