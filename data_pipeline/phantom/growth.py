"""Growth of a glioma: the Fisher-Kolmogorov equation du/dt = div(D grad u) + rho u (1 - u).

Source: Swanson et al. 2000 (diffusion faster in white than in grey matter, no flux out of tissue); discretised by
finite volumes and forward Euler. Time is counted in units of 1/rho, so the equation has one length, sqrt(D/rho), which
sets the width of the infiltrated margin.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

from data_pipeline.conventions import Slices3
from data_pipeline.phantom.grid import smoothstep

GROWTH_SPACING = 2.0
"""Spacing (mm) of the grid that tumours grow on, for images of any spacing: the density is smooth."""
OEDEMA_LEVEL = 0.16
"""Cell density above which a voxel belongs to the whole tumour."""

WHITE_TO_GREY = 10.0
"""Ratio of the diffusion coefficients."""
_STABILITY = 0.95
_NEGLIGIBLE = 1e-4
_BLOCK = 8
"""Steps between two updates of the volume and the bounding box."""
_MAX_STEPS = 2000


@dataclass(frozen=True)
class Medium:
    """Where and how fast cells move and divide.

    Attributes:
      faces: per axis, the diffusion coefficient (mm² per unit of time) between voxel i and i + 1; 0 where
        either side is not tissue.
      proliferation: growth rate per unit of time, 0 outside tissue.
      tissue: grey or white matter.
      spacing: mm.
    """

    faces: tuple[Float32[np.ndarray, "..."], Float32[np.ndarray, "..."], Float32[np.ndarray, "..."]]
    proliferation: Float32[np.ndarray, "d h w"]
    tissue: Bool[np.ndarray, "d h w"]
    spacing: float


def make_medium(
    gm: Float32[np.ndarray, "d h w"],
    wm: Float32[np.ndarray, "d h w"],
    barrier: Bool[np.ndarray, "d h w"],
    *,
    length: float,
    motility: Float32[np.ndarray, "d h w"],
    proliferation: Float32[np.ndarray, "d h w"],
    spacing: float = GROWTH_SPACING,
) -> Medium:
    """The medium of one head.

    Args:
      gm: fraction of grey matter.
      wm: fraction of white matter.
      barrier: voxels nothing grows through (the falx).
      length: sqrt(D/rho) in white matter, mm.
      motility: factor on D, varying in space.
      proliferation: factor on rho, varying in space.
      spacing: mm.
    """
    tissue = (gm + wm > 0.5) & ~barrier
    # Sharpened, because the template's white matter is blurred into the cortex by averaging 152 heads.
    white = smoothstep(wm / np.maximum(gm + wm, np.float32(1e-6)), 0.3, 0.8)
    d = (white + (1 - white) / np.float32(WHITE_TO_GREY)) * motility * np.float32(length**2) * tissue
    faces = tuple(_harmonic(*_neighbours(d, axis)) for axis in range(3))
    return Medium(faces, proliferation * tissue, tissue, spacing)  # type: ignore[arg-type]


def _neighbours(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Views of the voxels on the lower and on the upper side of every face across an axis."""
    lower: list[slice] = [slice(None)] * 3
    upper = lower.copy()
    lower[axis], upper[axis] = slice(None, -1), slice(1, None)
    return values[tuple(lower)], values[tuple(upper)]


def _harmonic(a: Float32[np.ndarray, "..."], b: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Harmonic mean: the flux through two resistances in series; 0 when either is 0."""
    return 2 * a * b / np.maximum(a + b, np.float32(1e-12))


def visible(
    density: Float32[np.ndarray, "*shape"], cortex: Float32[np.ndarray, "*shape"]
) -> Float32[np.ndarray, "*shape"]:
    """Density as images show it: cortex swells less than white matter where cells are few.

    Args:
      density: cell density u.
      cortex: share of thin infiltration that stays hidden, 0 (white matter) to 1; u = 0 and u = 1 are unchanged.
    """
    return density * (1 - cortex * (1 - density))


def grow(
    medium: Medium,
    start: Float32[np.ndarray, "d h w"],
    volume: float,
    cortex: Float32[np.ndarray, "d h w"],
    level: float = OEDEMA_LEVEL,
) -> Float32[np.ndarray, "d h w"]:
    """Cell density at the moment when its visible part above `level` reaches a volume.

    Only the bounding box of the tumour is computed. Information travels one voxel a step, so a margin of as many voxels
    as there are steps until the next update loses nothing above 1e-4.

    Args:
      medium: the medium it grows in.
      start: initial density, 0 to 1.
      volume: ml; 0 lets nothing grow. Growth that is stuck ends after 2,000 steps.
      cortex: see `visible`.
      level: visible density above which a voxel counts.
    """
    u = start * medium.tissue
    dt = _time_step(medium)
    needed = volume * 1000 / medium.spacing**3
    for _ in range(_MAX_STEPS // _BLOCK):
        box = _bounding_box(u > np.float32(_NEGLIGIBLE), _BLOCK)
        if np.count_nonzero(visible(u[box], cortex[box]) > np.float32(level)) >= needed:
            break
        u[box] = _advance(np.ascontiguousarray(u[box]), medium, box, dt)
    return u


def _time_step(medium: Medium) -> float:
    """Largest stable step: dt <= h² / (6 D)."""
    fastest = max(float(face.max()) for face in medium.faces)
    return min(_STABILITY * medium.spacing**2 / (6 * max(fastest, 1e-12)), 0.2)


def _bounding_box(inside: Bool[np.ndarray, "d h w"], margin: int) -> Slices3:
    slices = []
    for axis in range(3):
        hit = np.flatnonzero(inside.any(axis=tuple(k for k in range(3) if k != axis)))
        slices.append(slice(max(int(hit[0]) - margin, 0), min(int(hit[-1]) + 1 + margin, inside.shape[axis])))
    return tuple(slices)  # type: ignore[return-value]


def _advance(u: Float32[np.ndarray, "d h w"], medium: Medium, box: Slices3, dt: float) -> Float32[np.ndarray, "d h w"]:
    """A block of Euler steps inside a box, without allocating inside the loop."""
    scale = np.float32(dt / medium.spacing**2)
    conductance = []
    for axis in range(3):
        part = list(box)
        part[axis] = slice(box[axis].start, box[axis].stop - 1)
        conductance.append(medium.faces[axis][tuple(part)] * scale)
    rate = medium.proliferation[box] * np.float32(dt)
    change, flux = np.empty_like(u), [np.empty_like(c) for c in conductance]
    for _ in range(_BLOCK):
        np.subtract(1, u, out=change)
        change *= u
        change *= rate
        for axis in range(3):
            lower, upper = _neighbours(u, axis)
            np.subtract(upper, lower, out=flux[axis])
            flux[axis] *= conductance[axis]
            gain, loss = _neighbours(change, axis)
            gain += flux[axis]
            loss -= flux[axis]
        u += change
    return u
