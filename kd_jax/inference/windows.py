"""Windows over a volume: where nnU-Net's sliding window puts them, how their voxels are weighted, and chunks of them.

Source: `compute_steps_for_sliding_window` and `compute_gaussian` of `nnunetv2/inference/sliding_window_prediction.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

from data_pipeline.conventions import Shape3, Slices3

Shares = tuple[Mapping[int, Float32[np.ndarray, "_edge"]], ...]
"""For each axis, by first voxel of a window: the weights of its voxels as shares of all windows' weights there."""

STEP = 0.5
"""Largest distance between neighbouring windows, as a fraction of the patch."""
SIGMA = 1 / 8
"""Standard deviation of the blending Gaussian, as a fraction of the patch."""
ROOM = 32
"""Arrays for chunks are rounded up to multiples of this along each axis, because every new shape is compiled for."""


@dataclass(frozen=True)
class Chunk:
    """A part of a volume and the windows inside it, small enough for the device.

    Attributes:
      start: first voxel.
      size: voxels along each axis.
      windows: first voxels of the windows, in coordinates of the volume.
    """

    start: Shape3
    size: Shape3
    windows: tuple[Shape3, ...]

    @property
    def place(self) -> Slices3:
        """The chunk as a box of the volume."""
        d, h, w = (slice(first, first + size) for first, size in zip(self.start, self.size, strict=True))
        return d, h, w

    @property
    def room(self) -> Shape3:
        """Shape of the array that stores the chunk, at its beginning."""
        return roomy(self.size)


def window_starts(shape: Sequence[int], patch: Shape3) -> list[Shape3]:
    """First voxels of the windows that cover a volume at least as large as the patch.

    Along each axis there are ceil((size - patch) / (patch * STEP)) + 1 windows, evenly spaced, the first at 0 and the
    last ending at the border.

    Raises:
      ValueError: the volume is smaller than the patch.
    """
    if any(size < edge for size, edge in zip(shape, patch, strict=True)):
        raise ValueError(f"volume {tuple(shape)} is smaller than the patch {patch}")
    d, h, w = (_starts_along(size, edge) for size, edge in zip(shape, patch, strict=True))
    return list(product(d, h, w))


def window_count(shape: Sequence[int], patch: Shape3) -> int:
    """Number of windows that a predictor runs for a volume of this spatial shape, however small it is."""
    return len(window_starts(padded_shape(shape, patch), patch))


def padded_shape(shape: Sequence[int], patch: Shape3) -> Shape3:
    """Shape of a volume after padding along the axes where it is smaller than the patch."""
    d, h, w = (max(size, edge) for size, edge in zip(shape, patch, strict=True))
    return d, h, w


def roomy(size: Sequence[int]) -> Shape3:
    """The smallest shape for arrays of chunks that holds `size` voxels."""
    d, h, w = (math.ceil(voxels / ROOM) * ROOM for voxels in size)
    return d, h, w


def gaussian_importance(patch: Shape3) -> Float32[np.ndarray, "d h w"]:
    """Weight of each voxel of a window: a Gaussian around its centre, maximum 1, nowhere zero.

    It is a unit impulse filtered with sigma = patch / 8. Weights that vanish are raised to the smallest one that does
    not, so that every voxel can be divided by the sum of its weights.
    """
    impulse = np.zeros(patch, np.float64)
    impulse[tuple(edge // 2 for edge in patch)] = 1
    weights = ndimage.gaussian_filter(impulse, [edge * SIGMA for edge in patch], mode="constant")
    weights = (weights / weights.max()).astype(np.float32)
    weights[weights == 0] = weights[weights > 0].min()
    return weights


def window_shares(shape: Shape3, patch: Shape3) -> Shares:
    """Weights of the windows over a volume, scaled so that the weights at every voxel sum to 1.

    A Gaussian is the product of a Gaussian along each axis, and the windows form a grid. So the sum of all Gaussians at
    a voxel is a product, too, and the scaled weight of a window is the product of three shares, one for each axis. That
    is why no volume of weights is needed.
    """
    shares = []
    for size, edge in zip(shape, patch, strict=True):
        weights = gaussian_importance((edge, 1, 1)).ravel().astype(np.float64)
        starts, total = _starts_along(size, edge), np.zeros(size)
        for start in starts:
            total[start : start + edge] += weights
        shares.append({start: (weights / total[start : start + edge]).astype(np.float32) for start in starts})
    return tuple(shares)


def split_into_chunks(shape: Shape3, patch: Shape3, voxels: int) -> list[Chunk]:
    """The windows over a volume in as few chunks as possible, each with room for at most `voxels`, or a patch.

    The whole volume is one chunk. If that is too large, the windows are divided by their place along the first axis,
    then also along the second, then along the third.
    """
    starts = window_starts(shape, patch)
    sizes = [(*patch[:divided], *shape[divided:]) for divided in range(4)]
    divided = next((i for i, size in enumerate(sizes) if math.prod(roomy(size)) <= voxels), 3)
    d, h, w = sizes[divided]
    groups = (tuple(group) for _, group in groupby(starts, key=lambda start: start[:divided]))
    return [Chunk(group[0], (d, h, w), group) for group in groups]


def _starts_along(size: int, edge: int) -> list[int]:
    room = size - edge
    count = math.ceil(room / (edge * STEP)) + 1
    return [round(i * room / max(count - 1, 1)) for i in range(count)]
