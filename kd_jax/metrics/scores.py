"""All metrics of the regions of one case."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
from jaxtyping import Integer

from data_pipeline.conventions import Region, Spacing, region_mask
from kd_jax.metrics.metric import MaskPair, Metric
from kd_jax.metrics.overlap import volume_ml
from kd_jax.metrics.registry import METRICS
from kd_jax.metrics.surface import bounding_box

EmptyRule = Literal["brats", "nan"]

REGIONS: tuple[Region, ...] = get_args(Region)

RegionScores = Mapping[str, float]
"""One region of one case: the value of every metric by its name in `METRICS`. NaN is undefined, left out of means."""

EMPTY_RULES: Mapping[EmptyRule, str] = MappingProxyType(
    {
        "brats": "both empty: Dice 1, HD95 0; one empty: Dice 0, HD95 373.13 mm; "
        "sensitivity left out where the reference is empty",
        "nan": "undefined values left out of the mean and counted: Dice where both are empty, HD95 where either is, "
        "sensitivity where the reference is",
    }
)
"""The rules in words, printed with every table."""


def region_scores(
    prediction: Integer[np.ndarray, "d h w"],
    reference: Integer[np.ndarray, "_d _h _w"],
    spacing: Spacing,
    empty: EmptyRule = "brats",
) -> dict[Region, RegionScores]:
    """All metrics of WT, TC and ET for two maps of internal classes on one grid.

    Args:
      prediction: internal classes (`conventions.CLASSES`).
      reference: internal classes, of equal shape.
      spacing: voxel size in mm along each axis.
      empty: the rule for regions without a voxel, one of `EMPTY_RULES`.

    Returns:
      By region and name of the metric (`METRICS`, which carries the unit); NaN where a metric is undefined.

    Raises:
      ValueError: the maps differ in shape.

    Examples:
      >>> import kd_jax, numpy as np
      >>> reference = np.zeros((16, 16, 16), np.uint8)
      >>> reference[4:12, 4:12, 4:12] = 2
      >>> scores = kd_jax.region_scores(np.roll(reference, 1, axis=0), reference, (1.0, 1.0, 1.0))
      >>> scores["WT"]["dice"], scores["WT"]["hd95_mm"], scores["WT"]["volume_ml"]
      (0.875, 1.0, 0.512)
      >>> scores["ET"]["dice"]  # BraTS: both empty
      1
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    box = bounding_box(prediction | reference)  # one pass over the whole maps, and then only over what has tumour
    found, truth, volume = prediction[box], reference[box], prediction.size
    scores: dict[Region, RegionScores] = {}
    for region in REGIONS:
        pair = MaskPair(region_mask(found, region), region_mask(truth, region), spacing, volume)
        scores[region] = {name: _score(metric, pair, empty) for name, metric in METRICS.items()}
    return scores


def reference_is_empty(scores: RegionScores) -> bool:
    """Whether the reference has no voxel of this region."""
    return scores["reference_volume_ml"] == 0


def region_volumes_ml(classes: Integer[np.ndarray, "d h w"], spacing: Spacing) -> dict[Region, float]:
    """Volume in ml of WT, TC and ET in a map of internal classes; `spacing` in mm."""
    return {region: volume_ml(region_mask(classes, region), spacing) for region in REGIONS}


def _score(metric: Metric, pair: MaskPair, empty: EmptyRule) -> float:
    """The value of one metric; where it is undefined, what the rule makes of it."""
    value = float(metric.compute(pair))
    if empty == "nan" or not math.isnan(value):
        return value
    overlap = pair.overlap
    both_empty = overlap.predicted == overlap.present == 0
    one_empty = overlap.predicted == 0 or overlap.present == 0
    return metric.both_empty if both_empty else metric.one_empty if one_empty else value
