"""Interpolation of labels as in nnU-Net: the class with the largest indicator or, in a tie, the nearest voxel's.

Source: batchgeneratorsv2, `SpatialTransform._apply_to_segmentation`.
"""

import itertools

import numpy as np
from jaxtyping import Float32, Int32, Int64, Integer, UInt8

from data_pipeline.conventions import CLASSES, OUTSIDE_BRAIN

Cells = Int32[np.ndarray, "3 n"]
"""Lowest corners of cells of eight voxels."""
Offsets = Float32[np.ndarray, "3 n"]
"""Positions within cells, 0 to 1."""

SCORE_SCALE = 1000
"""Scores are multiplied by this and compared in float16, which makes ties of near ties, as in nnU-Net."""

MIXED = 254
"""Marks a cell whose corners have different labels."""

AROUND = 2
"""Voxels of OUTSIDE_BRAIN around the labels: positions farther out are clipped to this rim."""

CORNERS = np.array(list(itertools.product((0, 1), repeat=3)), np.int32).T
"""Corners of a cell, [3, 8]."""

_ORDER = (OUTSIDE_BRAIN, *range(len(CLASSES)))
"""Labels in the order that decides ties: nnU-Net takes the lowest, and its label outside the brain is -1."""

_AT_ONCE = 8192
"""Voxels in one pass: their scores fit the processor's cache."""


def label_cells(
    label: UInt8[np.ndarray, "D H W"],
) -> tuple[UInt8[np.ndarray, "a b c"], UInt8[np.ndarray, "a-1 b-1 c-1"]]:
    """The labels with a rim of OUTSIDE_BRAIN, AROUND voxels wide, and the label of each cell of eight voxels.

    A cell is indexed by its lowest corner, and MIXED if its eight corners differ. Few cells are, so that most voxels of
    a patch need no interpolation.
    """
    padded = np.pad(label, AROUND, constant_values=OUTSIDE_BRAIN)
    smallest = largest = padded
    for axis in range(3):
        first, second = (slice(None),) * axis + (slice(-1),), (slice(None),) * axis + (slice(1, None),)
        smallest = np.minimum(smallest[first], smallest[second])
        largest = np.maximum(largest[first], largest[second])
    np.copyto(largest, MIXED, where=smallest != largest)
    return padded, largest


def dominant_labels(padded: UInt8[np.ndarray, "a b c"], cells: Cells, offsets: Offsets) -> UInt8[np.ndarray, "n"]:
    """The label with the largest interpolated indicator; a tie goes to the nearest corner's, or the first of _ORDER."""
    dominant = np.empty(cells.shape[1], np.uint8)
    for start in range(0, dominant.size, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        dominant[part] = _dominant(padded, cells[:, part], offsets[:, part])
    return dominant


def _dominant(padded: UInt8[np.ndarray, "a b c"], cells: Cells, offsets: Offsets) -> UInt8[np.ndarray, "n"]:
    index = flat_index(cells, padded.shape) + flat_index(CORNERS, padded.shape)[:, None]
    corners = padded.reshape(-1).take(index, mode="clip")
    weights = corner_weights(offsets) * np.float32(SCORE_SCALE)
    nearest = np.take_along_axis(corners, weights.argmax(axis=0)[None], axis=0)[0]
    best, of_nearest = np.full(nearest.shape, -1, np.float32), np.empty(nearest.shape, np.float32)
    dominant = np.empty(nearest.shape, np.uint8)
    for name in _ORDER:
        score = np.einsum("kn,kn->n", weights, (corners == name).astype(np.float32))
        score = score.astype(np.float16).astype(np.float32)
        np.copyto(dominant, name, where=score > best)
        np.copyto(of_nearest, score, where=nearest == name)
        np.maximum(best, score, out=best)
    return np.where(of_nearest == best, nearest, dominant)


def corner_weights(offsets: Offsets) -> Float32[np.ndarray, "8 n"]:
    """Linear weights of a cell's corners, in the order of CORNERS.

    A position outside the cell, as at the border of the box that is read, gives weight only to corners less than a
    voxel away, so that the volume continues as zeros.
    """
    lower, upper = (np.maximum(1 - np.abs(distance), 0) for distance in (offsets, offsets - 1))
    weights = np.empty((8, offsets.shape[1]), np.float32)
    for k, (x, y) in enumerate(itertools.product((lower[0], upper[0]), (lower[1], upper[1]))):
        plane = x * y
        np.multiply(plane, lower[2], out=weights[2 * k])
        np.multiply(plane, upper[2], out=weights[2 * k + 1])
    return weights


def flat_index(index: Integer[np.ndarray, "3 n"], shape: tuple[int, ...]) -> Int64[np.ndarray, "n"]:
    """Positions in the flattened volume; like `np.ravel_multi_index`, but indices may lie outside."""
    flat = index[0].astype(np.int64)
    for axis in (1, 2):
        flat *= shape[axis]
        flat += index[axis]
    return flat
