"""A metric: a function of two masks, with the rules for printing and counting its value."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool

from data_pipeline.conventions import Spacing
from kd_jax.metrics.overlap import Overlap


@dataclass(frozen=True, eq=False)
class MaskPair:
    """One region of one case, predicted and true.

    The masks are cropped to the smallest box around any tumour, because most of a brain is background and every metric
    would visit it anew.

    Attributes:
      prediction: the mask of the network.
      reference: the mask of the label, on the same grid.
      spacing: voxel size in mm along each axis.
      volume: voxels of the whole grid, before the crop.
    """

    prediction: Bool[np.ndarray, "d h w"]
    reference: Bool[np.ndarray, "d h w"]
    spacing: Spacing
    volume: int

    @cached_property
    def overlap(self) -> Overlap:
        """Counts of voxels, which several metrics share."""
        return Overlap.from_masks(self.prediction, self.reference, self.volume)


@dataclass(frozen=True)
class Metric:
    """One number about a region of a case. Add one to `registry.METRICS` and every file and table has it.

    Attributes:
      compute: the value; NaN where the formula is undefined.
      heading: in printed tables; None keeps the metric out of them. Files always have it, under its name.
      decimals: digits after the point in tables.
      both_empty, one_empty: the value that the rule `brats` gives where the formula is undefined, both masks or one of
        them being empty; NaN leaves the case out of means.
    """

    compute: Callable[[MaskPair], float]
    heading: str | None = None
    decimals: int = 3
    both_empty: float = math.nan
    one_empty: float = math.nan
