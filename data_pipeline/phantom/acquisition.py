"""From tissue to scan: texture, blur, slice thickness, bias field, Rician noise, gain."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int16
from scipy import ndimage

from data_pipeline.conventions import Modality
from data_pipeline.phantom.grid import Grid, portable_exp, smooth_field

TEXTURE = 0.05
LESION_TEXTURE = 0.10
_BIAS_STRENGTH = 0.12
_BIAS_SIGMA = 45.0  # mm
_NOISE_RANGE = (0.04, 0.06)  # of white matter
_THICK_CHANCE: Mapping[Modality, float] = {"t1": 0.1, "t1ce": 0.1, "t2": 0.45, "flair": 0.45}


@dataclass(frozen=True)
class Protocol:
    """How one modality of one case is acquired.

    Attributes:
      texture_sigma: grain of healthy tissue, mm.
      lesion_sigma: grain of the lesion, mm.
      blur: point spread, SD in mm.
      slab: slice thickness in mm; 0 for isotropic voxels.
      axis: the slice direction.
      noise: SD relative to white matter.
      gain: stored value of white matter.
    """

    texture_sigma: float
    lesion_sigma: float
    blur: float
    slab: float
    axis: int
    noise: float
    gain: float


def draw_protocol(rng: np.random.Generator, modality: Modality) -> Protocol:
    """Draw one acquisition."""
    thick = rng.random() < _THICK_CHANCE[modality]
    return Protocol(
        texture_sigma=rng.uniform(1.5, 3.0),
        lesion_sigma=rng.uniform(2.0, 5.0),
        blur=rng.uniform(0.3, 1.4),
        slab=rng.uniform(3.0, 6.0) if thick else 0.0,
        axis=2 if rng.random() < 0.8 else int(rng.integers(2)),
        noise=rng.uniform(*_NOISE_RANGE),
        gain=float(np.exp(rng.uniform(np.log(150), np.log(1200)))),
    )


def acquire(
    image: Float32[np.ndarray, "d h w"],
    protocol: Protocol,
    rngs: Mapping[str, np.random.Generator],
    grid: Grid,
    mask: Bool[np.ndarray, "d h w"],
    lesion: Float32[np.ndarray, "d h w"],
) -> Int16[np.ndarray, "d h w"]:
    """The stored scan of a noise-free image.

    Args:
      image: intensities, white matter 1.
      protocol: the acquisition.
      rngs: generators named "texture", "lesion", "bias" and "noise".
      grid: image grid.
      mask: brain; 0 outside it, at least 1 inside.
      lesion: fraction of every voxel that is tumour.
    """
    image = image * (1 + np.float32(TEXTURE) * _grain(rngs["texture"], image.shape, protocol.texture_sigma, grid))
    image *= 1 + np.float32(LESION_TEXTURE) * lesion * smooth_field(rngs["lesion"], grid, protocol.lesion_sigma)
    image *= portable_exp(np.float32(_BIAS_STRENGTH) * smooth_field(rngs["bias"], grid, _BIAS_SIGMA))
    image = ndimage.gaussian_filter(image, protocol.blur / grid.spacing, mode="nearest", truncate=3)
    if protocol.slab > grid.spacing:
        factor = max(2, round(protocol.slab / grid.spacing))
        image = _thick(rngs["noise"], image, factor, protocol)
    else:
        image = add_rician(rngs["noise"], image, protocol.noise)
    stored = np.clip(np.rint(image * np.float32(protocol.gain)), 1, np.iinfo(np.int16).max)
    return np.where(mask, stored, 0).astype(np.int16)


def _grain(rng: np.random.Generator, shape: tuple[int, ...], sigma: float, grid: Grid) -> Float32[np.ndarray, "d h w"]:
    """Fine texture of SD 1: white noise on the image grid, smoothed."""
    voxels = sigma / grid.spacing
    noise = rng.standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, voxels, mode="nearest", truncate=3)
    return smooth / np.float32(smooth.std(dtype=np.float64))


def add_rician(
    rng: np.random.Generator, image: Float32[np.ndarray, "d h w"], sd: float
) -> Float32[np.ndarray, "d h w"]:
    """Magnitude of a complex signal with Gaussian noise in both channels (Gudbjartsson & Patz 1995)."""
    real = image + np.float32(sd) * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = np.float32(sd) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.sqrt(real * real + imaginary * imaginary)


def _thick(
    rng: np.random.Generator, image: Float32[np.ndarray, "d h w"], factor: int, protocol: Protocol
) -> Float32[np.ndarray, "d h w"]:
    """Average slabs of `factor` slices, add the noise there, and interpolate back between slab centres."""
    moved = np.moveaxis(image, protocol.axis, 0)
    count = -(-len(moved) // factor)
    padded = np.concatenate([moved, np.repeat(moved[-1:], count * factor - len(moved), axis=0)])
    slabs = padded.reshape(count, factor, *moved.shape[1:]).mean(1, dtype=np.float32)
    slabs = add_rician(rng, slabs, protocol.noise)
    position = (np.arange(len(moved)) - (factor - 1) / 2) / factor
    below = np.clip(np.floor(position).astype(int), 0, count - 1)
    above = np.clip(below + 1, 0, count - 1)
    weight = np.clip(position - below, 0, 1).astype(np.float32)[:, None, None]
    return np.ascontiguousarray(np.moveaxis(slabs[below] * (1 - weight) + slabs[above] * weight, 0, protocol.axis))
