"""Resampling between two grids that cover the same box.

A voxel is a cell with its value at the centre, and both grids span the same box edge to edge
(`grid_mode=True` of `scipy.ndimage.zoom`, the convention of nnU-Net). Resampling there and back
therefore does not shift anything, whatever the rounding of the shapes.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

from data_pipeline.errors import InputError

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

SAME_SPACING = 1e-3  # mm; below this difference nothing is resampled


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


def resampled_shape(shape: Shape, spacing: Spacing, target: Spacing) -> Shape:
    """Voxels per axis after resampling from one spacing (mm) to another; the same shape if they agree."""
    if np.allclose(spacing, target, rtol=0, atol=SAME_SPACING):
        return shape
    d, h, w = (max(1, round(n * s / t)) for n, s, t in zip(shape, spacing, target, strict=True))
    return d, h, w


def resample_image(image: Float32[np.ndarray, "d h w"], shape: Shape) -> Float32[np.ndarray, "d2 h2 w2"]:
    """Cubic spline; an axis that shrinks by a factor f > 1 is first smoothed with a Gaussian, σ = (f − 1)/2 voxels.

    The Gaussian suppresses what the coarser grid cannot represent (the rule of scikit-image's `resize`).
    """
    if image.shape == shape:
        return image
    sigma = [max(0.0, (old / new - 1) / 2) for old, new in zip(image.shape, shape, strict=True)]
    smooth = ndimage.gaussian_filter(image, sigma, mode="nearest") if any(sigma) else image
    return _zoom(smooth, shape, order=3)


def resample_mask(mask: Bool[np.ndarray, "d h w"], shape: Shape) -> Bool[np.ndarray, "d2 h2 w2"]:
    """Linear interpolation, true from one half on."""
    return mask if mask.shape == shape else _zoom(mask.astype(np.float32), shape, order=1) >= 0.5


def resample_label(classes: UInt8[np.ndarray, "d h w"], shape: Shape, count: int) -> UInt8[np.ndarray, "d2 h2 w2"]:
    """Linear interpolation of each of `count` classes' indicator, then the largest; the lower class wins a tie."""
    if classes.shape == shape:
        return classes
    best, label = np.full(shape, -1, np.float32), np.zeros(shape, np.uint8)
    for index in range(count):
        share = _zoom((classes == index).astype(np.float32), shape, order=1)
        larger = share > best + 1e-6  # rounding must not decide a tie
        best[larger], label[larger] = share[larger], index
    return label


def resample_linear(values: Float32[np.ndarray, "d h w k"], shape: Shape) -> Float32[np.ndarray, "d2 h2 w2 k"]:
    """Linear interpolation of every channel; one channel at a time bounds the memory."""
    if values.shape[:3] == shape:
        return values
    out = np.empty((*shape, values.shape[3]), np.float32)
    for k in range(values.shape[3]):
        out[..., k] = _zoom(np.ascontiguousarray(values[..., k]), shape, order=1)
    return out


def _zoom(values: Float32[np.ndarray, "d h w"], shape: Shape, *, order: int) -> Float32[np.ndarray, "d2 h2 w2"]:
    factors = [new / old for old, new in zip(values.shape, shape, strict=True)]
    return ndimage.zoom(values, factors, order=order, mode="nearest", grid_mode=True)
