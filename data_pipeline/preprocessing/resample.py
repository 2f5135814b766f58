"""Resampling between two grids that cover the same box, as nnU-Net does it.

A voxel is a cell with its value at the centre, and both grids span the same box edge to edge
(`grid_mode=True` of `scipy.ndimage.zoom`). Resampling there and back therefore shifts nothing,
however the shapes are rounded. Nothing is smoothed before a grid gets coarser. Where one axis is far coarser than the
others (`slice_axis`), slices are resampled one by one, then repeated or dropped along that axis: interpolation between
thick slices would invent anatomy.

Source: nnunetv2/preprocessing/resampling/default_resampling.py; images by splines of order 3, labels and logits of
order 1, order 0 along the coarse axis.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped, UInt8
from scipy import ndimage

from data_pipeline.conventions import Shape3, Spacing
from data_pipeline.errors import InputError

SAME_SPACING = 1e-3  # mm; below this difference nothing is resampled
ANISOTROPIC = 3
"""Largest over smallest spacing above which the coarse axis is treated separately (nnU-Net: `ANISO_THRESHOLD`)."""


def as_spacing(spacing: float | Sequence[float]) -> Spacing:
    """One number for all axes, or one per canonical axis, in mm.

    Raises:
      InputError: not positive, or neither one nor three numbers.
    """
    numbers = np.asarray(spacing, np.float64)
    if numbers.shape not in ((), (3,)) or not np.all(numbers > 0):
        raise InputError(f"spacing {spacing}: expected one or three positive numbers, in mm")
    d, h, w = (float(s) for s in np.broadcast_to(numbers, 3))
    return d, h, w


def resampled_shape(shape: Shape3, spacing: Spacing, target: Spacing) -> Shape3:
    """Voxels per axis after resampling from one spacing (mm) to another; the same shape if they agree."""
    if np.allclose(spacing, target, rtol=0, atol=SAME_SPACING):
        return shape
    d, h, w = (max(1, round(s / t * n)) for n, s, t in zip(shape, spacing, target, strict=True))
    return d, h, w


def slice_axis(spacing: Spacing, target: Spacing) -> int | None:
    """The axis to treat separately: the coarse one of `spacing` or, if that is nearly isotropic, of `target`.

    None if both are nearly isotropic, or if two axes are equally coarse.
    """
    for mm in (spacing, target):
        if max(mm) / min(mm) > ANISOTROPIC:
            # Spacings come from affines: equal ones may differ in the last digits.
            coarse = [axis for axis, s in enumerate(mm) if math.isclose(s, max(mm), rel_tol=1e-5)]
            return coarse[0] if len(coarse) == 1 else None
    return None


def resample_image(
    image: Float32[np.ndarray, "d h w"], shape: Shape3, coarse_axis: int | None = None
) -> Float32[np.ndarray, "d2 h2 w2"]:
    """Cubic spline, clipped to the range of the values (of each slice, given a `coarse_axis`).

    Args:
      image: intensities.
      shape: voxels per axis of the result.
      coarse_axis: from `slice_axis`.
    """
    if image.shape == shape:
        return image
    if coarse_axis is None:
        return _zoom(image, shape, order=3).clip(image.min(), image.max())
    plane = shape[:coarse_axis] + shape[coarse_axis + 1 :]
    slices = [_zoom(s, plane, order=3).clip(s.min(), s.max()) for s in np.moveaxis(image, coarse_axis, 0)]
    return np.moveaxis(np.stack(slices), 0, coarse_axis).take(
        _nearest(image.shape[coarse_axis], shape[coarse_axis]), coarse_axis
    )


def resample_mask(
    mask: Bool[np.ndarray, "d h w"], shape: Shape3, coarse_axis: int | None = None
) -> Bool[np.ndarray, "d2 h2 w2"]:
    """`resample_label` of two classes."""
    return resample_label(mask.astype(np.uint8), shape, coarse_axis).astype(bool)


def resample_label(
    classes: UInt8[np.ndarray, "d h w"], shape: Shape3, coarse_axis: int | None = None
) -> UInt8[np.ndarray, "d2 h2 w2"]:
    """The class whose indicator, interpolated linearly, is largest.

    A tie goes to the class of the nearest voxel if it is among them, else to the lowest (batchgenerators,
    `resize_segmentation`).
    """
    if classes.shape == shape:
        return classes
    if coarse_axis is not None:
        classes = classes.take(_nearest(classes.shape[coarse_axis], shape[coarse_axis]), coarse_axis)
    # Along an axis whose size does not change, interpolation keeps every value: slices do not mix.
    nearest = _zoom(classes, shape, order=0)
    best, best_of_nearest, label = np.full(shape, -1.0), np.zeros(shape), np.zeros(shape, np.uint8)
    for index in np.unique(classes):
        share = _zoom((classes == index).astype(np.float64), shape, order=1)
        larger, near = share > best, nearest == index
        best[larger], label[larger] = share[larger], index
        best_of_nearest[near] = share[near]
    return np.where(best_of_nearest == best, nearest, label)


def resample_linear_rows(
    values: Float32[np.ndarray, "d h w k"], shape: Shape3, rows: slice, coarse_axis: int | None = None
) -> Float32[np.ndarray, "rows h2 w2 k"]:
    """Linear interpolation of every channel, for some rows of the result's first axis.

    Only the rows of `values` that they need are read, so that logits of any size can be brought back piece by piece.
    """
    if values.shape[:3] == shape:
        return np.asarray(values[rows])
    if coarse_axis == 0:
        return _linear(values[_nearest(values.shape[0], shape[0])[rows]], (rows.stop - rows.start, *shape[1:]))
    step = values.shape[0] / shape[0]
    first = (rows.start + 0.5) * step - 0.5  # position of the first row among the rows of `values`
    low, high = math.floor(first), math.ceil((rows.stop - 0.5) * step - 0.5)
    low, high = max(low, 0), min(high + 1, values.shape[0])
    block = values[low:high]
    if coarse_axis is not None:
        block = block.take(_nearest(values.shape[coarse_axis], shape[coarse_axis]), coarse_axis)
    return _linear(block, (rows.stop - rows.start, *shape[1:]), first - low, step)


def _linear(
    values: Float32[np.ndarray, "d h w k"], shape: Shape3, first: float | None = None, step: float | None = None
) -> Float32[np.ndarray, "d2 h2 w2 k"]:
    """Linear interpolation; along the first axis from position `first` on, in steps of `step`."""
    steps = np.divide(values.shape[:3], shape)
    starts = 0.5 * steps - 0.5
    if first is not None and step is not None:
        starts[0], steps[0] = first, step
    out = np.empty((*shape, values.shape[3]), np.float32)
    for k in range(values.shape[3]):
        # Contiguous copies are much faster to interpolate than one channel of several.
        channel = np.ascontiguousarray(values[..., k])
        out[..., k] = ndimage.affine_transform(channel, steps, starts, shape, np.float32, order=1, mode="nearest")
    return out


def _nearest(size: int, new_size: int) -> Int[np.ndarray, " n"]:
    """For each voxel of an axis's new grid, the nearest one of the old grid; rounded as SciPy rounds."""
    places = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    return ndimage.map_coordinates(np.arange(size), [places], order=0, mode="nearest")


def _zoom(values: Shaped[np.ndarray, "*d"], shape: Sequence[int], *, order: int) -> Shaped[np.ndarray, "*d2"]:
    factors = [new / old for old, new in zip(values.shape, shape, strict=True)]
    return ndimage.zoom(values, factors, order=order, mode="nearest", grid_mode=True)
