"""Rotation, zoom and mirroring. Rotation and zoom are one affine resampling, from the volume straight to the patch.

Source: batchgeneratorsv2, `transforms/spatial/spatial.py` and `mirroring.py`; nnU-Net v2,
`compute_initial_patch_size.py` and `nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from data_pipeline.conventions import OUTSIDE_BRAIN, Index3, Shape3
from data_pipeline.patches.sampling import enlarged_offset, read_box
from data_pipeline.patches.spatial_turn import turn
from data_pipeline.patches.spatial_zoom import zoom

Matrix = Float64[np.ndarray, "3 3"]
Image = Float32[np.ndarray, "d h w c"]
Label = UInt8[np.ndarray, "d h w"]

FLAT = 3
"""A patch is flat if its longest axis is more than this many times its shortest (nnU-Net `ANISO_THRESHOLD`)."""

SMALLEST_ZOOM = 0.85
"""The zoom that nnU-Net allows for in the size of the enlarged patch; the zoom itself goes from 0.7 to 1.4."""


def flat_axis(patch: Shape3) -> int | None:
    """The thin axis of a flat patch, the only one it turns about; None if the patch is not flat.

    nnU-Net compares the longest axis with the first, which in its order has the coarsest spacing. Axes keep their
    anatomical order here, so the shortest takes its place: plans give the coarsest axis the fewest voxels.
    """
    thin = int(np.argmin(patch))
    return thin if max(patch) > FLAT * patch[thin] else None


def enlarged_patch(patch: Shape3, degrees: tuple[float, float]) -> Shape3:
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
    images: Float32[np.ndarray, "D H W channels"], label: UInt8[np.ndarray, "D H W"], start: Index3, patch: Shape3
) -> tuple[Image, Label]:
    """Cuts the patch whose first voxel is `start`.

    Beyond the volume the image is 0 and the label OUTSIDE_BRAIN. The results are new arrays; each channel of the image
    is contiguous in memory, which makes the intensity transforms faster.
    """
    box = read_box(images, start, patch, 0)
    planar = np.empty((images.shape[3], *patch), np.float32)
    for depth, plane in enumerate(np.asarray(box)):  # a slice stays in the processor's cache until its last channel
        for c in range(planar.shape[0]):
            planar[c, depth] = plane[..., c]
    return np.moveaxis(planar, 0, -1), np.array(read_box(label, start, patch, OUTSIDE_BRAIN))


def cut_turned(
    images: Float32[np.ndarray, "D H W channels"],
    label: UInt8[np.ndarray, "D H W"],
    start: Index3,
    patch: Shape3,
    enlarged: Shape3,
    matrix: Matrix,
) -> tuple[Image, Label]:
    """`cut_patch`, turned and zoomed by `matrix` about the centre of the enlarged patch, reading nothing outside it.

    The image is interpolated linearly; the label is the class whose indicator, interpolated linearly, is largest, or
    the nearest voxel's class in a tie. Beyond the enlarged patch, too, the image is 0 and the label OUTSIDE_BRAIN.

    Args:
      images: the whole volume, at least 2 voxels along each axis, 0 outside the brain.
      label: of the whole volume.
      start: first voxel of the unturned patch.
      patch: size of the result.
      enlarged: size of the box that may be read, from `enlarged_patch`.
      matrix: from `rotation_zoom`.
    """
    first = np.array(start) - enlarged_offset(patch, enlarged)
    origin = first + (np.array(enlarged) - 1) / 2 - matrix @ ((np.array(patch) - 1) / 2)
    low = np.maximum(first, 0)
    high = np.minimum(first + enlarged, label.shape)
    if np.array_equal(matrix, np.diag(np.diagonal(matrix))):
        box = tuple(map(slice, low, high))
        return zoom(images[box], label[box], np.diagonal(matrix), origin - low, patch)
    return turn(images, label, matrix, origin, patch, low, high)


def mirror(image: Image, label: Label, axes: tuple[bool, bool, bool]) -> tuple[Image, Label]:
    """Views of image and label, reversed along the chosen axes."""
    order = tuple(slice(None, None, -1 if reverse else 1) for reverse in axes)
    return image[order], label[order]
