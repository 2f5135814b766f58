"""The properties of one tumour that are drawn before it grows."""

from dataclasses import dataclass

import numpy as np

VOLUME_RANGE = (15.0, 110.0)
"""Whole-tumour volume, ml."""
POOR_FRACTION = 0.2
"""Share of cases without an enhancing rim; with the smallest cores, a fifth to a quarter of all enhance little."""

_GOLDEN = 0.6180339887498949
_LENGTH_RANGE = (2.0, 5.5)  # sqrt(D/rho), mm: margins of 6 to 17 mm between core and the edge of the oedema
_PUSH_RANGE = (0.05, 0.24)  # displacement as a part of the tumour's radius
_PUSH_LIMIT = 7.0  # mm


@dataclass(frozen=True)
class TumourProperties:
    """The properties of one tumour.

    Attributes:
      volume: whole tumour, ml.
      length: sqrt(D/rho) in white matter, mm.
      push: largest displacement of the mass effect, mm.
      cortex: share of thin infiltration that grey matter hides.
      core_level: cell density above which tissue is core.
      rim: mean thickness of the enhancing rim, mm.
      gaps: share of the rim that does not enhance.
      enhancing: whether there is an enhancing rim; without one, at most a few spots enhance.
      spots: share of the core that enhances if there is no rim.
    """

    volume: float
    length: float
    push: float
    cortex: float
    core_level: float
    rim: float
    gaps: float
    enhancing: bool
    spots: float


def draw_properties(rng: np.random.Generator, seed: int, case: int) -> TumourProperties:
    """Draw one tumour.

    A golden-ratio sequence over the case number, not a coin, decides which cases enhance poorly, so that their share is
    right in every small training set.
    """
    offset = np.random.default_rng([seed, 0xE7]).random()
    poor = (offset + case * _GOLDEN) % 1.0 < POOR_FRACTION
    volume = float(np.exp(rng.uniform(*np.log(VOLUME_RANGE))))
    radius = sphere_radius(volume)
    return TumourProperties(
        volume=volume,
        length=float(np.exp(rng.uniform(*np.log(_LENGTH_RANGE)))),
        push=min(radius * rng.uniform(*_PUSH_RANGE), _PUSH_LIMIT),
        cortex=rng.uniform(0.2, 0.9),
        core_level=rng.uniform(0.45, 0.6),
        rim=rng.uniform(4, 9),
        gaps=rng.uniform(0.03, 0.3),
        enhancing=not poor,
        spots=max(0.0, rng.uniform(-0.06, 0.06)),
    )


def sphere_radius(volume: float) -> float:
    """Radius (mm) of a sphere of some ml."""
    return float((3000 * volume / (4 * np.pi)) ** (1 / 3))
