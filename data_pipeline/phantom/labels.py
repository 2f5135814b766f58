"""The parts of a grown tumour: oedema, core and enhancing rim."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

from data_pipeline.phantom.grid import Grid, portable_exp, smooth_field
from data_pipeline.phantom.growth import OEDEMA_LEVEL
from data_pipeline.phantom.properties import TumourProperties

NCR, ED, ET = 1, 2, 3
"""Internal classes of `conventions.CLASSES`."""

_RUGGED = 0.45
"""SD of the logarithm of the density at the edge of the oedema: experts' outlines are not smooth."""
_CORE_WAVER = 0.07
"""SD of the density at the border of the core: cores are not concentric with their oedema."""


def roughen(
    rng: np.random.Generator, density: Float32[np.ndarray, "d h w"], grid: Grid
) -> Float32[np.ndarray, "d h w"]:
    """Density with a rugged edge; u = 0 and u = 1 are unchanged, and u stays within 0 to 1."""
    factor = portable_exp(np.float32(_RUGGED) * smooth_field(rng, grid, 3.0))
    return np.minimum(density * (1 + (factor - 1) * (1 - density)), 1)


def label_tumour(
    rngs: Mapping[str, np.random.Generator],
    properties: TumourProperties,
    density: Float32[np.ndarray, "d h w"],
    grid: Grid,
    mask: Bool[np.ndarray, "d h w"],
) -> UInt8[np.ndarray, "d h w"]:
    """Internal classes: oedema, core, and the enhancing rim of the core with its gaps.

    Args:
      rngs: generators named "core", "rim" and "gaps".
      properties: thresholds and thickness.
      density: cell density on `grid`.
      grid: a part of the image grid that holds the tumour.
      mask: brain.
    """
    whole = (density > np.float32(OEDEMA_LEVEL)) & mask
    waver = np.float32(_CORE_WAVER) * smooth_field(rngs["core"], grid, 8.0)
    core = whole & (density > np.float32(properties.core_level) + waver)
    depth = _depth_inside(core, grid.spacing)
    folds = np.float32(0.3) * smooth_field(rngs["rim"], grid, 9.0) + np.float32(0.35) * smooth_field(
        rngs["rim"], grid, 3.0
    )
    gaps = np.float32(0.8) * smooth_field(rngs["gaps"], grid, 7.0) + np.float32(0.6) * smooth_field(
        rngs["gaps"], grid, 3.0
    )
    if properties.enhancing:
        rim = core & (depth <= np.float32(properties.rim) * portable_exp(folds))
        enhancing = rim & (gaps > _quantile(gaps[rim], properties.gaps))
    else:
        enhancing = core & (gaps > _quantile(gaps[core], 1 - properties.spots))
    label = np.where(whole, np.uint8(ED), np.uint8(0))
    label[core] = NCR
    label[enhancing] = ET
    return label


def _depth_inside(core: Bool[np.ndarray, "d h w"], spacing: float) -> Float32[np.ndarray, "d h w"]:
    """Distance (mm) of the core's voxels to its border, computed in the core's bounding box only."""
    out = np.zeros(core.shape, np.float32)
    for box in ndimage.find_objects(core.astype(np.int8)):
        inside = np.pad(core[box], 1)
        out[box] = ndimage.distance_transform_edt(inside, sampling=spacing)[1:-1, 1:-1, 1:-1]
    return out


def _quantile(values: Float32[np.ndarray, "n"], q: float) -> np.float32:
    """Quantile; infinity if there are no values."""
    return np.float32(np.quantile(values, q)) if len(values) else np.float32(np.inf)
