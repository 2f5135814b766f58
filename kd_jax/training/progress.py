"""Where a run stands on the host's side: step, epoch, running means, best score."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from data_pipeline.conventions import REGION_CLASSES

EMA_KEEP = 0.9
"""Share of the old value in the moving average of pseudo-Dice (nnU-Net)."""


@dataclass
class Progress:
    """Everything besides arrays that continuing a run needs; saved with every checkpoint.

    Attributes:
      step: steps done; the data position follows from it.
      epoch: epochs done.
      sums: sums of each measurement over the epoch's steps so far, and their number.
      absorbed: steps whose measurements are in `sums`, over the run.
      seconds: time spent in the epoch so far.
      ema: moving average of the mean pseudo-Dice, per network.
      best: the student's best moving average so far.
    """

    step: int = 0
    epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    absorbed: int = 0
    seconds: float = 0.0
    ema: dict[str, float] = field(default_factory=dict)
    best: float | None = None

    @classmethod
    def from_position(cls, position: dict[str, Any]) -> Self:
        """Progress as it was saved."""
        return cls(**position)

    def to_position(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)

    def absorb(self, values: dict[str, float]) -> int:
        """Adds the measurements of one step to the epoch's sums; returns that step's number, from 1."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        self.absorbed += 1
        return self.absorbed

    def end_epoch(self, counts: Float[np.ndarray, "2 3 3"]) -> tuple[dict[str, float | None], bool]:
        """Closes an epoch.

        Args:
          counts: [teacher and student, region, (TP, FP, FN)] voxels over the validation patches.

        Returns:
          The epoch's record: means of all measurements, pseudo-Dice (None where a region is in neither
          prediction nor reference), seconds; and whether the student's moving average is the best so far.
        """
        record: dict[str, float | None] = {name: value / self.count for name, value in self.sums.items()}
        for network, rows in zip(("teacher", "student"), counts, strict=True):
            scores = dict(zip(REGION_CLASSES, map(_dice, rows), strict=True))
            present = [score for score in scores.values() if score is not None]
            mean = float(np.mean(present)) if present else 0.0
            old = self.ema.get(network, mean)
            self.ema[network] = EMA_KEEP * old + (1 - EMA_KEEP) * mean
            record |= {f"{network}/pseudo_dice/{region}": score for region, score in scores.items()}
            record |= {f"{network}/pseudo_dice/mean": mean, f"{network}/pseudo_dice/ema": self.ema[network]}
        record["seconds"] = self.seconds
        improved = self.best is None or self.ema["student"] > self.best
        if improved:
            self.best = self.ema["student"]
        self.epoch += 1
        self.sums, self.count, self.seconds = {}, 0, 0.0
        return record, improved


def _dice(counts: Float[np.ndarray, " 3"]) -> float | None:
    true_positive, false_positive, false_negative = counts
    size = 2 * true_positive + false_positive + false_negative
    return float(2 * true_positive / size) if size else None
