"""From tissues to intensities in the four modalities: a partial-volume mixture with intensities drawn per case."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32

from data_pipeline.conventions import MODALITIES, Modality
from data_pipeline.phantom.grid import Grid, portable_exp, smooth_field, smoothstep

TISSUES: tuple[str, ...] = ("csf", "gm", "wm", "NCR", "ED", "ET")
"""Order of the tissue fractions."""

_T1 = {"csf": (0.35, 0.5), "gm": (0.65, 0.85), "NCR": (0.5, 0.85), "ED": (0.75, 0.92), "ET": (0.72, 0.92)}
RANGES: Mapping[Modality, Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "t1": _T1,
        "t1ce": _T1 | {"ET": (1.2, 1.7)},
        "t2": {"csf": (2.2, 2.9), "gm": (1.15, 1.4), "NCR": (1.6, 2.2), "ED": (1.4, 1.85), "ET": (1.4, 1.7)},
        "flair": {"csf": (0.4, 0.6), "gm": (1.0, 1.15), "NCR": (1.3, 2.1), "ED": (1.5, 2.1), "ET": (1.35, 1.8)},
    }
)
"""Ranges of intensity relative to white matter; every case draws from them."""
CYSTIC_NCR = (0.4, 0.8)
"""Range on FLAIR of a core filled with fluid."""
CYSTIC_FRACTION = 0.15

_MOSTLY_DARK: Mapping[Modality, tuple[str, ...]] = MappingProxyType(
    {"t1": ("ED", "ET"), "t1ce": ("ED",), "t2": (), "flair": ()}
)
"""Drawn as the darker of two: with single draws tumours were no darker than brain on T1, but in patients they are."""

_WHITE_SHIFT = 0.08
_OEDEMA_RAMP = (0.08, 0.26)
"""Cell densities between which tissue turns into oedema: infiltration has no sharp edge."""


@dataclass(frozen=True)
class Sharpness:
    """The width of sulci and the sharpness of the border between grey and white matter.

    Attributes:
      csf: fluid fractions of the template that become 0 and 1.
      wm: fractions of white matter among tissue that become 0 and 1.
    """

    csf: tuple[float, float]
    wm: tuple[float, float]


def draw_sharpness(rng: np.random.Generator) -> Sharpness:
    """One subject's sharpness; the template, an average of 152 heads, is blurrier than anyone's.

    Averaging also widens the cortex at the cost of the white matter between its folds, so the border lies below a
    fraction of one half.
    """
    border = rng.uniform(0.1, 0.35)
    return Sharpness(
        (rng.uniform(0.05, 0.2), rng.uniform(0.4, 0.7)), (border - _WHITE_SHIFT, 1 - border - _WHITE_SHIFT)
    )


def draw_sulci(
    rng: np.random.Generator, grid: Grid, depth: Float32[np.ndarray, "d h w"]
) -> Float32[np.ndarray, "d h w"]:
    """Fraction of fluid in folds that averaging erased from the template: thin sheets where a random field vanishes."""
    field = smooth_field(rng, grid, rng.uniform(6.0, 9.0))
    width, strength = rng.uniform(0.08, 0.2), rng.uniform(0.2, 0.9)
    sheets = portable_exp(-(field * field) / np.float32(2 * width**2))
    return np.float32(strength) * sheets * (1 - smoothstep(depth, 8.0, 20.0))


def tissue_maps(
    gm: Float32[np.ndarray, "d h w"],
    wm: Float32[np.ndarray, "d h w"],
    sulci: Float32[np.ndarray, "d h w"],
    sharpness: Sharpness,
) -> Float32[np.ndarray, "3 d h w"]:
    """Fractions of fluid, grey and white matter, which sum to one everywhere.

    Args:
      gm: grey matter of the template.
      wm: white matter of the template.
      sulci: extra fluid, which takes the place of cortex only.
      sharpness: undoes the template's blur.
    """
    tissue = np.maximum(gm + wm, np.float32(1e-6))
    csf = smoothstep(1 - tissue, *sharpness.csf)
    csf = csf + (1 - csf) * sulci * smoothstep(gm / tissue, 0.5, 0.9)
    white = smoothstep(wm / tissue, *sharpness.wm) * (1 - csf)
    return np.stack([csf, 1 - csf - white, white])


def insert_tumour(
    healthy: Float32[np.ndarray, "3 d h w"],
    density: Float32[np.ndarray, "d h w"],
    necrosis: Float32[np.ndarray, "d h w"],
    enhancing: Float32[np.ndarray, "d h w"],
) -> Float32[np.ndarray, "6 d h w"]:
    """Fractions of all tissues, which sum to one: the core replaces tissue; oedema replaces tissue but not fluid."""
    outside_core = 1 - necrosis - enhancing
    oedema = smoothstep(density, *_OEDEMA_RAMP) * (1 - healthy[0]) * outside_core
    left = outside_core - oedema
    # Oedema takes its part of grey and white matter only, so fluid keeps its full fraction outside the core.
    fluid = healthy[0] * outside_core
    solid = (left - fluid) / np.maximum(1 - healthy[0], np.float32(1e-6))
    return np.stack([fluid, healthy[1] * solid, healthy[2] * solid, necrosis, oedema, enhancing])


def draw_intensities(rng: np.random.Generator) -> Mapping[Modality, Mapping[str, float]]:
    """Intensities of one case, drawn independently; white matter is 1."""
    drawn = {}
    for modality in MODALITIES:
        drawn[modality] = {"wm": 1.0} | {t: rng.uniform(*r) for t, r in RANGES[modality].items()}
        for tissue in _MOSTLY_DARK[modality]:
            drawn[modality][tissue] = min(drawn[modality][tissue], rng.uniform(*RANGES[modality][tissue]))
    cystic, value = rng.random() < CYSTIC_FRACTION, rng.uniform(*CYSTIC_NCR)
    if cystic:
        drawn["flair"]["NCR"] = value
    return drawn


def mix(fractions: Float32[np.ndarray, "6 d h w"], intensities: Mapping[str, float]) -> Float32[np.ndarray, "d h w"]:
    """Noise-free image of one modality."""
    image = np.zeros(fractions.shape[1:], np.float32)
    for fraction, tissue in zip(fractions, TISSUES, strict=True):
        image += fraction * np.float32(intensities[tissue])
    return image
