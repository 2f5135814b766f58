"""Rotation, zoom and mirroring. Rotation and zoom are one affine resampling, from the volume straight to the patch.

Source: batchgeneratorsv2, `transforms/spatial/spatial.py` and `mirroring.py`; nnU-Net v2,
`compute_initial_patch_size.py` and `nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size`.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, Integer, UInt8

from data_pipeline.conventions import CLASSES, OUTSIDE_BRAIN
from data_pipeline.sampling import Triple, enlarged_offset, read_box

Matrix = Float64[np.ndarray, "3 3"]
Image = Float32[np.ndarray, "d h w channels"]
Label = UInt8[np.ndarray, "d h w"]
Corners = Int32[np.ndarray, "3 n"]
Offsets = Float32[np.ndarray, "3 n"]

FLAT = 3
"""A patch is flat if its longest axis is more than this many times its shortest (nnU-Net `ANISO_THRESHOLD`)."""

SMALLEST_ZOOM = 0.85
"""What nnU-Net divides the turned patch by; the zoom itself goes from 0.7 to 1.4."""

SCORE_SCALE = 1000
"""Label scores are compared in float16 after multiplication with this, so that near ties become ties."""

_MIXED = 254
"""Marks a cell whose corners have different labels."""

_CELL = np.array(list(itertools.product((0, 1), repeat=3)), np.int32).T
"""Corners of a cell, [3, 8]."""


def flat_axis(patch: Triple) -> int | None:
    """The axis along which a flat patch is thin, the only one it turns about; None if the patch is not flat.

    nnU-Net compares the longest axis with the first, which in its order is the one of coarsest spacing. Here axes keep
    their anatomical order, so the shortest stands for it: plans give the coarsest axis the fewest voxels.
    """
    thin = int(np.argmin(patch))
    return thin if max(patch) > FLAT * patch[thin] else None


def enlarged_patch(patch: Triple, degrees: tuple[float, float]) -> Triple:
    """Size of the box around a patch that rotation and zoom read from (nnU-Net `get_patch_size`).

    Args:
      patch: voxels along each axis.
      degrees: the range angles are drawn from.

    Returns:
      At least the patch; 205 for a side of 128 turned by up to 30 degrees. A flat patch is not enlarged along its thin
      axis.
    """
    thin, angle = flat_axis(patch), min(max(abs(d) for d in degrees), 90.0)
    order = sorted(range(3), key=lambda axis: axis != thin)  # the thin axis first, as nnU-Net has it
    sizes = np.array([patch[axis] for axis in order], float)
    turned = [np.abs(sizes @ rotation_zoom((*row,), (1.0, 1.0, 1.0))) for row in angle * np.eye(3)]
    reach = (np.max([sizes, *turned], axis=0) / SMALLEST_ZOOM).astype(int)
    x, y, z = (patch[axis] if axis == thin else int(reach[order.index(axis)]) for axis in range(3))
    return x, y, z


def rotation_zoom(degrees: Sequence[float], zooms: Sequence[float]) -> Matrix:
    """Matrix from patch to volume coordinates, both seen from the patch centre: Rz · Ry · Rx · diag(zooms).

    Args:
      degrees: angles about the axes D, H and W, in voxels (volumes are resampled to one spacing before).
      zooms: step in the volume per voxel of the patch along each axis, so above 1 makes things smaller.
    """
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_d = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_h = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_w = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_w @ about_h @ about_d * np.array(zooms)


def cut_patch(
    images: Float32[np.ndarray, "D H W channels"], label: UInt8[np.ndarray, "D H W"], start: Triple, patch: Triple
) -> tuple[Image, Label]:
    """Cuts the patch whose first voxel is `start`.

    Beyond the volume the image is 0 and the label OUTSIDE_BRAIN. The results are fresh arrays that the caller owns;
    each channel of the image is contiguous in memory, which the intensity transforms profit from.
    """
    box = read_box(images, start, patch, 0)
    planar = np.empty((images.shape[3], *patch), np.float32)
    np.copyto(planar, np.moveaxis(box, -1, 0))
    return np.moveaxis(planar, 0, -1), np.array(read_box(label, start, patch, OUTSIDE_BRAIN))


def cut_turned(
    images: Float32[np.ndarray, "D H W channels"],
    label: UInt8[np.ndarray, "D H W"],
    start: Triple,
    patch: Triple,
    enlarged: Triple,
    matrix: Matrix,
) -> tuple[Image, Label]:
    """As `cut_patch`, turned and zoomed by `matrix` about the centre of the enlarged patch, and read from it alone.

    The image is interpolated linearly; the label is the one whose indicator, interpolated linearly, is largest, and
    the nearest voxel's where several are. Beyond the enlarged patch, too, the image is 0 and the label OUTSIDE_BRAIN.

    Args:
      images, label: the whole volume, at least 2 voxels along each axis, the image 0 outside the brain.
      start: first voxel of the unturned patch.
      patch: size of the result.
      enlarged: size of the box that may be read, from `enlarged_patch`.
      matrix: from `rotation_zoom`.
    """
    first = np.array(start) - enlarged_offset(patch, enlarged)
    origin = first + (np.array(enlarged) - 1) / 2 - matrix @ ((np.array(patch) - 1) / 2)
    low = np.maximum(first, 0)
    high = np.minimum(first + enlarged, label.shape)
    return resample(images, label, matrix, origin, patch, low, high)


def resample(
    images: Float32[np.ndarray, "D H W channels"],
    label: UInt8[np.ndarray, "D H W"],
    matrix: Matrix,
    origin: Float64[np.ndarray, "3"],
    patch: Triple,
    low: Integer[np.ndarray, "3"],
    high: Integer[np.ndarray, "3"],
) -> tuple[Image, Label]:
    """Reads the voxels `low` to `high` (exclusive) of a volume at `origin + matrix @ index`; see `cut_turned`.

    The image is that of PyTorch's `grid_sample(padding_mode="zeros")`, several times as fast: positions and weights
    serve all channels, one gather fetches all channels of a voxel straight from the memory map, one slice of the patch
    at a time stays in the cache, and air, where the image is 0, is passed over. Scores of labels are needed only in
    cells with more than one label.

    Returns:
      The image with each channel contiguous in memory, and the label.
    """
    channels, low, high = images.shape[3], low.astype(np.int32)[:, None], high.astype(np.int32)[:, None]
    voxels = np.ascontiguousarray(images).reshape(-1, channels)
    padded, cells = _label_cells(label, low[:, 0], high[:, 0])
    rows, columns = (index.ravel() for index in np.indices(patch[1:]))
    # [3, h*w] positions of the slice at depth 0; every further depth adds the matrix's first column.
    plane = (matrix[:, 1:2] * rows + matrix[:, 2:3] * columns + origin[:, None]).astype(np.float32)

    out_image = np.zeros((channels, patch[0], rows.size), np.float32)
    out_label = np.empty((patch[0], rows.size), np.uint8)
    mixed: list[tuple[Corners, Offsets]] = []
    for depth in range(patch[0]):
        position = plane + (matrix[:, :1] * depth).astype(np.float32)
        below = np.floor(position)
        lower = below.astype(np.int32)
        cell = np.clip(lower, low - 2, high) - (low - 2)
        np.take(cells.reshape(-1), _flat_index(cell, cells.shape), out=out_label[depth], mode="clip")
        brain = np.flatnonzero(out_label[depth] != OUTSIDE_BRAIN)
        inside = np.clip(lower.take(brain, axis=1), low, high - 2)
        offset = position.take(brain, axis=1) - inside.astype(np.float32)
        for c, values in enumerate(_interpolate(voxels, label.shape, inside, offset)):
            out_image[c, depth][brain] = values
        several = np.flatnonzero(out_label[depth] == _MIXED)
        mixed.append((cell[:, several], (position - below)[:, several]))
    cell, offset = (np.concatenate(parts, axis=1) for parts in zip(*mixed, strict=True))
    out_label[out_label == _MIXED] = _dominant_label(padded, cell, offset)
    return np.moveaxis(out_image.reshape(channels, *patch), 0, -1), out_label.reshape(patch)


def _interpolate(
    voxels: Float32[np.ndarray, "N channels"], shape: tuple[int, ...], lower: Corners, offset: Offsets
) -> list[Float32[np.ndarray, "n"]]:
    """Each channel, interpolated linearly in the cells of lowest corner `lower` of a volume given flattened."""
    corners = voxels.take(_flat_index(lower, shape) + _flat_index(_CELL, shape)[:, None], axis=0, mode="clip")
    weights = _corner_weights(offset)
    return [np.einsum("kn,kn->n", corners[..., c], weights) for c in range(voxels.shape[1])]


def _label_cells(
    label: UInt8[np.ndarray, "D H W"], low: Int32[np.ndarray, "3"], high: Int32[np.ndarray, "3"]
) -> tuple[UInt8[np.ndarray, "a b c"], UInt8[np.ndarray, "a-1 b-1 c-1"]]:
    """The labels from `low` to `high` with two voxels of OUTSIDE_BRAIN around them, and the one label of every cell.

    A cell is named by its lowest corner. Where its eight corners differ, it is _MIXED.
    """
    padded = np.pad(label[tuple(map(slice, low, high))], 2, constant_values=OUTSIDE_BRAIN)
    smallest = largest = padded
    for axis in range(3):
        first, second = (slice(None),) * axis + (slice(-1),), (slice(None),) * axis + (slice(1, None),)
        smallest = np.minimum(smallest[first], smallest[second])
        largest = np.maximum(largest[first], largest[second])
    return padded, np.where(smallest == largest, largest, np.uint8(_MIXED))


def _dominant_label(padded: UInt8[np.ndarray, "a b c"], cell: Corners, offset: Offsets) -> UInt8[np.ndarray, "n"]:
    """The label of the largest interpolated indicator at `offset` into a cell; ties go to the nearest corner's.

    Of tied labels that are not the nearest corner's, OUTSIDE_BRAIN wins, then the smallest: nnU-Net's order, whose
    label outside is -1. Source: `SpatialTransform._apply_to_segmentation`.
    """
    corners = padded.reshape(-1)[_flat_index(cell, padded.shape) + _flat_index(_CELL, padded.shape)[:, None]]
    weights = _corner_weights(offset) * np.float32(SCORE_SCALE)
    names = np.array([OUTSIDE_BRAIN, *range(len(CLASSES))], np.uint8)
    scores = np.stack([np.einsum("kn,kn->n", weights, (corners == name).astype(np.float32)) for name in names])
    scores = scores.astype(np.float16)
    best = names[scores.argmax(axis=0)]
    nearest = np.take_along_axis(corners, weights.argmax(axis=0)[None], axis=0)[0]
    tied = (scores == scores.max(axis=0)) & (names[:, None] == nearest)
    return np.where(tied.any(axis=0), nearest, best)


def _flat_index(index: Integer[np.ndarray, "3 n"], shape: tuple[int, ...]) -> Int64[np.ndarray, "n"]:
    """Positions in the flattened volume; like `np.ravel_multi_index`, but it lets what lies outside pass."""
    d, h, w = index.astype(np.int64)
    return (d * shape[1] + h) * shape[2] + w


def _corner_weights(offset: Offsets) -> Float32[np.ndarray, "8 n"]:
    """Linear weights of a cell's corners, in the order of `itertools.product((0, 1), repeat=3)`.

    A position outside the cell, which happens only at the border of what is read, weighs the corner within one voxel
    of it and gives 0 to the others: so the volume continues as zeros.
    """
    lower, upper = (np.maximum(1 - np.abs(distance), 0) for distance in (offset, offset - 1))
    weights = np.empty((8, offset.shape[1]), np.float32)
    for k, (x, y) in enumerate(itertools.product((lower[0], upper[0]), (lower[1], upper[1]))):
        plane = x * y
        np.multiply(plane, lower[2], out=weights[2 * k])
        np.multiply(plane, upper[2], out=weights[2 * k + 1])
    return weights


def mirror(image: Image, label: Label, axes: tuple[bool, bool, bool]) -> tuple[Image, Label]:
    """Views of image and label, reversed along the chosen axes."""
    order = tuple(slice(None, None, -1 if reverse else 1) for reverse in axes)
    return image[order], label[order]
