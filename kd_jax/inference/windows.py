"""Windows over a volume: where nnU-Net's sliding window puts them, what their voxels weigh, boxes that hold several.

Source: `compute_steps_for_sliding_window` and `compute_gaussian` of `nnunetv2/inference/sliding_window_prediction.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

Shape3 = tuple[int, int, int]
Shares = tuple[Mapping[int, Float32[np.ndarray, "_edge"]], ...]
"""Per axis, and there by first voxel of a window: the share its voxels have of what all windows over them weigh."""

STEP = 0.5
"""Largest distance between neighbouring windows, as a fraction of the patch."""
SIGMA = 1 / 8
"""Standard deviation of the blending Gaussian, as a fraction of the patch."""
ROOM = 32
"""Arrays for boxes have multiples of so many voxels along each axis: every shape they have is compiled for."""


@dataclass(frozen=True)
class Box:
    """Part of a volume that holds some of its windows.

    Attributes:
      start: first voxel.
      size: voxels along each axis.
      windows: first voxels, in the volume, of its windows.
    """

    start: Shape3
    size: Shape3
    windows: tuple[Shape3, ...]

    @property
    def place(self) -> tuple[slice, ...]:
        """Where it lies in the volume."""
        return tuple(slice(first, first + size) for first, size in zip(self.start, self.size, strict=True))

    @property
    def room(self) -> Shape3:
        """Shape of an array that it lies at the beginning of."""
        return roomy(self.size)


def window_starts(shape: Sequence[int], patch: Shape3) -> list[Shape3]:
    """First voxels of the windows covering a volume at least as large as the patch.

    Along each axis ceil((size - patch) / (patch * STEP)) + 1 windows, evenly spaced, the first at 0 and the last
    ending at the border.

    Raises:
      ValueError: the volume is smaller than the patch.
    """
    if any(size < edge for size, edge in zip(shape, patch, strict=True)):
        raise ValueError(f"volume {tuple(shape)} is smaller than the patch {patch}")
    d, h, w = (_starts_along(size, edge) for size, edge in zip(shape, patch, strict=True))
    return list(product(d, h, w))


def window_count(shape: Sequence[int], patch: Shape3) -> int:
    """Windows a predictor runs for a volume of this spatial shape, however small."""
    return len(window_starts(padded_shape(shape, patch), patch))


def padded_shape(shape: Sequence[int], patch: Shape3) -> Shape3:
    """Of a volume that is padded where it is smaller than the patch."""
    d, h, w = (max(size, edge) for size, edge in zip(shape, patch, strict=True))
    return d, h, w


def roomy(size: Sequence[int]) -> Shape3:
    """The next shape that arrays for boxes have."""
    d, h, w = (math.ceil(voxels / ROOM) * ROOM for voxels in size)
    return d, h, w


def gaussian_importance(patch: Shape3) -> Float32[np.ndarray, "d h w"]:
    """Weight of each voxel of a window: a Gaussian around its centre, maximum 1, nowhere zero.

    A unit impulse filtered with sigma = patch / 8; what vanishes is raised to the smallest weight that does not, so
    that every voxel can be divided by its sum of weights.
    """
    impulse = np.zeros(patch, np.float64)
    impulse[tuple(edge // 2 for edge in patch)] = 1
    weights = ndimage.gaussian_filter(impulse, [edge * SIGMA for edge in patch], mode="constant")
    weights = (weights / weights.max()).astype(np.float32)
    weights[weights == 0] = weights[weights > 0].min()
    return weights


def window_shares(shape: Shape3, patch: Shape3) -> Shares:
    """What windows over a volume weigh where the Gaussians over every voxel are to sum to 1.

    A Gaussian is the product of one along each axis and windows form a grid, so the sum of Gaussians over a voxel is
    a product too, and so is what a window weighs: of the shares of its three places.
    """
    shares = []
    for size, edge in zip(shape, patch, strict=True):
        weights = gaussian_importance((edge, 1, 1)).ravel().astype(np.float64)
        starts, total = _starts_along(size, edge), np.zeros(size)
        for start in starts:
            total[start : start + edge] += weights
        shares.append({start: (weights / total[start : start + edge]).astype(np.float32) for start in starts})
    return tuple(shares)


def split_into_boxes(shape: Shape3, patch: Shape3, voxels: int) -> list[Box]:
    """The windows over a volume, in as few boxes as can be with room for at most so many voxels, but a patch, in each.

    The whole volume is one box; too large, its windows are taken apart by their place along the first axis, then the
    second, then the third.
    """
    starts = window_starts(shape, patch)
    sizes = [(*patch[:apart], *shape[apart:]) for apart in range(4)]
    apart = next((i for i, size in enumerate(sizes) if math.prod(roomy(size)) <= voxels), 3)
    d, h, w = sizes[apart]
    groups = (tuple(group) for _, group in groupby(starts, key=lambda start: start[:apart]))
    return [Box(group[0], (d, h, w), group) for group in groups]


def _starts_along(size: int, edge: int) -> list[int]:
    room = size - edge
    count = math.ceil(room / (edge * STEP)) + 1
    return [round(i * room / max(count - 1, 1)) for i in range(count)]
