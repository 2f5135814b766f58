"""Robust Hausdorff distance of two masks.

The plain way computes a distance transform of each surface over the whole volume and reads it at the voxels of the
other. But a surface has few voxels, the surfaces of two maps of one tumour are close to each other almost everywhere,
and the 95th percentile does not depend on how far the farthest 5 % are. So this module looks up the neighbours of each
voxel from near to far, until enough voxels have met the other surface.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from data_pipeline.conventions import Slices3, Spacing

HD95_DEFINITION = (
    "95th percentile (linear interpolation) of the distances in mm from each surface voxel to the other surface, "
    "taken per direction; the larger of the two. Surface: voxels of the mask with a face neighbour outside it."
)

_PERCENTILE = 95
_NEIGHBOURS = 250
"""Neighbours of a voxel that are looked up one by one; at 1 mm, those within 3.9 mm."""
_FURTHEST = 8
"""Largest distance of such a neighbour in steps along any axis, however flat the voxels are."""
_SEARCH, _CANDIDATE = 5.0, 0.4
"""Cost of a search in a k-d tree, and of each point that it looks at, in voxels of a distance transform (0.15 µs each
on one core). Rough numbers suffice: the two ways they choose between mostly differ many times over."""
_LEAF, _SAMPLE = 4.0, 8
"""A search looks at all points at most `_LEAF` voxels farther than the nearest, about a leaf of the tree on a surface.
`_SAMPLE` searches are simulated to estimate how many points those are."""


class _Shell(NamedTuple):
    """All voxels at one distance from a voxel."""

    distance: float
    offsets: Int64[np.ndarray, "n 3"]


class _Surface(NamedTuple):
    """A surface with a margin of empty voxels, so that a neighbour's index never leaves the array.

    Attributes:
      volume: the surface as a mask.
      voxels: flat indices of its voxels in `volume`.
    """

    volume: Bool[np.ndarray, "d h w"]
    voxels: Int64[np.ndarray, "n"]

    def coordinates(self, voxels: Int64[np.ndarray, "m"]) -> Int64[np.ndarray, "m 3"]:
        return np.stack(np.unravel_index(voxels, self.volume.shape), axis=1)

    def millimetres(self, voxels: Int64[np.ndarray, "m"], spacing: Spacing) -> Float64[np.ndarray, "m 3"]:
        return self.coordinates(voxels) * np.array(spacing)


def hd95(prediction: Bool[np.ndarray, "d h w"], reference: Bool[np.ndarray, "d h w"], spacing: Spacing) -> float:
    """Robust Hausdorff distance in mm by `HD95_DEFINITION`; NaN if either mask is empty.

    `medpy.metric.hd95` computes something else: it pools the distances of both directions before it takes the
    percentile, so an error that only one direction sees weighs half as much.

    Args:
      prediction: a mask.
      reference: a mask on the same grid.
      spacing: voxel size in mm along each axis.

    Examples:
      >>> import kd_jax, numpy as np
      >>> mask = np.zeros((32, 32, 32), bool)
      >>> mask[8:16, 8:16, 8:16] = True
      >>> kd_jax.hd95(mask, np.roll(mask, 3, axis=0), (2.0, 1.0, 1.0))
      6.0
    """
    if not (prediction.any() and reference.any()):
        return math.nan
    # Outside the box both masks are empty, so no distance starts or ends there: the crop changes nothing.
    box = bounding_box(prediction | reference)
    shells = _shells(spacing)
    margin = np.max([np.abs(shell.offsets).max(axis=0) for shell in shells], axis=0).clip(1).tolist()
    surfaces = _surface(prediction[box], margin), _surface(reference[box], margin)
    return max(_directed(*surfaces, spacing, shells), _directed(*surfaces[::-1], spacing, shells))


def bounding_box(values: Shaped[np.ndarray, "d h w"]) -> Slices3:
    """The smallest box that contains every value but 0; an empty box where all values are 0."""
    # A reduction along the first axis reads memory in order, so it goes first and shrinks the work of the others.
    seen_along_x: Bool[np.ndarray, "h w"] = np.any(values, axis=0)
    y, z = _extent(np.any(seen_along_x, axis=1)), _extent(np.any(seen_along_x, axis=0))
    return _extent(np.any(values[:, y, z], axis=(1, 2))), y, z


def _extent(seen: Bool[np.ndarray, "n"]) -> slice:
    hit = np.flatnonzero(seen)
    return slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0)


@lru_cache(maxsize=16)
def _shells(spacing: Spacing) -> tuple[_Shell, ...]:
    """The nearest voxels by distance, the voxel itself first: about `_NEIGHBOURS`, because no shell is cut."""
    radius = (3 * _NEIGHBOURS / (4 * math.pi) * math.prod(spacing)) ** (1 / 3)
    radius = min(radius, _FURTHEST * min(spacing))
    steps = [np.arange(-int(radius / s), int(radius / s) + 1) for s in spacing]
    offsets = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    distances = _length(offsets, spacing)
    return tuple(_Shell(float(d), offsets[distances == d]) for d in np.unique(distances[distances <= radius]))


def _length(offsets: Int64[np.ndarray, "n 3"], spacing: Spacing) -> Float64[np.ndarray, "n"]:
    """Lengths in mm, in the order of operations of SciPy's distance transform, so that both agree to the last bit."""
    return np.sqrt(((offsets * np.array(spacing)) ** 2).T.sum(axis=0))


