"""Segmentation metrics per BraTS region: overlap, surface distance, volume. NumPy and SciPy only.

Every metric is NaN where its formula is undefined; the `EmptyRule` then decides whether such a case gets a value or is
left out of the mean.
"""

from kd_jax.metrics.metric import MaskPair, Metric
from kd_jax.metrics.overlap import dice, sensitivity, specificity, volume_ml
from kd_jax.metrics.registry import METRICS, MISSING_REGION_HD95_MM
from kd_jax.metrics.scores import (
    EMPTY_RULES,
    REGIONS,
    EmptyRule,
    RegionScores,
    reference_is_empty,
    region_scores,
    region_volumes_ml,
)
from kd_jax.metrics.summary import Paired, Summary, summarise, summarise_cases, summarise_pairs
from kd_jax.metrics.surface import HD95_DEFINITION, hd95

__all__ = [
    "EMPTY_RULES",
    "HD95_DEFINITION",
    "METRICS",
    "MISSING_REGION_HD95_MM",
    "REGIONS",
    "EmptyRule",
    "MaskPair",
    "Metric",
    "Paired",
    "RegionScores",
    "Summary",
    "dice",
    "hd95",
    "reference_is_empty",
    "region_scores",
    "region_volumes_ml",
    "sensitivity",
    "specificity",
    "summarise",
    "summarise_cases",
    "summarise_pairs",
    "volume_ml",
]
