"""A data set in numbers for planning: nnU-Net's fingerprint, measured from the files, without a cache.

Source: nnunetv2/experiment_planning/dataset_fingerprint/fingerprint_extractor.py. Axes are canonical here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float32

from data_pipeline.case import Case
from data_pipeline.conventions import MODALITIES, Modality, Shape3, Spacing, region_mask
from data_pipeline.errors import InputError
from data_pipeline.reading.checks import check_same_grid
from data_pipeline.reading.nifti import read_label
from data_pipeline.reading.scan import read_scan
from data_pipeline.workers import map_cases

FOREGROUND_SAMPLES = 1_000_000
"""Tumour voxels behind the intensity statistics of a modality, over all cases.

nnU-Net takes 1e8, which is 1.6 GB for four modalities. Neither planning nor z-scoring uses these statistics: they are
for a person to read.
"""
_SEED = 1234  # nnU-Net's, the same for every case


@dataclass(frozen=True)
class Intensities:
    """Statistics of one modality over tumour voxels, in the files' own units; every case has the same weight."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class Fingerprint:
    """A data set in numbers.

    Attributes:
      spacings: mm per axis, of every case.
      shapes: voxels per axis of every case, cropped to the union of its modalities' non-background voxels.
      relative_size: median share of a volume's voxels that lie inside the crop.
      intensities: of each modality that some case with tumour has.
    """

    spacings: tuple[Spacing, ...]
    shapes: tuple[Shape3, ...]
    relative_size: float
    intensities: Mapping[Modality, Intensities]


@dataclass(frozen=True, eq=False)
class _CaseMeasures:
    spacing: Spacing
    shape: Shape3
    relative_size: float
    samples: Mapping[Modality, Float32[np.ndarray, "k"]]


def measure_cases(
    cases: Sequence[Case],
    *,
    workers: int,
    samples: int = FOREGROUND_SAMPLES,
    ignore_affine: bool = False,
    skip_bad: bool = False,
    progress: bool = True,
) -> Fingerprint:
    """The fingerprint of a data set, the same for any number of workers.

    Args:
      cases: from `layouts.find.find_cases`; each needs a label file.
      workers: processes; 0 or 1 measures in this one.
      samples: voxels per modality for the intensity statistics, shared evenly among the cases.
      ignore_affine: see `subject.load_subject`.
      skip_bad: print the cases that cannot be used to stderr and go on without them.
      progress: show a progress bar.

    Raises:
      InputError: some cases cannot be used, all listed at once; no case is left.
    """
    measures = map_cases(
        partial(_measure_case, samples=max(1, samples // max(1, len(cases))), ignore_affine=ignore_affine),
        cases,
        workers,
        doing="measuring",
        skip_bad=skip_bad,
        skip_option="--skip-bad",
        progress=progress,
    )
    intensities = {}
    for m in MODALITIES:
        if found := [measure.samples[m] for measure in measures if m in measure.samples]:
            intensities[m] = _statistics(np.concatenate(found))
    return Fingerprint(
        tuple(measure.spacing for measure in measures),
        tuple(measure.shape for measure in measures),
        float(np.median([measure.relative_size for measure in measures])),
        intensities,
    )


def _measure_case(case: Case, samples: int, ignore_affine: bool) -> _CaseMeasures | str:
    """The measures, or the problem with the case's files."""
    try:
        if case.label is None:
            raise InputError(f"{case.id}: no label file; training needs one, remove the case or add it")
        scan = read_scan(case, ignore_affine=ignore_affine)
        classes, geometry = read_label(case.label, case.convention)
        check_same_grid(scan.reference, geometry, ignore_affine=ignore_affine)
    except InputError as problem:
        return str(problem)
    return _CaseMeasures(
        scan.reference.spacing,
        scan.mask.shape,
        scan.mask.size / float(np.prod(scan.reference.shape)),
        _foreground_samples(scan.images, region_mask(classes[scan.crop], "WT"), samples),
    )


def _foreground_samples(
    images: Mapping[Modality, Float32[np.ndarray, "d h w"]], foreground: Bool[np.ndarray, "d h w"], count: int
) -> dict[Modality, Float32[np.ndarray, "k"]]:
    """`count` tumour voxels per modality, drawn with replacement so that small tumours weigh no less; none without
    tumour."""
    if not foreground.any():
        return {}
    # nnU-Net's generator over nnU-Net's order of voxels (its arrays are z, y, x), so that the draw is its own.
    rng = np.random.RandomState(_SEED)
    return {m: rng.choice(image.T[foreground.T], count) for m, image in images.items()}


def _statistics(values: Float32[np.ndarray, "k"]) -> Intensities:
    low, median, high = np.percentile(values, (0.5, 50, 99.5))
    return Intensities(
        mean=float(values.mean(dtype=np.float64)),
        median=float(median),
        std=float(values.std(dtype=np.float64)),
        min=float(values.min()),
        max=float(values.max()),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
    )