def _surface(mask: Bool[np.ndarray, "d h w"], margin: list[int]) -> _Surface:
    """The voxels with a face neighbour outside the mask; everything beyond the array is outside."""
    volume = np.pad(np.ascontiguousarray(mask), [(n, n) for n in margin])
    here = tuple(slice(n, n + size) for n, size in zip(margin, mask.shape, strict=True))
    interior = mask.copy()
    for axis in range(3):
        for step in (-1, 1):
            neighbours = slice(here[axis].start + step, here[axis].stop + step)
            interior &= volume[*here[:axis], neighbours, *here[axis + 1 :]]
    volume[here] &= ~interior
    return _Surface(volume, np.flatnonzero(volume))


def _directed(source: _Surface, target: _Surface, spacing: Spacing, shells: tuple[_Shell, ...]) -> float:
    """95th percentile of the distances in mm from the source voxels to the nearest target voxel."""
    count = source.voxels.size
    distances = np.full(count, math.inf)
    # The percentile lies between two neighbouring distances, and those above do not matter. Both are kept even if it
    # falls on the lower one, because NumPy's rounding may look at the upper.
    unneeded = max(count - 2 - (count - 1) * _PERCENTILE // 100, 0)
    left = np.arange(count)
    # Strides are in bytes, and a voxel of a mask has one byte.
    occupied, strides = target.volume.ravel(), np.array(target.volume.strides)
    for shell in shells:
        voxels = source.voxels[left]
        met = np.zeros(left.size, bool)
        for step in (shell.offsets @ strides).tolist():
            met |= occupied.take(voxels + step)
        distances[left[met]] = shell.distance
        left = left[~met]
        if left.size <= unneeded:
            break
    else:
        distances[left] = _far(source, source.voxels[left], target, spacing)
    return float(np.percentile(distances, _PERCENTILE))


def _far(
    source: _Surface, voxels: Int64[np.ndarray, "n"], target: _Surface, spacing: Spacing
) -> Float64[np.ndarray, "n"]:
    """Distances in mm from some voxels of the source to the nearest target voxel, however far away it is."""
    # Imported here because the commands that name metrics in their help take no distances.
    from scipy import ndimage
    from scipy.spatial import cKDTree

    starts, ends = source.millimetres(voxels, spacing), target.millimetres(target.voxels, spacing)
    if voxels.size * _search_cost(starts, ends, spacing) > target.volume.size:
        return ndimage.distance_transform_edt(~target.volume, sampling=spacing).ravel()[voxels]
    # An unbalanced tree is quicker to build, and the points of a surface fill it evenly anyway.
    _, nearest = cKDTree(ends, balanced_tree=False, compact_nodes=False).query(starts)
    return _length(source.coordinates(voxels) - target.coordinates(target.voxels[nearest]), spacing)


def _search_cost(starts: Float64[np.ndarray, "n 3"], ends: Float64[np.ndarray, "m 3"], spacing: Spacing) -> float:
    """Cost of searching the end nearest to a start, in voxels of a distance transform.

    It is small if the surfaces are close to each other, and large if much of a surface is about equally far away, as
    the surface of the brain is from a tumour in its middle.
    """
    leaf = _LEAF * math.prod(spacing) ** (1 / 3)
    points = 0
    for start in starts[:: -(-len(starts) // _SAMPLE)]:
        squares = ((ends - start) ** 2).sum(axis=1)
        points += int(np.count_nonzero(squares <= (math.sqrt(squares.min()) + leaf) ** 2))
    return _SEARCH + _CANDIDATE * points / _SAMPLE
