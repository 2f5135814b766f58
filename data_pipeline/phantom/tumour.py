"""The glioma of one case: where it starts, the medium it grows in, and its mass effect."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from data_pipeline.phantom.anatomy import Anatomy
from data_pipeline.phantom.deformation import CONTROL_SPACING, MassEffect, interpolate
from data_pipeline.phantom.grid import Grid, box_grid, portable_exp, smooth_field, smoothstep
from data_pipeline.phantom.growth import GROWTH_SPACING, OEDEMA_LEVEL, grow, make_medium, visible
from data_pipeline.phantom.properties import TumourProperties, sphere_radius

_REACH = 60.0  # mm from the seed to the end of the growth grid
_SEED_SIGMA = 3.0  # mm
_SEED_EDGE = 0.05
_FOCUS_SPREAD = 8.0  # mm
_MOTILITY = ((6.0, 0.8), (18.0, 1.3))
"""Log-normal factor on D: scales (mm) and SDs of the logarithm; the long one makes the margin lopsided."""
_PROLIFERATION = ((7.0, 0.5), (18.0, 0.8))
"""Log-normal factor on rho."""
_LOBULATION_LIMITS = (-1.3, 0.7)
_FALX_HALF_WIDTH = 2.0  # mm


@dataclass(frozen=True)
class Tumour:
    """A grown tumour, before it pushes.

    Attributes:
      density: cell density on `grid`.
      grid: a part of the 2 mm grid around the seed.
      effect: the push it will exert.
    """

    density: Float32[np.ndarray, "d h w"]
    grid: Grid
    effect: MassEffect

    def at(self, points: Float32[np.ndarray, "3 *shape"]) -> Float32[np.ndarray, "*shape"]:
        """Density at points (mm) of the head before the mass effect."""
        origin = np.array(self.grid.origin, np.float32).reshape(3, *(1,) * (points.ndim - 1))
        voxels = (points - origin) / np.float32(self.grid.spacing)
        out = np.empty(points.shape[1:], np.float32)
        ndimage.map_coordinates(self.density, voxels, out, order=1, mode="constant")
        return out


def grow_tumour(
    rng: np.random.Generator,
    properties: TumourProperties,
    anatomy: Anatomy,
    template: Float32[np.ndarray, "3 a b c"],
) -> Tumour:
    """Seed a tumour in supratentorial white matter of a subject's head and grow it to the drawn volume.

    Args:
      rng: draws the seed, the foci and the fields.
      properties: volume, infiltration and mass effect.
      anatomy: the template.
      template: template points (mm) at the control grid's points.
    """
    control = box_grid(CONTROL_SPACING)
    seed = _draw_seed(rng, control, anatomy, template)
    grid = _around(seed)
    points = interpolate(template, grid)
    gm, wm = anatomy.sample("gm", points), anatomy.sample("wm", points)
    falx = (np.abs(points[0]) < _FALX_HALF_WIDTH) & (wm < 0.5)
    medium = make_medium(
        gm,
        wm,
        falx,
        length=properties.length,
        motility=_lobulation(rng, grid, _MOTILITY),
        proliferation=_lobulation(rng, grid, _PROLIFERATION),
    )
    start = _start(rng, grid, seed)
    white = smoothstep(wm / np.maximum(gm + wm, np.float32(1e-6)), 0.3, 0.8)
    cortex = np.float32(properties.cortex) * (1 - white)
    # The push stretches the tumour, so it has to start smaller to end at the drawn volume.
    shrink = 1 - properties.push / sphere_radius(properties.volume)
    density = grow(medium, start, properties.volume * shrink**3, cortex)
    density = visible(density, cortex)
    inside = np.argwhere(density > np.float32(OEDEMA_LEVEL)).mean(0)
    centre = tuple(float(o + grid.spacing * i) for o, i in zip(grid.origin, inside, strict=True))
    effect = MassEffect(centre, sphere_radius(properties.volume), properties.push)  # type: ignore[arg-type]
    return Tumour(_into_sulci(density, medium.tissue), grid, effect)


def _start(rng: np.random.Generator, grid: Grid, seed: tuple[float, float, float]) -> Float32[np.ndarray, "d h w"]:
    """Starting density: one to four foci, which grow together into one irregular tumour."""
    density = np.zeros(grid.shape, np.float32)
    points = grid.points()
    for focus in range(rng.integers(1, 5)):
        centre = np.array(seed) + (rng.normal(0, _FOCUS_SPREAD, 3) if focus else 0)
        squared = ((points - centre.astype(np.float32).reshape(3, 1, 1, 1)) ** 2).sum(0)
        density = np.maximum(density, portable_exp(-squared / np.float32(2 * _SEED_SIGMA**2)))
    # The tail of a Gaussian would reach over the falx.
    return np.where(density > np.float32(_SEED_EDGE), density, np.float32(0))


def _lobulation(
    rng: np.random.Generator, grid: Grid, scales: tuple[tuple[float, float], ...]
) -> Float32[np.ndarray, "d h w"]:
    """Log-normal random field within limits.

    Without limits the fastest voxel would shorten the time step, and a front much thinner than a voxel would follow the
    axes of the grid.
    """
    logarithm = sum(np.float32(sd) * smooth_field(rng, grid, sigma) for sigma, sd in scales)
    return portable_exp(np.clip(logarithm, *_LOBULATION_LIMITS))


def _draw_seed(
    rng: np.random.Generator, control: Grid, anatomy: Anatomy, template: Float32[np.ndarray, "3 a b c"]
) -> tuple[float, float, float]:
    """A point (mm) in white matter above the tentorium: not in the cerebellum, brain stem or callosum's middle."""
    x, y, z = template
    above = (z > 4) | ((np.abs(x) > 24) & (y > -28) & (z > -26))
    candidates = np.argwhere((anatomy.sample("wm", template) > 0.7) & above & (np.abs(x) > 10))
    chosen = candidates[rng.integers(len(candidates))]
    return tuple(float(o + control.spacing * i) for o, i in zip(control.origin, chosen, strict=True))  # type: ignore


def _around(seed: tuple[float, float, float]) -> Grid:
    """The part of the growth grid within reach of a point."""
    whole = box_grid(GROWTH_SPACING)
    lower, upper = [], []
    for axis in range(3):
        centre = (seed[axis] - whole.origin[axis]) / whole.spacing
        lower.append(max(0, int(np.floor(centre - _REACH / whole.spacing))))
        upper.append(min(whole.shape[axis], int(np.ceil(centre + _REACH / whole.spacing))))
    return whole.sub(tuple(lower), tuple(upper))  # type: ignore[arg-type]


def _into_sulci(
    density: Float32[np.ndarray, "d h w"], tissue: Bool[np.ndarray, "d h w"]
) -> Float32[np.ndarray, "d h w"]:
    """Extend the density over thin sulci, as experts outline it, and leave wide fluid (ventricles) free."""
    weight = ndimage.gaussian_filter(tissue.astype(np.float32), 1.0, truncate=3)
    spread = ndimage.gaussian_filter(density, 1.0, truncate=3)
    return spread / np.maximum(weight, np.float32(1e-3)) * np.clip((weight - np.float32(0.3)) / np.float32(0.2), 0, 1)
