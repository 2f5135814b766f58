"""The glioma of one case: where it starts, how large it gets, and which parts are oedema, core and rim."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from scipy import ndimage

from data_pipeline.phantom.anatomy import Anatomy
from data_pipeline.phantom.deformation import CONTROL_SPACING, MassEffect, interpolate, to_template
from data_pipeline.phantom.grid import Grid, box_grid, portable_exp, smooth_field
from data_pipeline.phantom.growth import GROWTH_SPACING, OEDEMA_LEVEL, grow, make_medium

NCR, ED, ET = 1, 2, 3
"""Internal classes of `conventions.CLASSES`."""

VOLUME_RANGE = (15.0, 110.0)
"""Whole-tumour volume, ml."""
POOR_FRACTION = 0.225
"""Part of the cases with little or no enhancing tumour."""

_GOLDEN = 0.6180339887498949
_LENGTH_RANGE = (1.7, 4.5)  # sqrt(D/rho), mm: margins of 5 to 14 mm between core and the edge of the oedema
_PUSH_RANGE = (0.05, 0.24)  # displacement as a part of the tumour's radius
_PUSH_LIMIT = 7.0  # mm
_REACH = 60.0  # mm from the seed to the end of the growth grid
_SEED_SIGMA = 3.0  # mm
_MOTILITY_SD = 0.9  # of the logarithm of the factor on D
_PROLIFERATION_SD = 0.5  # of the logarithm of the factor on rho
_LOBULATION_LIMIT = 0.7
_CORE_WAVER = 0.08  # SD of the density at the border of the core: cores are not concentric with their oedema
_FALX_HALF_WIDTH = 2.0  # mm


@dataclass(frozen=True)
class TumourPlan:
    """What is drawn for one tumour.

    Attributes:
      volume: whole tumour, ml.
      length: sqrt(D/rho) in white matter, mm.
      push: largest displacement of the mass effect, mm.
      core_level: cell density above which tissue is core.
      rim: mean thickness of the enhancing rim, mm.
      gaps: part of the rim that does not enhance.
      enhancing: whether there is an enhancing rim at all; without one, at most a few spots.
      spots: part of the core that enhances where there is no rim.
    """

    volume: float
    length: float
    push: float
    core_level: float
    rim: float
    gaps: float
    enhancing: bool
    spots: float


def plan_tumour(rng: np.random.Generator, seed: int, case: int) -> TumourPlan:
    """Draw one tumour.

    Which cases enhance poorly follows a golden-ratio sequence over the case number, not a coin: its
    share is then right in every small training set.
    """
    offset = np.random.default_rng([seed, 0xE7]).random()
    poor = (offset + case * _GOLDEN) % 1.0 < POOR_FRACTION
    volume = float(np.exp(rng.uniform(*np.log(VOLUME_RANGE))))
    radius = _radius(volume)
    return TumourPlan(
        volume=volume,
        length=float(np.exp(rng.uniform(*np.log(_LENGTH_RANGE)))),
        push=min(radius * rng.uniform(*_PUSH_RANGE), _PUSH_LIMIT),
        core_level=rng.uniform(0.45, 0.6),
        rim=rng.uniform(4, 9),
        gaps=rng.uniform(0.03, 0.3),
        enhancing=not poor,
        spots=max(0.0, rng.uniform(-0.06, 0.06)),
    )


def _radius(volume: float) -> float:
    """Radius (mm) of a sphere of some ml."""
    return float((3000 * volume / (4 * np.pi)) ** (1 / 3))


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
    plan: TumourPlan,
    anatomy: Anatomy,
    affine: Float64[np.ndarray, "3 3"],
    displacement: Float32[np.ndarray, "3 a b c"],
) -> Tumour:
    """Seed a tumour in supratentorial white matter of a subject's head and grow it to the planned volume."""
    control = box_grid(CONTROL_SPACING)
    template = to_template(control.points(), affine, displacement)
    seed = _draw_seed(rng, control, anatomy, template)
    grid = _around(seed)
    there = interpolate(template, grid)
    gm, wm = anatomy.sample("gm", there), anatomy.sample("wm", there)
    falx = (np.abs(there[0]) < _FALX_HALF_WIDTH) & (wm < 0.5)
    medium = make_medium(
        gm,
        wm,
        falx,
        length=plan.length,
        motility=_lobulation(rng, grid, _MOTILITY_SD, 7.0),
        proliferation=_lobulation(rng, grid, _PROLIFERATION_SD, 11.0),
    )
    offset = grid.points() - np.array(seed, np.float32).reshape(3, 1, 1, 1)
    start = portable_exp(-(offset**2).sum(0) / np.float32(2 * _SEED_SIGMA**2))
    # The push stretches the tumour, so it has to start smaller to end at the drawn volume.
    shrink = 1 - plan.push / _radius(plan.volume)
    density = grow(medium, start, plan.volume * shrink**3)
    inside = np.argwhere(density > np.float32(OEDEMA_LEVEL)).mean(0)
    centre = tuple(float(o + grid.spacing * i) for o, i in zip(grid.origin, inside, strict=True))
    effect = MassEffect(centre, _radius(plan.volume), plan.push)  # type: ignore[arg-type]
    return Tumour(_into_sulci(density, medium.tissue), grid, effect)


