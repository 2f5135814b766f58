"""Results of a part of the benchmark: figures with units, and ratios above 1 where ours is faster or smaller."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """One measured quantity, ours and that of each peer.

    Attributes:
      name: what was measured, with sizes: "joint step, 64³, batch 1 + 1".
      unit: of `ours` and `peers`: "s", "GB", "patches/s".
      ours: our value.
      peers: values of the peers by name; empty without a peer to compare with.
      ratio: above 1 means ours is faster or smaller than the best peer; None without one.
    """

    name: str
    unit: str
    ours: float
    peers: Mapping[str, float] = field(default_factory=dict)
    ratio: float | None = None


@dataclass(frozen=True)
class Part:
    """Results of one part of the benchmark; the first figure is its headline.

    Attributes:
      name: as on the command line.
      figures: at least one.
      notes: facts that a reader needs to judge the figures.
    """

    name: str
    figures: Sequence[Figure]
    notes: Sequence[str] = ()

    @property
    def ratio(self) -> float | None:
        """The ratio of the headline."""
        return self.figures[0].ratio


@dataclass(frozen=True)
class Options:
    """Options of the command line that every part takes.

    Attributes:
      rounds: timed runs of each side, in turn.
      small: sizes that finish in seconds, for a first look and for tests; their figures mean nothing.
      seed: of every random draw.
    """

    rounds: int = 5
    small: bool = False
    seed: int = 0
