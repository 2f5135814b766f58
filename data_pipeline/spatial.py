"""Rotation, zoom and mirroring. Rotation and zoom are one affine resampling, from the volume straight to the patch."""

import itertools

import numpy as np
from jaxtyping import Float32, Float64, Int64, Integer, UInt8

from data_pipeline.conventions import OUTSIDE_BRAIN
from data_pipeline.sampling import Triple, read_box

Matrix = Float64[np.ndarray, "3 3"]


def rotation_zoom(degrees: tuple[float, float, float], zoom: float) -> Matrix:
    """Matrix from patch to volume coordinates, both seen from the patch centre: Rz · Ry · Rx · zoom.

    Args:
      degrees: angles about the axes D, H and W, in voxels (volumes are resampled to one spacing before).
      zoom: step in the volume per voxel of the patch, so above 1 makes things smaller.
    """
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_d = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_h = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_w = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return zoom * (about_w @ about_h @ about_d)


def patch_origin(matrix: Matrix, start: Triple, patch: Triple) -> Float64[np.ndarray, "3"]:
    """Where in the volume the first voxel of the patch comes to lie when it turns about its centre."""
    half = (np.array(patch) - 1) / 2
    return np.array(start) + half - matrix @ half


def resample(
    images: Float32[np.ndarray, "D H W channels"],
    label: UInt8[np.ndarray, "D H W"],
    matrix: Matrix,
    origin: Float64[np.ndarray, "3"],
    patch: Triple,
) -> tuple[Float32[np.ndarray, "d h w channels"], UInt8[np.ndarray, "d h w"]]:
    """Reads the volume at `origin + matrix @ index`: the image by linear, the label by nearest interpolation.

    nnU-Net, too, interpolates training patches linearly (`grid_sample`, bilinear). Equal to
    `scipy.ndimage.affine_transform(order=1, mode="grid-constant")` per channel and several times as fast: positions
    and weights serve all channels, one gather fetches all channels of a voxel straight from the memory map, and one
    slice of the patch at a time stays in the cache.

    Args:
      images, label: the whole volume, at least 2 voxels along each axis; beyond it the image is 0 and the label
        OUTSIDE_BRAIN.
      matrix: patch index to volume position.
      origin: volume position of the patch's first voxel.
      patch: size of the result.

    Returns:
      The image with each channel contiguous in memory, and the label.
    """
    channels = images.shape[3]
    voxels = np.ascontiguousarray(images).reshape(-1, channels)
    classes = np.ascontiguousarray(label).reshape(-1)
    extent = np.array(label.shape, np.int32)[:, None]
    rows, columns = (index.ravel() for index in np.indices(patch[1:]))
    # [3, h*w] positions of the slice at depth 0; every further depth adds the matrix's first column.
    plane = (matrix[:, 1:2] * rows + matrix[:, 2:3] * columns + origin[:, None]).astype(np.float32)

    out_image = np.empty((channels, patch[0], rows.size), np.float32)
    out_label = np.empty((patch[0], rows.size), np.uint8)
    neighbours = np.empty((8, rows.size, channels), np.float32)
    corners = _flat_index(np.array(list(itertools.product((0, 1), repeat=3))).T, label.shape)
    for depth in range(patch[0]):
        position = plane + (matrix[:, :1] * depth).astype(np.float32)
        lower = np.clip(np.floor(position).astype(np.int32), 0, extent - 2)
        np.take(voxels, _flat_index(lower, label.shape) + corners[:, None], axis=0, out=neighbours, mode="clip")
        np.einsum(
            "knc,kn->cn", neighbours, _corner_weights(position - lower.astype(np.float32)), out=out_image[:, depth]
        )
        nearest = np.floor(position + np.float32(0.5)).astype(np.int32)
        beyond = ((nearest < 0) | (nearest >= extent)).any(axis=0)
        np.take(classes, _flat_index(nearest, label.shape), out=out_label[depth], mode="clip")
        out_label[depth, beyond] = OUTSIDE_BRAIN
    return np.moveaxis(out_image.reshape(channels, *patch), 0, -1), out_label.reshape(patch)


def _flat_index(index: Integer[np.ndarray, "3 n"], shape: tuple[int, ...]) -> Int64[np.ndarray, "n"]:
    """Positions in the flattened volume; like `np.ravel_multi_index`, but it lets what lies outside pass."""
    d, h, w = index.astype(np.int64)
    return (d * shape[1] + h) * shape[2] + w


def _corner_weights(offset: Float32[np.ndarray, "3 n"]) -> Float32[np.ndarray, "8 n"]:
    """Linear weights of a cell's corners, in the order of `itertools.product((0, 1), repeat=3)`.

    A position outside the cell, which happens only at the volume's border, weighs the corner within one voxel of it
    and gives 0 to the others: so the volume continues as zeros.
    """
    x, y, z = np.maximum(1 - np.abs(np.stack([offset, offset - 1], axis=1)), 0)  # each [2, n]
    return (x[:, None, None] * y[None, :, None] * z[None, None, :]).reshape(8, -1)


def cut_patch(
    images: Float32[np.ndarray, "D H W channels"],
    label: UInt8[np.ndarray, "D H W"],
    start: Triple,
    patch: Triple,
    matrix: Matrix | None = None,
) -> tuple[Float32[np.ndarray, "d h w channels"], UInt8[np.ndarray, "d h w"]]:
    """Cuts the patch whose first voxel is `start`, turned and zoomed about its centre by `matrix` if there is one.

    Beyond the volume the image is 0 and the label OUTSIDE_BRAIN. The results are fresh arrays that the caller owns;
    each channel of the image is contiguous in memory, which the intensity transforms profit from.
    """
    if matrix is None:
        box = read_box(images, start, patch, 0)
        planar = np.empty((images.shape[3], *patch), np.float32)
        np.copyto(planar, np.moveaxis(box, -1, 0))
        return np.moveaxis(planar, 0, -1), np.array(read_box(label, start, patch, OUTSIDE_BRAIN))
    return resample(images, label, matrix, patch_origin(matrix, start, patch), patch)


def mirror(
    image: Float32[np.ndarray, "d h w channels"],
    label: UInt8[np.ndarray, "d h w"],
    axes: tuple[bool, bool, bool],
) -> tuple[Float32[np.ndarray, "d h w channels"], UInt8[np.ndarray, "d h w"]]:
    """Views of image and label, reversed along the chosen axes."""
    order = tuple(slice(None, None, -1 if reverse else 1) for reverse in axes)
    return image[order], label[order]
