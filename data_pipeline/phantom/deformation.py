"""One subject's head: an affine and a random diffeomorphism of the template, and the tumour's mass effect.

All maps are pull-backs: they give, for a point of the subject, the point of the template (or of the head before the
tumour) that is seen there. They are stored on a coarse control grid and interpolated.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from scipy import ndimage

from data_pipeline.phantom.grid import Grid, box_grid, resample, smooth_field, smoothstep

CONTROL_SPACING = 5.0
"""Spacing of the control grid, mm: a third of the shortest length that a deformation varies over."""
_CENTRE = (0.0, -18.0, 4.0)
"""Fixed point of the affine, ICBM152 mm: the middle of the brain."""

_VELOCITY_SIGMA = 14.0  # mm
_VELOCITY_SD = 4.0  # mm
_SQUARINGS = 5
_HALF_AXES = (71.0, 89.0, 75.0)
"""Half axes of an ellipsoid about the brain, mm."""
_SURFACE_VELOCITY = 0.6
"""Velocity on that ellipsoid relative to the inside."""
_SCALE_RANGE = 0.05
_ANGLE_RANGE = 10.0  # degrees
_MASS_DECAY = 25.0  # mm
_SKULL_ZONE = 12.0
"""The brain gives way towards the skull, which does not move: the displacement fades over this depth, mm."""


@dataclass(frozen=True)
class MassEffect:
    """A radial push.

    Attributes:
      centre: the point it pushes from, mm.
      radius: the distance at which it is strongest, mm.
      amplitude: displacement there, mm; less than `radius`, so that the map stays invertible.
    """

    centre: tuple[float, float, float]
    radius: float
    amplitude: float


def random_affine(rng: np.random.Generator) -> Float64[np.ndarray, "3 3"]:
    """Rotations of up to ±10° about every axis times scales of up to ±5 % along every axis."""
    matrix = np.diag(1 + rng.uniform(-_SCALE_RANGE, _SCALE_RANGE, 3))
    for axis, angle in enumerate(np.deg2rad(rng.uniform(-_ANGLE_RANGE, _ANGLE_RANGE, 3))):
        i, j = [k for k in range(3) if k != axis]
        rotation = np.eye(3)
        rotation[i, i] = rotation[j, j] = np.cos(angle)
        rotation[i, j], rotation[j, i] = -np.sin(angle), np.sin(angle)
        matrix = _product(rotation, matrix)
    return matrix


def _product(a: Float64[np.ndarray, "3 3"], b: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, "3 3"]:
    """Matrix product without BLAS, whose rounding depends on the processor."""
    return (a[:, :, None] * b[None]).sum(1)


def random_diffeomorphism(rng: np.random.Generator) -> Float32[np.ndarray, "3 a b c"]:
    """Displacement (mm, on the control grid) of a stationary velocity field, by scaling and squaring.

    Source: Arsigny et al. 2006; five squarings, so each starting step is 4 mm / 32.
    """
    grid = box_grid(CONTROL_SPACING)
    velocity = np.stack([smooth_field(rng, grid, _VELOCITY_SIGMA) for _ in range(3)])
    velocity *= _surface_factor(grid)
    displacement = velocity * np.float32(_VELOCITY_SD / 2**_SQUARINGS)
    index = np.indices(grid.shape, dtype=np.float32)
    for _ in range(_SQUARINGS):
        displacement = displacement + _at(displacement, index + displacement / np.float32(CONTROL_SPACING))
    return displacement


def _surface_factor(grid: Grid) -> Float32[np.ndarray, "a b c"]:
    """1 inside the brain, less towards its surface: the outlines of heads differ less than their insides."""
    points = grid.points()
    squared = sum(((points[i] - np.float32(_CENTRE[i])) / np.float32(_HALF_AXES[i])) ** 2 for i in range(3))
    return 1 - np.float32(1 - _SURFACE_VELOCITY) * smoothstep(np.sqrt(squared), 0.55, 0.95)


def _at(
    vectors: Float32[np.ndarray, "3 a b c"], voxels: Float32[np.ndarray, "3 *shape"]
) -> Float32[np.ndarray, "3 *shape"]:
    """A vector field at positions counted in its voxels."""
    out = np.empty((3, *voxels.shape[1:]), np.float32)
    for component, target in zip(vectors, out, strict=True):
        ndimage.map_coordinates(component, voxels, target, order=1, mode="nearest")
    return out


def to_template(
    points: Float32[np.ndarray, "3 d h w"],
    affine: Float64[np.ndarray, "3 3"],
    displacement: Float32[np.ndarray, "3 a b c"],
) -> Float32[np.ndarray, "3 d h w"]:
    """Template points (mm) seen at points (mm) of the head before the tumour."""
    origin = np.array(box_grid(CONTROL_SPACING).origin, np.float32).reshape(3, 1, 1, 1)
    bent = points + _at(displacement, (points - origin) / np.float32(CONTROL_SPACING))
    x, y, z = (bent[i] - np.float32(_CENTRE[i]) for i in range(3))
    rows = affine.astype(np.float32)
    return np.stack([rows[i, 0] * x + rows[i, 1] * y + rows[i, 2] * z + np.float32(_CENTRE[i]) for i in range(3)])


def before_mass_effect(
    points: Float32[np.ndarray, "3 a b c"], effect: MassEffect, depth: Float32[np.ndarray, "a b c"]
) -> Float32[np.ndarray, "3 a b c"]:
    """The former positions of the tissue at these points (mm), before the tumour pushed it away from its centre.

    The displacement grows linearly inside `effect.radius` and decays over 25 mm outside it.

    Args:
      points: points of the final head.
      effect: the push.
      depth: depth of every point below the surface of the brain, mm.
    """
    centre = np.array(effect.centre, np.float32).reshape(3, 1, 1, 1)
    offset = points - centre
    distance = np.sqrt(offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2) + np.float32(1e-3)
    decay = np.exp(-np.maximum(distance.astype(np.float64) - effect.radius, 0) / _MASS_DECAY).astype(np.float32)
    push = np.minimum(distance / np.float32(effect.radius), decay) * np.float32(effect.amplitude)
    push *= np.clip(depth / np.float32(_SKULL_ZONE), 0, 1)
    return points - offset * (push / distance)


def interpolate(points: Float32[np.ndarray, "3 a b c"], target: Grid) -> Float32[np.ndarray, "3 d h w"]:
    """A map on the control grid, evaluated on another grid."""
    control = box_grid(CONTROL_SPACING)
    return np.stack([resample(component, control, target) for component in points])
