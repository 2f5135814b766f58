"""Segmentation metrics per BraTS region: overlap, surface distance, volume. NumPy and SciPy only.

Every metric is NaN where its formula is undefined; the `EmptyRule` then says what becomes of those.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float64, Integer
from scipy import ndimage

from data_pipeline.conventions import Region, region_mask

EmptyRule = Literal["brats", "nan"]
Spacing = tuple[float, float, float]

REGIONS: tuple[Region, ...] = get_args(Region)

MISSING_REGION_HD95_MM = math.sqrt(240**2 + 240**2 + 155**2)
"""BraTS 2019-2021: the diagonal of the SRI24 volume, 373.1287 mm, when one of the two regions is empty."""

HD95_DEFINITION = (
    "95th percentile (linear interpolation) of the distances in mm from each surface voxel to the other surface, "
    "taken per direction; the larger of the two. Surface: voxels of the mask with a face neighbour outside it."
)

EMPTY_RULES: Mapping[EmptyRule, str] = {
    "brats": "both empty: Dice 1, HD95 0; one empty: Dice 0, HD95 373.13 mm; "
    "sensitivity left out where the reference is empty",
    "nan": "undefined values left out of the mean and counted: Dice where both are empty, HD95 where either is, "
    "sensitivity where the reference is",
}
"""The rules in words, printed beside every table."""


@dataclass(frozen=True)
class RegionScores:
    """One region of one case; field names carry the unit. NaN: undefined and left out of means."""

    dice: float
    hd95_mm: float
    sensitivity: float
    specificity: float
    volume_ml: float
    reference_volume_ml: float

    @property
    def reference_empty(self) -> bool:
        """The reference has no voxel of this region."""
        return self.reference_volume_ml == 0


METRICS: tuple[str, ...] = tuple(RegionScores.__dataclass_fields__)


@dataclass(frozen=True)
class Summary:
    """Distribution of one metric of one region over cases.

    `sd` is the sample standard deviation (n - 1), NaN below two cases; all statistics are NaN without any.
    """

    mean: float
    sd: float
    median: float
    q1: float
    q3: float
    n: int
    left_out: int
    reference_empty: int


def dice(prediction: Bool[np.ndarray, "d h w"], reference: Bool[np.ndarray, "d h w"]) -> float:
    """2 |A ∩ B| / (|A| + |B|) (Dice 1945); NaN if both are empty."""
    return _ratio(2 * np.count_nonzero(prediction & reference), prediction.sum() + reference.sum())


def sensitivity(prediction: Bool[np.ndarray, "d h w"], reference: Bool[np.ndarray, "d h w"]) -> float:
    """True positives / reference voxels; NaN if the reference is empty."""
    return _ratio(np.count_nonzero(prediction & reference), reference.sum())


def specificity(prediction: Bool[np.ndarray, "d h w"], reference: Bool[np.ndarray, "d h w"]) -> float:
    """True negatives / voxels outside the reference, over the whole volume; NaN if the reference fills it."""
    return _ratio(np.count_nonzero(~prediction & ~reference), np.count_nonzero(~reference))


def hd95(prediction: Bool[np.ndarray, "d h w"], reference: Bool[np.ndarray, "d h w"], spacing: Spacing) -> float:
    """Robust Hausdorff distance in mm, `HD95_DEFINITION`; NaN if either mask is empty.

    `medpy.metric.hd95` is another quantity: it pools the distances of both directions before taking the
    percentile, so that an error seen from one side only weighs half as much.

    Args:
      prediction, reference: masks on one grid.
      spacing: voxel size in mm along each axis.
    """
    if not (prediction.any() and reference.any()):
        return math.nan
    # Distances beyond the box are never looked up, and outside it both masks are empty: cropping changes nothing.
    (box,) = ndimage.find_objects((prediction | reference).astype(np.uint8))
    surfaces = _surface(prediction[box]), _surface(reference[box])
    return max(_directed(*surfaces, spacing), _directed(*surfaces[::-1], spacing))


def volume_ml(mask: Bool[np.ndarray, "d h w"], spacing: Spacing) -> float:
    """Volume of a mask in millilitres (1 ml = 1000 mm³)."""
    return float(np.count_nonzero(mask) * math.prod(spacing) / 1000)


def region_scores(
    prediction: Integer[np.ndarray, "d h w"],
    reference: Integer[np.ndarray, "d h w"],
    spacing: Spacing,
    empty: EmptyRule,
) -> dict[Region, RegionScores]:
    """All metrics of WT, TC and ET for two maps of internal classes on one grid.

    Raises:
      ValueError: the maps differ in shape.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    return {r: _scores(region_mask(prediction, r), region_mask(reference, r), spacing, empty) for r in REGIONS}


