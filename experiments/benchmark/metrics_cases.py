"""Pairs of label maps to score: an irregular tumour, and a prediction as a network would make it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from scipy import ndimage

from data_pipeline.conventions import CLASSES, Shape3

_NCR, _ED, _ET = (CLASSES.index(name) for name in ("NCR", "ED", "ET"))
_CORE, _NECROSIS = 0.75, 0.55
"""Radii of the tumour core and of the necrosis inside its enhancing rim, in radii of the whole tumour."""
_ROUGHNESS, _DISAGREEMENT = 0.15, 0.05
"""Standard deviations of the radius over the surface, and of the prediction's about it, in radii."""
_BOX = 3.2
"""Side of the cube a tumour is made in, in radii: three standard deviations of the roughness fit."""
_ISLANDS, _ISLAND_RADIUS = 4, 3


class Pair(NamedTuple):
    """Two maps of internal classes on one grid of 1 mm."""

    prediction: UInt8[np.ndarray, "d h w"]
    reference: UInt8[np.ndarray, "d h w"]


def make_pair(shape: Shape3, volume_ml: float, seed: int, shift: int = 0) -> Pair:
    """A tumour with oedema, enhancing rim and necrosis, and a prediction with errors at its borders.

    Borders are level sets of the distance from a centre plus smooth noise; the prediction has noise of its own on
    top, and a few islands of false enhancing tumour elsewhere in the head, as networks make.

    Args:
      shape: voxels of 1 mm.
      volume_ml: of the whole tumour, roughly.
      seed: of all noise.
      shift: voxels by which the prediction is moved along the first axis.
    """
    rng = np.random.default_rng(seed)
    radius = (3 * volume_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    side = min(round(_BOX * radius), *shape)
    distance = _distance_from_centre(side) / radius + _ROUGHNESS * _smooth_noise(side, radius / 4, rng)
    low = [int(rng.uniform(0.3, 0.7) * (n - side)) for n in shape]
    reference, prediction = np.zeros((2, *shape), np.uint8)
    box = tuple(slice(a, a + side) for a in low)
    reference[box] = _nested(distance, rng)
    prediction[box] = _nested(distance + _DISAGREEMENT * _smooth_noise(side, radius / 8, rng), rng)
    prediction = np.roll(prediction, shift, axis=0)
    for _ in range(_ISLANDS):
        _add_island(prediction, rng)
    return Pair(prediction, reference)


def _distance_from_centre(side: int) -> Float32[np.ndarray, "s s s"]:
    x = np.arange(side, dtype=np.float32) - (side - 1) / 2
    return np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)


def _smooth_noise(side: int, scale: float, rng: np.random.Generator) -> Float32[np.ndarray, "s s s"]:
    """Mean 0, standard deviation 1, correlated over about `scale` voxels."""
    coarse = rng.standard_normal((int(side / scale) + 4,) * 3, np.float32)
    field = ndimage.zoom(coarse, side / (coarse.shape[0] - 3))[:side, :side, :side]
    return (field - field.mean()) / field.std()


def _nested(distance: Float32[np.ndarray, "s s s"], rng: np.random.Generator) -> UInt8[np.ndarray, "s s s"]:
    """Oedema around an enhancing rim around necrosis; the inner borders are a little elsewhere each time."""
    necrosis, core = rng.normal((_NECROSIS, _CORE), 0.01)
    return np.select([distance < necrosis, distance < core, distance < 1], [_NCR, _ET, _ED], 0).astype(np.uint8)


def _add_island(prediction: UInt8[np.ndarray, "d h w"], rng: np.random.Generator) -> None:
    """A ball of false enhancing tumour, where there is none yet."""
    size = 2 * _ISLAND_RADIUS + 1
    ball = _distance_from_centre(size) <= _ISLAND_RADIUS
    low = [int(rng.uniform(0.15, 0.85) * (n - size)) for n in prediction.shape]
    place = prediction[tuple(slice(a, a + size) for a in low)]
    place[ball & (place == 0)] = _ET
