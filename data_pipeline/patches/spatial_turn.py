"""A patch at any angle to the volume: each of its voxels is interpolated between eight voxels of the volume.

Several times as fast as PyTorch's `grid_sample` on one core: all channels share positions and weights, one gather
fetches all channels of a voxel from the memory map, one slice of the patch at a time stays in the cache, and air, where
the image is 0, is skipped.
"""

import numpy as np
from jaxtyping import Float32, Float64, Int32, Integer, UInt8

from data_pipeline.conventions import OUTSIDE_BRAIN, Shape3
from data_pipeline.patches.spatial_labels import (
    AROUND,
    CORNERS,
    MIXED,
    Cells,
    Offsets,
    corner_weights,
    dominant_labels,
    flat_index,
    label_cells,
)


def turn(
    images: Float32[np.ndarray, "D H W channels"],
    label: UInt8[np.ndarray, "D H W"],
    matrix: Float64[np.ndarray, "3 3"],
    origin: Float64[np.ndarray, "3"],
    patch: Shape3,
    low: Integer[np.ndarray, "3"],
    high: Integer[np.ndarray, "3"],
) -> tuple[Float32[np.ndarray, "d h w channels"], UInt8[np.ndarray, "d h w"]]:
    """Reads the voxels `low` to `high` (exclusive) of a volume at `origin + matrix @ index`; see `spatial.cut_turned`.

    Returns:
      The image with each channel contiguous in memory, and the label.
    """
    channels, low, high = images.shape[3], low.astype(np.int32)[:, None], high.astype(np.int32)[:, None]
    voxels = np.ascontiguousarray(images).reshape(-1, channels)
    padded, cells = label_cells(np.asarray(label)[tuple(map(slice, low[:, 0], high[:, 0]))])
    rows, columns = (index.ravel() for index in np.indices(patch[1:]))
    # [3, h*w] positions of the slice at depth 0; each further depth adds the matrix's first column.
    plane = (matrix[:, 1:2] * rows + matrix[:, 2:3] * columns + origin[:, None]).astype(np.float32)

    out_image = np.zeros((channels, patch[0], rows.size), np.float32)
    out_label = np.empty((patch[0], rows.size), np.uint8)
    mixed: list[tuple[Cells, Offsets]] = []
    for depth in range(patch[0]):
        position = plane + (matrix[:, :1] * depth).astype(np.float32)
        below = np.floor(position)
        lower = below.astype(np.int32)
        cell = np.clip(lower, low - AROUND, high) - (low - AROUND)
        found = cells.reshape(-1).take(flat_index(cell, cells.shape), out=out_label[depth], mode="clip")
        brain = np.flatnonzero(found != OUTSIDE_BRAIN)
        inside = np.clip(lower.take(brain, axis=1), low, high - 2)
        offset = position.take(brain, axis=1) - inside.astype(np.float32)
        for c, values in enumerate(_interpolate(voxels, label.shape, inside, offset)):
            out_image[c, depth][brain] = values
        several = np.flatnonzero(found == MIXED)
        mixed.append((cell.take(several, axis=1), (position - below).take(several, axis=1)))
    cell, offset = (np.concatenate(parts, axis=1) for parts in zip(*mixed, strict=True))
    out_label[out_label == MIXED] = dominant_labels(padded, cell, offset)
    return np.moveaxis(out_image.reshape(channels, *patch), 0, -1), out_label.reshape(patch)


def _interpolate(
    voxels: Float32[np.ndarray, "N channels"], shape: tuple[int, ...], lower: Int32[np.ndarray, "3 n"], offset: Offsets
) -> list[Float32[np.ndarray, "n"]]:
    """Each channel of a flattened volume, interpolated linearly in the cells whose lowest corners are `lower`."""
    corners = voxels.take(flat_index(lower, shape) + flat_index(CORNERS, shape)[:, None], axis=0, mode="clip")
    weights = corner_weights(offset)
    return [np.einsum("kn,kn->n", corners[..., c], weights) for c in range(voxels.shape[1])]