def region_volumes_ml(classes: Integer[np.ndarray, "d h w"], spacing: Spacing) -> dict[Region, float]:
    """Volume in ml of WT, TC and ET in a map of internal classes."""
    return {region: volume_ml(region_mask(classes, region), spacing) for region in REGIONS}


def summarise(values: Iterable[float], reference_empty: Iterable[bool] = ()) -> Summary:
    """Mean, SD, median and quartiles of the values that are not NaN, with the counts needed to read them."""
    every = np.array(list(values), np.float64)
    known = every[~np.isnan(every)]
    nothing = (math.nan,) * 3
    q1, median, q3 = np.percentile(known, (25, 50, 75)).tolist() if known.size else nothing
    return Summary(
        mean=float(known.mean()) if known.size else math.nan,
        sd=float(known.std(ddof=1)) if known.size > 1 else math.nan,
        median=median,
        q1=q1,
        q3=q3,
        n=known.size,
        left_out=every.size - known.size,
        reference_empty=sum(reference_empty),
    )


def summarise_cases(cases: Sequence[Mapping[Region, RegionScores]]) -> dict[Region, dict[str, Summary]]:
    """`summarise` for every region and metric over the cases."""
    return {
        region: {
            metric: summarise((getattr(c[region], metric) for c in cases), (c[region].reference_empty for c in cases))
            for metric in METRICS
        }
        for region in REGIONS
    }


class Paired(NamedTuple):
    """Two networks on the same cases: both sides and first - second, by region and metric."""

    first: dict[Region, dict[str, Summary]]
    second: dict[Region, dict[str, Summary]]
    difference: dict[Region, dict[str, Summary]]


def summarise_pairs(
    first: Sequence[Mapping[Region, RegionScores]], second: Sequence[Mapping[Region, RegionScores]]
) -> Paired:
    """`summarise` for the same cases in the same order, case by case.

    A pair with one undefined value is left out on both sides, so that the difference of the two means is the
    mean difference.

    Raises:
      ValueError: the sequences differ in length.
    """
    paired = Paired({}, {}, {})
    for region in REGIONS:
        empty = [case[region].reference_empty for case in first]
        for metric in METRICS:
            pairs = zip(first, second, strict=True)
            values = np.array([[getattr(case[region], metric) for case in pair] for pair in pairs]).reshape(-1, 2)
            values[np.isnan(values).any(axis=1)] = math.nan
            columns = *values.T, values[:, 0] - values[:, 1]
            for side, column in zip(paired, columns, strict=True):
                side.setdefault(region, {})[metric] = summarise(column, empty)
    return paired


def _scores(
    prediction: Bool[np.ndarray, "d h w"], reference: Bool[np.ndarray, "d h w"], spacing: Spacing, empty: EmptyRule
) -> RegionScores:
    overlap, distance = dice(prediction, reference), hd95(prediction, reference, spacing)
    if empty == "brats":
        both_empty = math.isnan(overlap)
        overlap = 1.0 if both_empty else overlap
        if math.isnan(distance):
            distance = 0.0 if both_empty else MISSING_REGION_HD95_MM
    return RegionScores(
        dice=overlap,
        hd95_mm=distance,
        sensitivity=sensitivity(prediction, reference),
        specificity=specificity(prediction, reference),
        volume_ml=volume_ml(prediction, spacing),
        reference_volume_ml=volume_ml(reference, spacing),
    )


def _ratio(numerator: int | np.integer, denominator: int | np.integer) -> float:
    return float(numerator / denominator) if denominator else math.nan


def _surface(mask: Bool[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
    """Voxels with a face neighbour outside the mask; beyond the array counts as outside."""
    return mask & ~ndimage.binary_erosion(mask)


def _directed(source: Bool[np.ndarray, "d h w"], target: Bool[np.ndarray, "d h w"], spacing: Spacing) -> float:
    """95th percentile of the distances in mm from the source voxels to the nearest target voxel."""
    to_target: Float64[np.ndarray, "d h w"] = ndimage.distance_transform_edt(~target, sampling=spacing)
    return float(np.percentile(to_target[source], 95))
