"""All metrics by name. To add one, write its function in a file of this folder and give it a line here."""

import math

from kd_jax.metrics.metric import Metric
from kd_jax.metrics.overlap import millilitres
from kd_jax.metrics.surface import hd95

MISSING_REGION_HD95_MM = math.sqrt(240**2 + 240**2 + 155**2)
"""BraTS 2019-2021: the diagonal of the SRI24 volume, 373.1287 mm, if one of the two regions is empty."""

METRICS: dict[str, Metric] = {
    "dice": Metric(lambda pair: pair.overlap.dice, "Dice", both_empty=1),
    "hd95_mm": Metric(
        lambda pair: hd95(pair.prediction, pair.reference, pair.spacing),
        "HD95 (mm)",
        decimals=1,
        both_empty=0,
        one_empty=MISSING_REGION_HD95_MM,
    ),
    "sensitivity": Metric(lambda pair: pair.overlap.sensitivity, "Sensitivity"),
    "specificity": Metric(lambda pair: pair.overlap.specificity, "Specificity"),
    "volume_ml": Metric(lambda pair: millilitres(pair.overlap.predicted, pair.spacing)),
    "reference_volume_ml": Metric(lambda pair: millilitres(pair.overlap.present, pair.spacing)),
}
"""A name carries its unit, and is the key in JSON and the column in CSV files (`WT_dice`); the order is theirs, too."""
