"""Robust Hausdorff distance of two masks.

The plain way is a distance transform of each surface over the whole volume, read at the other surface's voxels. But
surfaces have few voxels, two maps of one tumour have surfaces near each other, and a percentile needs the order of the
distances only up to it. So neighbours are looked up from near to far until enough voxels have met the other surface.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped
from scipy import ndimage
from scipy.spatial import cKDTree

Spacing = tuple[float, float, float]
Box = tuple[slice, slice, slice]

HD95_DEFINITION = (
    "95th percentile (linear interpolation) of the distances in mm from each surface voxel to the other surface, "
    "taken per direction; the larger of the two. Surface: voxels of the mask with a face neighbour outside it."
)

_PERCENTILE = 95
_NEIGHBOURS = 250
"""Neighbours of a voxel that are looked up one by one; at 1 mm, those within 3.9 mm."""
_FURTHEST = 8
"""Most steps along any axis to such a neighbour, however flat the voxels."""
_SEARCH, _CANDIDATE = 5.0, 0.4
"""Cost of a search in a k-d tree, and of each point it visits, in voxels of a distance transform (0.15 µs on one core).
Rough values suffice to choose between ways whose costs mostly differ many times over."""
_LEAF, _SAMPLE = 4.0, 8
"""A search visits points up to `_LEAF` voxels farther than the nearest, the size of the tree's leaves on a surface.
`_SAMPLE` searches are tried to estimate their number."""


class _Shell(NamedTuple):
    """All voxels at one distance from a voxel."""

    distance: float
    offsets: Int64[np.ndarray, "n 3"]


class _Surface(NamedTuple):
    """A surface with air around it, so that neighbours can be looked up: as volume, and its voxels' flat indices."""

    volume: Bool[np.ndarray, "d h w"]
    voxels: Int64[np.ndarray, "n"]

    def coordinates(self, voxels: Int64[np.ndarray, "m"]) -> Int64[np.ndarray, "m 3"]:
        return np.stack(np.unravel_index(voxels, self.volume.shape), axis=1)

    def millimetres(self, voxels: Int64[np.ndarray, "m"], spacing: Spacing) -> Float64[np.ndarray, "m 3"]:
        return self.coordinates(voxels) * np.array(spacing)


def hd95(prediction: Bool[np.ndarray, "d h w"], reference: Bool[np.ndarray, "d h w"], spacing: Spacing) -> float:
    """Robust Hausdorff distance in mm, `HD95_DEFINITION`; NaN if either mask is empty.

    `medpy.metric.hd95` is another quantity: it pools the distances of both directions before taking the
    percentile, so that an error seen from one side only weighs half as much.

    Args:
      prediction: a mask.
      reference: a mask on the same grid.
      spacing: voxel size in mm along each axis.
    """
    if not (prediction.any() and reference.any()):
        return math.nan
    # Distances beyond the box are never looked up, and outside it both masks are empty: cropping changes nothing.
    box = bounding_box(prediction | reference)
    shells = _shells(spacing)
    air = np.max([np.abs(shell.offsets).max(axis=0) for shell in shells], axis=0).clip(1).tolist()
    surfaces = _surface(prediction[box], air), _surface(reference[box], air)
    return max(_directed(*surfaces, spacing, shells), _directed(*surfaces[::-1], spacing, shells))


def bounding_box(values: Shaped[np.ndarray, "d h w"]) -> Box:
    """The smallest box that holds everything but zeros; an empty box if there are only zeros."""
    seen_along_x: Bool[np.ndarray, "h w"] = np.any(values, axis=0)  # quickest along this axis: memory is read in order
    y, z = _extent(np.any(seen_along_x, axis=1)), _extent(np.any(seen_along_x, axis=0))
    return _extent(np.any(values[:, y, z], axis=(1, 2))), y, z


def _extent(seen: Bool[np.ndarray, "n"]) -> slice:
    hit = np.flatnonzero(seen)
    return slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0)


@lru_cache(maxsize=16)
def _shells(spacing: Spacing) -> tuple[_Shell, ...]:
    """The nearest `_NEIGHBOURS` voxels or so by distance, itself first; no shell is cut."""
    radius = (3 * _NEIGHBOURS / (4 * math.pi) * math.prod(spacing)) ** (1 / 3)
    radius = min(radius, _FURTHEST * min(spacing))
    steps = [np.arange(-int(radius / s), int(radius / s) + 1) for s in spacing]
    offsets = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    distances = _length(offsets, spacing)
    return tuple(_Shell(float(d), offsets[distances == d]) for d in np.unique(distances[distances <= radius]))


def _length(offsets: Int64[np.ndarray, "n 3"], spacing: Spacing) -> Float64[np.ndarray, "n"]:
    """In mm; in the order of operations of SciPy's distance transform, so that the last bit agrees."""
    return np.sqrt(((offsets * np.array(spacing)) ** 2).T.sum(axis=0))


def _surface(mask: Bool[np.ndarray, "d h w"], air: list[int]) -> _Surface:
    """Voxels with a face neighbour outside the mask; beyond the array counts as outside."""
    volume = np.pad(np.ascontiguousarray(mask), [(n, n) for n in air])
    here = tuple(slice(n, n + size) for n, size in zip(air, mask.shape, strict=True))
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
    # So many of the largest distances do not matter: the percentile lies between two others (NumPy may by rounding
    # also look at the next above).
    beyond = max(count - 2 - (count - 1) * _PERCENTILE // 100, 0)
    left = np.arange(count)
    occupied, strides = target.volume.ravel(), np.array(target.volume.strides)  # in voxels, which have one byte
    for shell in shells:
        voxels = source.voxels[left]
        met = np.zeros(left.size, bool)
        for step in (shell.offsets @ strides).tolist():
            met |= occupied.take(voxels + step)
        distances[left[met]] = shell.distance
        left = left[~met]
        if left.size <= beyond:
            break
    else:
        distances[left] = _far(source, source.voxels[left], target, spacing)
    return float(np.percentile(distances, _PERCENTILE))


def _far(
    source: _Surface, voxels: Int64[np.ndarray, "n"], target: _Surface, spacing: Spacing
) -> Float64[np.ndarray, "n"]:
    """Distances in mm from some voxels of the source to the nearest target voxel, wherever it is."""
    starts, ends = source.millimetres(voxels, spacing), target.millimetres(target.voxels, spacing)
    if voxels.size * _search_cost(starts, ends, spacing) > target.volume.size:
        return ndimage.distance_transform_edt(~target.volume, sampling=spacing).ravel()[voxels]
    # A plainer tree is quicker to build, and surfaces fill it evenly.
    _, nearest = cKDTree(ends, balanced_tree=False, compact_nodes=False).query(starts)
    return _length(source.coordinates(voxels) - target.coordinates(target.voxels[nearest]), spacing)


def _search_cost(starts: Float64[np.ndarray, "n 3"], ends: Float64[np.ndarray, "m 3"], spacing: Spacing) -> float:
    """Of a search of the end nearest to a start, in voxels of a distance transform.

    It is small where the surfaces are near each other, and large where much of a surface is about equally far, as the
    brain's is from a tumour in its middle.
    """
    leaf = _LEAF * math.prod(spacing) ** (1 / 3)
    points = 0
    for start in starts[:: -(-len(starts) // _SAMPLE)]:
        squares = ((ends - start) ** 2).sum(axis=1)
        points += int(np.count_nonzero(squares <= (math.sqrt(squares.min()) + leaf) ** 2))
    return _SEARCH + _CANDIDATE * points / _SAMPLE
