"""Segmentation metrics per BraTS region: overlap, surface distance, volume. NumPy and SciPy only.

Every metric is NaN where its formula is undefined; the `EmptyRule` decides how such values count.
"""

from kd_jax.metrics.overlap import dice, sensitivity, specificity, volume_ml
from kd_jax.metrics.scores import (
    EMPTY_RULES,
    METRICS,
    MISSING_REGION_HD95_MM,
    REGIONS,
    EmptyRule,
    RegionScores,
    region_scores,
    region_volumes_ml,
)
from kd_jax.metrics.summary import Paired, Summary, summarise, summarise_cases, summarise_pairs
from kd_jax.metrics.surface import HD95_DEFINITION, Spacing, hd95

__all__ = [
    "EMPTY_RULES",
    "HD95_DEFINITION",
    "METRICS",
    "MISSING_REGION_HD95_MM",
    "REGIONS",
    "EmptyRule",
    "Paired",
    "RegionScores",
    "Spacing",
    "Summary",
    "dice",
    "hd95",
    "region_scores",
    "region_volumes_ml",
    "sensitivity",
    "specificity",
    "summarise",
    "summarise_cases",
    "summarise_pairs",
    "volume_ml",
]
