"""Position of a run on the host: step, epoch, running means, best score."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from data_pipeline.conventions import REGION_CLASSES
from kd_jax.config.schema import STUDENT
from kd_jax.training.journal import current_name

Record = dict[str, float | None]

EMA_KEEP = 0.9
"""Share of the old value in the moving average of pseudo-Dice (nnU-Net)."""


@dataclass
class Progress:
    """Everything but arrays that continuing a run needs; saved with every checkpoint.

    Attributes:
      step: steps done; the data position follows from it.
      epoch: epochs done.
      sums: sums of each measurement over the epoch's steps so far, and their number.
      absorbed: steps whose measurements are in `sums`, over the run.
      seconds: time spent in the epoch so far.
      ema: moving average of the mean pseudo-Dice, by network.
      best: its highest value so far, by network.
    """

    step: int = 0
    epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    absorbed: int = 0
    seconds: float = 0.0
    ema: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_position(cls, position: dict[str, Any]) -> Self:
        """Progress as it was saved."""
        if not isinstance(position["best"], dict):  # a run of before there were several students
            best = {} if position["best"] is None else {STUDENT: position["best"]}
            sums = {current_name(name): value for name, value in position["sums"].items()}
            position = {**position, "best": best, "sums": sums}
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

    def end_epoch(self, counts: Mapping[str, Float[np.ndarray, "3 3"]]) -> tuple[Record, frozenset[str]]:
        """Closes an epoch.

        Args:
          counts: by network, [region, (TP, FP, FN)] voxels over the validation patches.

        Returns:
          The epoch's record: means of all measurements, pseudo-Dice (None where a region is in neither
          prediction nor reference), seconds; and the networks whose moving average has never been higher.
        """
        record: Record = {name: value / self.count for name, value in self.sums.items()}
        improved = set()
        for network, rows in counts.items():
            scores = dict(zip(REGION_CLASSES, map(_dice, rows), strict=True))
            present = [score for score in scores.values() if score is not None]
            mean = float(np.mean(present)) if present else 0.0
            old = self.ema.get(network, mean)
            self.ema[network] = EMA_KEEP * old + (1 - EMA_KEEP) * mean
            record |= {f"{network}/pseudo_dice/{region}": score for region, score in scores.items()}
            record |= {f"{network}/pseudo_dice/mean": mean, f"{network}/pseudo_dice/ema": self.ema[network]}
            if network not in self.best or self.ema[network] > self.best[network]:
                self.best[network] = self.ema[network]
                improved.add(network)
        record["seconds"] = self.seconds
        self.epoch += 1
        self.sums, self.count, self.seconds = {}, 0, 0.0
        return record, frozenset(improved)


def _dice(counts: Float[np.ndarray, " 3"]) -> float | None:
    true_positive, false_positive, false_negative = counts
    size = 2 * true_positive + false_positive + false_negative
    return float(2 * true_positive / size) if size else None
