"""Grids in millimetres, and smooth random fields on them.

Everything that is drawn for a phantom is anchored to one box in millimetres, so that a case is the same head and the
same tumour at every voxel spacing. Resampling is written as weighted sums of slices: exact IEEE additions and
multiplications give the same bits on every machine, which a matrix library does not.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int
from scipy import ndimage

from data_pipeline.conventions import Index3, Shape3

BOX_ORIGIN = (-96.0, -128.0, -86.0)
"""Lower corner, in ICBM152 millimetres, of the box that every field is drawn on."""
BOX_SIZE = (192.0, 220.0, 184.0)
"""Extent of that box in millimetres: the brain and room for turning and bending it."""

_FIELD_SD = (4 * np.pi) ** -0.75
"""SD of unit white noise on a unit grid after a Gaussian of one step: the square root of the sum of squared taps."""
_SPLINE_VARIANCE = 1 / 3
"""Variance of the cubic B-spline, in squared knot steps (Unser 1999, table 1)."""
_PAD = 3


@dataclass(frozen=True)
class Grid:
    """A box of voxels in ICBM152 space, axes x, y, z towards right, anterior, superior.

    Attributes:
      origin: centre of voxel (0, 0, 0), mm.
      spacing: edge of the isotropic voxels, mm.
      shape: number of voxels per axis.
    """

    origin: tuple[float, float, float]
    spacing: float
    shape: Shape3

    def axis(self, index: int) -> Float64[np.ndarray, "n"]:
        """Voxel centres along one axis, mm."""
        return self.origin[index] + self.spacing * np.arange(self.shape[index])

    def sub(self, lower: Index3, upper: Index3) -> "Grid":
        """The part from voxel `lower` up to, not including, voxel `upper`."""
        origin = tuple(o + self.spacing * i for o, i in zip(self.origin, lower, strict=True))
        shape = tuple(u - i for i, u in zip(lower, upper, strict=True))
        return Grid(origin, self.spacing, shape)  # type: ignore[arg-type]

    def points(self) -> Float32[np.ndarray, "3 d h w"]:
        """Coordinates of all voxel centres, mm."""
        mesh = np.meshgrid(*(self.axis(i) for i in range(3)), indexing="ij")
        return np.stack(mesh).astype(np.float32)


def box_grid(spacing: float) -> Grid:
    """The grid of a spacing (mm) that covers the box."""
    shape = tuple(int(np.ceil(size / spacing)) + 1 for size in BOX_SIZE)
    return Grid(BOX_ORIGIN, spacing, shape)  # type: ignore[arg-type]


def _taps(position: Float64[np.ndarray, "n"], cubic: bool) -> tuple[Int[np.ndarray, "n"], Float64[np.ndarray, "k n"]]:
    """First knot and weights of the linear or cubic B-spline at positions counted in knots."""
    base = np.floor(position).astype(np.int64)
    t = position - base
    if not cubic:
        return base, np.stack([1 - t, t])
    weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    return base - 1, np.stack(weights) / 6


def resample(
    values: Float32[np.ndarray, "a b c"], source: Grid, target: Grid, cubic: bool = False
) -> Float32[np.ndarray, "d h w"]:
    """Values at the voxels of another grid, one axis after the other.

    Args:
      values: samples on `source` (linear) or cubic B-spline coefficients on it.
      source: grid of `values`; beyond its ends the last value is repeated.
      target: grid to evaluate on.
      cubic: whether `values` are cubic B-spline coefficients.
    """
    for axis in range(3):
        position = (target.axis(axis) - source.origin[axis]) / source.spacing
        first, weights = _taps(position, cubic)
        shape = [1, 1, 1]
        shape[axis] = target.shape[axis]
        parts = weights.astype(np.float32).reshape(len(weights), *shape)
        result = np.take(values, np.clip(first, 0, values.shape[axis] - 1), axis=axis) * parts[0]
        for k in range(1, len(parts)):
            tap = np.take(values, np.clip(first + k, 0, values.shape[axis] - 1), axis=axis)
            tap *= parts[k]
            result += tap
        values = result
    return values


def smooth_field(rng: np.random.Generator, grid: Grid, sigma: float) -> Float32[np.ndarray, "d h w"]:
    """A stationary Gaussian random field: white noise smoothed by a Gaussian, mean 0 and SD 1.

    Drawn as cubic B-spline coefficients at a distance of `sigma` over the whole box, so that neither the time nor the
    field depends on the voxel spacing. The coefficients are smoothed by as much as the spline itself does not.

    Args:
      rng: source of the noise.
      grid: where to evaluate, inside the box.
      sigma: SD of the Gaussian, mm.
    """
    knots = tuple(int(np.ceil(size / sigma)) + 4 for size in BOX_SIZE)
    noise = rng.standard_normal(tuple(n + 2 * _PAD for n in knots), dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, np.sqrt(1 - _SPLINE_VARIANCE), mode="constant", truncate=3.5)
    inner = (slice(_PAD, -_PAD),) * 3
    coefficients = smooth[inner] / np.float32(_FIELD_SD)
    origin = tuple(o - 1.5 * sigma for o in BOX_ORIGIN)
    return resample(coefficients, Grid(origin, sigma, knots), grid, cubic=True)  # type: ignore[arg-type]


def smoothstep(values: Float32[np.ndarray, "..."], low: float, high: float) -> Float32[np.ndarray, "..."]:
    """Cubic ramp from 0 at `low` to 1 at `high`."""
    t = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def portable_exp(values: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """exp, computed in double precision: single-precision exp differs between processors in its last bit."""
    return np.exp(values.astype(np.float64)).astype(np.float32)
