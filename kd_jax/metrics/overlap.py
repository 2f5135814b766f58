"""Metrics of two masks that follow from counts of voxels."""

import math
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Bool

from data_pipeline.conventions import Spacing


class Overlap(NamedTuple):
    """Counts of voxels in two masks and in the volume around them; a metric is NaN where its formula is undefined."""

    both: int
    predicted: int
    present: int
    volume: int

    @classmethod
    def from_masks(
        cls, prediction: Bool[np.ndarray, "d h w"], reference: Bool[np.ndarray, "d h w"], volume: int | None = None
    ) -> Self:
        """Count two masks on one grid; `volume` is the number of voxels of the grid they were cropped from, if any.

        A crop leaves out background only, so it changes nothing but the true negatives, which `volume` restores.
        """
        both, predicted, present = (
            int(np.count_nonzero(mask)) for mask in (prediction & reference, prediction, reference)
        )
        return cls(both, predicted, present, prediction.size if volume is None else volume)

    @property
    def dice(self) -> float:
        """2 |A ∩ B| / (|A| + |B|) (Dice 1945); NaN if both are empty."""
        return _ratio(2 * self.both, self.predicted + self.present)

    @property
    def sensitivity(self) -> float:
        """True positives / voxels of the reference; NaN if the reference is empty."""
        return _ratio(self.both, self.present)

    @property
    def specificity(self) -> float:
        """True negatives / voxels outside the reference, over the whole volume; NaN if the reference fills it."""
        return _ratio(self.volume - self.predicted - self.present + self.both, self.volume - self.present)


def dice(prediction: Bool[np.ndarray, "d h w"], reference: Bool[np.ndarray, "d h w"]) -> float:
    """Dice of two masks on one grid, 2 |A ∩ B| / (|A| + |B|); NaN if both are empty.

    Examples:
      >>> import kd_jax, numpy as np
      >>> half, whole = np.zeros((8, 8, 8), bool), np.ones((8, 8, 8), bool)
      >>> half[:4] = True
      >>> round(kd_jax.dice(half, whole), 4)
      0.6667
    """
    return Overlap.from_masks(prediction, reference).dice


def sensitivity(prediction: Bool[np.ndarray, "d h w"], reference: Bool[np.ndarray, "d h w"]) -> float:
    """`Overlap.sensitivity` of two masks on one grid."""
    return Overlap.from_masks(prediction, reference).sensitivity


def specificity(prediction: Bool[np.ndarray, "d h w"], reference: Bool[np.ndarray, "d h w"]) -> float:
    """`Overlap.specificity` of two masks on one grid."""
    return Overlap.from_masks(prediction, reference).specificity


def volume_ml(mask: Bool[np.ndarray, "d h w"], spacing: Spacing) -> float:
    """Volume of a mask in millilitres."""
    return millilitres(int(np.count_nonzero(mask)), spacing)


def millilitres(voxels: int, spacing: Spacing) -> float:
    """Volume of a number of voxels in millilitres (1 ml = 1000 mm³)."""
    return float(voxels * math.prod(spacing) / 1000)


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else math.nan
