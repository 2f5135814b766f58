"""All metrics of the regions of one case."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Integer

from data_pipeline.conventions import Region, region_mask
from kd_jax.metrics.overlap import Overlap, millilitres, volume_ml
from kd_jax.metrics.surface import Spacing, bounding_box, hd95

EmptyRule = Literal["brats", "nan"]

REGIONS: tuple[Region, ...] = get_args(Region)

MISSING_REGION_HD95_MM = math.sqrt(240**2 + 240**2 + 155**2)
"""BraTS 2019-2021: the diagonal of the SRI24 volume, 373.1287 mm, when one of the two regions is empty."""

EMPTY_RULES: Mapping[EmptyRule, str] = {
    "brats": "both empty: Dice 1, HD95 0; one empty: Dice 0, HD95 373.13 mm; "
    "sensitivity left out where the reference is empty",
    "nan": "undefined values left out of the mean and counted: Dice where both are empty, HD95 where either is, "
    "sensitivity where the reference is",
}
"""The rules in words, printed with every table."""


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


def region_scores(
    prediction: Integer[np.ndarray, "d h w"],
    reference: Integer[np.ndarray, "_d _h _w"],
    spacing: Spacing,
    empty: EmptyRule,
) -> dict[Region, RegionScores]:
    """All metrics of WT, TC and ET for two maps of internal classes on one grid.

    Raises:
      ValueError: the maps differ in shape.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    box = bounding_box(prediction | reference)  # one pass over the whole maps; all others see only the tumour
    found, truth, volume = prediction[box], reference[box], prediction.size
    return {r: _scores(region_mask(found, r), region_mask(truth, r), volume, spacing, empty) for r in REGIONS}


def region_volumes_ml(classes: Integer[np.ndarray, "d h w"], spacing: Spacing) -> dict[Region, float]:
    """Volume in ml of WT, TC and ET in a map of internal classes."""
    return {region: volume_ml(region_mask(classes, region), spacing) for region in REGIONS}


def _scores(
    prediction: Bool[np.ndarray, "d h w"],
    reference: Bool[np.ndarray, "d h w"],
    volume: int,
    spacing: Spacing,
    empty: EmptyRule,
) -> RegionScores:
    """Scores of two masks that are cropped from a volume of `volume` voxels."""
    overlap = Overlap.of(prediction, reference, volume)
    dice, distance = overlap.dice, hd95(prediction, reference, spacing)
    if empty == "brats":
        both_empty = math.isnan(dice)
        dice = 1.0 if both_empty else dice
        if math.isnan(distance):
            distance = 0.0 if both_empty else MISSING_REGION_HD95_MM
    return RegionScores(
        dice=dice,
        hd95_mm=distance,
        sensitivity=overlap.sensitivity,
        specificity=overlap.specificity,
        volume_ml=millilitres(overlap.predicted, spacing),
        reference_volume_ml=millilitres(overlap.present, spacing),
    )