def _lobulation(rng: np.random.Generator, grid: Grid, sd: float, sigma: float) -> Float32[np.ndarray, "d h w"]:
    """Log-normal random field; limited from above, because the fastest voxel sets the time step."""
    return portable_exp(np.minimum(smooth_field(rng, grid, sigma) * np.float32(sd), np.float32(_LOBULATION_LIMIT)))


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


def label_tumour(
    rngs: Mapping[str, np.random.Generator],
    plan: TumourPlan,
    density: Float32[np.ndarray, "d h w"],
    grid: Grid,
    mask: Bool[np.ndarray, "d h w"],
) -> UInt8[np.ndarray, "d h w"]:
    """Internal classes: oedema, core, and the enhancing rim of the core with its gaps.

    Args:
      rngs: generators named "core", "rim" and "gaps".
      plan: thresholds and thickness.
      density: cell density on `grid`.
      grid: a part of the image grid that holds the tumour.
      mask: brain.
    """
    whole = (density > np.float32(OEDEMA_LEVEL)) & mask
    level = plan.core_level + np.float32(_CORE_WAVER) * smooth_field(rngs["core"], grid, 10.0)
    core = whole & (density > level)
    rim = _depth_inside(core, grid.spacing)
    thickness = np.float32(plan.rim) * portable_exp(np.float32(0.35) * smooth_field(rngs["rim"], grid, 9.0))
    gap_field = smooth_field(rngs["gaps"], grid, 6.0)
    if plan.enhancing:
        enhancing = core & (rim <= thickness) & (gap_field > _quantile(gap_field[core], plan.gaps))
    else:
        enhancing = core & (gap_field > _quantile(gap_field[core], 1 - plan.spots))
    label = np.where(whole, np.uint8(ED), np.uint8(0))
    label[core] = NCR
    label[enhancing] = ET
    return label


def _depth_inside(core: Bool[np.ndarray, "d h w"], spacing: float) -> Float32[np.ndarray, "d h w"]:
    """Distance (mm) of the core's voxels to its border; only the core's bounding box is looked at."""
    out = np.zeros(core.shape, np.float32)
    for box in ndimage.find_objects(core.astype(np.int8)):
        inside = np.pad(core[box], 1)
        out[box] = ndimage.distance_transform_edt(inside, sampling=spacing)[1:-1, 1:-1, 1:-1]
    return out


def _quantile(values: Float32[np.ndarray, "n"], q: float) -> np.float32:
    """Quantile; of nothing, infinity."""
    return np.float32(np.quantile(values, q)) if len(values) else np.float32(np.inf)
