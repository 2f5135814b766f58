"""Bright structures that are not tumour, and structures that only one or two modalities show.

Without them "bright on T1CE" would be the whole task. Each is a map of fractions, and an intensity relative to white
matter in the modalities that show it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

from data_pipeline.conventions import Modality
from data_pipeline.phantom.grid import Grid, portable_exp, smooth_field, smoothstep


@dataclass(frozen=True)
class Confounder:
    """One structure that could be mistaken for tumour.

    Attributes:
      name: for display.
      fraction: share of every voxel that it fills, 0 to 1.
      intensity: relative to white matter, by modality; other modalities do not show it.
    """

    name: str
    fraction: Float32[np.ndarray, "d h w"]
    intensity: Mapping[Modality, float]


@dataclass(frozen=True)
class Surroundings:
    """The surroundings that confounders are placed in; all arrays [D, H, W] on `grid`.

    Attributes:
      grid: image grid.
      mask: brain.
      csf: fraction of fluid.
      wm: fraction of white matter.
      enhancing: vessels, sinuses and choroid plexus of the template.
      periventricular: closeness to a ventricle.
      depth: below the surface of the brain, mm.
      tumour: whole tumour.
      core: necrotic and enhancing core.
    """

    grid: Grid
    mask: Bool[np.ndarray, "d h w"]
    csf: Float32[np.ndarray, "d h w"]
    wm: Float32[np.ndarray, "d h w"]
    enhancing: Float32[np.ndarray, "d h w"]
    periventricular: Float32[np.ndarray, "d h w"]
    depth: Float32[np.ndarray, "d h w"]
    tumour: Bool[np.ndarray, "d h w"]
    core: Bool[np.ndarray, "d h w"]


def draw_confounders(rng: np.random.Generator, around: Surroundings) -> list[Confounder]:
    """All confounders of one case."""
    found = [
        _large_vessels(rng, around),
        _small_vessels(rng, around),
        _dura(rng, around),
        _white_matter_lesions(rng, around),
        _caps(rng, around),
        _satellite(rng, around),
        _blood(rng, around),
    ]
    return [c for c in found if c is not None]


def apply_confounders(
    image: Float32[np.ndarray, "d h w"], modality: Modality, confounders: list[Confounder]
) -> Float32[np.ndarray, "d h w"]:
    """Blend the confounders that a modality shows into its image."""
    for confounder in confounders:
        if modality in confounder.intensity:
            image = image + confounder.fraction * (np.float32(confounder.intensity[modality]) - image)
    return image


def _large_vessels(rng: np.random.Generator, around: Surroundings) -> Confounder:
    """Sinuses, large arteries and veins, and the choroid plexus; patchy."""
    patchy = smoothstep(smooth_field(rng, around.grid, 10.0), -1.5, 0.3)
    strength = np.float32(rng.uniform(0.5, 1.0))
    return Confounder("vessels", around.enhancing * patchy * strength, {"t1ce": rng.uniform(1.4, 2.2)})


def _small_vessels(rng: np.random.Generator, around: Surroundings) -> Confounder:
    """Cortical vessels: the curves on which two random fields vanish, mostly in sulci."""
    first, second = smooth_field(rng, around.grid, 6.0), smooth_field(rng, around.grid, 6.0)
    width = rng.uniform(0.1, 0.2)
    curve = portable_exp((first * first + second * second) / np.float32(-2 * width**2))
    where = np.clip(2 * around.csf, np.float32(rng.uniform(0.05, 0.3)), 1) * ~around.core
    return Confounder("cortical vessels", curve * where * around.mask, {"t1ce": rng.uniform(1.2, 1.9)})


def _dura(rng: np.random.Generator, around: Surroundings) -> Confounder | None:
    """Patches of dura that skull stripping left."""
    if rng.random() < 0.4:
        return None
    patches = smoothstep(smooth_field(rng, around.grid, 16.0), rng.uniform(0.3, 1.5), 2.0)
    shell = 1 - smoothstep(around.depth, 1.0, rng.uniform(2.0, 3.5))
    bright: dict[Modality, float] = {"t1ce": rng.uniform(1.1, 2.0)}
    if rng.random() < 0.4:
        bright |= {"t1": rng.uniform(1.0, 1.4), "t2": rng.uniform(0.8, 1.5), "flair": rng.uniform(0.9, 1.5)}
    return Confounder("dura", patches * shell * around.mask, bright)


def _white_matter_lesions(rng: np.random.Generator, around: Surroundings) -> Confounder | None:
    """White-matter hyperintensities of age: small, bright on FLAIR, some on T2."""
    if rng.random() < 0.35:
        return None
    field = smooth_field(rng, around.grid, rng.uniform(2.5, 5.0)) + np.float32(0.8) * around.periventricular
    spots = smoothstep(field, rng.uniform(2.3, 3.0), 3.3) * around.wm * ~around.core
    return Confounder("white-matter lesions", spots, {"flair": rng.uniform(1.35, 1.9), "t2": rng.uniform(1.3, 1.7)})


def _caps(rng: np.random.Generator, around: Surroundings) -> Confounder:
    """Periventricular caps and bands."""
    patchy = smoothstep(smooth_field(rng, around.grid, 12.0), -0.5, 1.5)
    band = smoothstep(around.periventricular, rng.uniform(0.3, 0.6), 1.0) * (1 - around.csf)
    strength = np.float32(rng.uniform(0.2, 1.0))
    return Confounder(
        "periventricular caps",
        band * patchy * strength * ~around.core,
        {"flair": rng.uniform(1.25, 1.7), "t2": rng.uniform(1.1, 1.4)},
    )


def _ball(
    rng: np.random.Generator, around: Surroundings, where: Bool[np.ndarray, "d h w"], radius: float
) -> Float32[np.ndarray, "d h w"] | None:
    """A lumpy blob (radius in mm) centred somewhere in a region."""
    candidates = np.flatnonzero(where)
    if not len(candidates):
        return None
    centre = np.unravel_index(candidates[rng.integers(len(candidates))], where.shape)
    squared = np.zeros(where.shape, np.float32)
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = -1
        offset = around.grid.spacing * (np.arange(where.shape[axis]) - centre[axis])
        squared = squared + (offset.astype(np.float32) ** 2).reshape(shape)
    lumpy = np.sqrt(squared) / np.float32(radius) + np.float32(0.2) * smooth_field(rng, around.grid, 5.0)
    return (1 - smoothstep(lumpy, 0.7, 1.3)) * around.mask


def _satellite(rng: np.random.Generator, around: Surroundings) -> Confounder | None:
    """A small nodule that only T1CE shows, outside the tumour and not part of it."""
    if rng.random() < 0.5:
        return None
    ball = _ball(rng, around, around.mask & ~around.tumour & (around.depth > 6), rng.uniform(2.0, 4.0))
    if ball is None:
        return None
    return Confounder("satellite", ball * ~around.tumour, {"t1ce": rng.uniform(1.15, 1.6)})


def _blood(rng: np.random.Generator, around: Surroundings) -> Confounder | None:
    """Blood: bright on both T1 and T1CE, sometimes dark on T2; usually in the core."""
    if rng.random() < 0.6:
        return None
    where = around.core if rng.random() < 0.8 else around.mask & ~around.tumour
    ball = _ball(rng, around, where, rng.uniform(2.5, 7.0))
    if ball is None:
        return None
    value = rng.uniform(1.15, 1.6)
    bright: dict[Modality, float] = {"t1": value, "t1ce": value * rng.uniform(0.95, 1.05)}
    if rng.random() < 0.5:
        bright |= {"t2": rng.uniform(0.7, 1.2), "flair": rng.uniform(0.8, 1.5)}
    return Confounder("blood", ball, bright)
