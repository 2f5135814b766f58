"""nnU-Net's intensity transforms of one channel, each a pure function of the channel and its parameters.

Source: batchgeneratorsv2, `transforms/intensity`, `noise/gaussian_blur.py` and `spatial/low_resolution.py`.
Everything stays float32. Statistics are taken over the whole patch, air included, as nnU-Net takes them.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int

Channel = Float32[np.ndarray, "d h w"]

SMALLEST = np.float32(1e-7)
"""Keeps a constant channel from being divided by zero."""


def noise_field(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> Float32[np.ndarray, "..."]:
    """Gaussian noise of standard deviation `sigma`, which nnU-Net calls the variance; every channel gets its own."""
    field = rng.standard_normal(shape, dtype=np.float32)
    field *= np.float32(sigma)
    return field


def gaussian_kernel(sigma: float) -> Float32[np.ndarray, "k"]:
    """Normalised samples of a Gaussian; the length is the odd number nearest to 6 sigma + 1/2."""
    radius = int(3 * sigma + 0.25)
    x = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (x / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def blur(channel: Channel, sigmas: tuple[float, float, float]) -> Channel:
    """Gaussian blur with one sigma (voxels) per axis; the border is mirrored about the last voxel.

    Equal to `scipy.ndimage.correlate1d(mode="mirror")` along each axis. Summing shifted arrays is several times as
    fast for the 3 to 7 taps of these sigmas, above all where a slice at a time stays in the processor's cache.
    """
    across, *within = (gaussian_kernel(sigma) for sigma in sigmas)
    slices = np.empty(channel.shape, np.float32)
    for plane, blurred in zip(channel, slices, strict=True):
        for axis, kernel in enumerate(within):
            radius, size = len(kernel) // 2, plane.shape[axis]
            padded = np.pad(plane, [(radius, radius) if a == axis else (0, 0) for a in range(2)], mode="reflect")
            shifted = [padded[(slice(None),) * axis + (slice(k, k + size),)] for k in range(len(kernel))]
            plane = _weighted_sum(shifted, kernel)
        blurred[:] = plane
    places = np.pad(np.arange(len(slices)), len(across) // 2, mode="reflect")
    return np.stack(
        [_weighted_sum([slices[k] for k in places[d : d + len(across)]], across) for d in range(len(slices))]
    )


def _weighted_sum(
    shifted: Sequence[Float32[np.ndarray, "h w"]], kernel: Float32[np.ndarray, "k"]
) -> Float32[np.ndarray, "h w"]:
    """One array for every tap of a symmetric kernel."""
    radius = len(kernel) // 2
    result = shifted[radius] * kernel[radius]
    for k in range(1, radius + 1):
        pair = shifted[radius - k] + shifted[radius + k]
        pair *= kernel[radius + k]
        result += pair
    return result


def contrast(channel: Channel, factor: float) -> Channel:
    """Scales the distance to the mean and clips to the range the channel had."""
    low, high, mean = channel.min(), channel.max(), channel.mean()
    changed = channel - mean
    changed *= np.float32(factor)
    changed += mean
    return np.clip(changed, low, high, out=changed)


def gamma(channel: Channel, exponent: float, *, inverted: bool = False) -> Channel:
    """Raises the channel, scaled to 0..1, to a power; then restores its mean and standard deviation.

    Args:
      channel: any range.
      exponent: below 1 brightens.
      inverted: acts on the negative image, so that bright and dark change places.
    """
    mean, deviation = _moments(channel)
    low, high = channel.min(), channel.max()
    extent = high - low
    changed = np.empty(channel.shape, np.float32)
    with np.errstate(divide="ignore"):  # the logarithm of 0
        for plane, power in zip(channel, changed, strict=True):
            np.subtract(*((high, plane) if inverted else (plane, low)), out=power)
            power /= max(extent, SMALLEST)
            # NumPy has vector instructions for these two, but none for a power.
            np.log(power, out=power)
            power *= np.float32(exponent)
            np.exp(power, out=power)
    power_mean, power_deviation = _moments(changed)
    scale = extent * deviation / max(extent * power_deviation, SMALLEST)
    changed -= power_mean
    changed *= -scale if inverted else scale
    changed += mean
    return changed


def _moments(channel: Channel) -> tuple[np.float32, np.float32]:
    """Mean and standard deviation, slice by slice, so that no deviation from the mean has to be stored."""
    mean = channel.mean()
    squares = 0.0
    for plane in channel:
        deviation = plane - mean
        squares += float(np.einsum("hw,hw->", deviation, deviation))
    return mean, np.float32(np.sqrt(squares / channel.size))


def low_resolution(channel: Channel, scales: tuple[float, float, float]) -> Channel:
    """Samples `scales` times as many voxels along each axis (nearest) and interpolates back linearly.

    Voxels are cells, not points: their centres keep their place (PyTorch's `nearest-exact`, and `align_corners=False`).
    """
    sizes = [max(1, round(size * scale)) for size, scale in zip(channel.shape, scales, strict=True)]
    small = channel
    for axis, (size, samples) in enumerate(zip(channel.shape, sizes, strict=True)):
        small = small.take(_nearest(size, samples), axis)
    for axis in (2, 1):  # the last axis first, while there is least to interpolate along the slow axis
        lower, upper, weight = _linear(small.shape[axis], channel.shape[axis])
        weight = weight[:, None] if axis == 1 else weight
        small = np.stack([_between(p.take(lower, axis - 1), p.take(upper, axis - 1), weight) for p in small])
    lines = zip(*_linear(len(small), len(channel)), strict=True)
    return np.stack([_between(small[lower], small[upper], weight) for lower, upper, weight in lines])


def _between(
    lower: Float32[np.ndarray, "..."],
    upper: Float32[np.ndarray, "..."],
    weight: Float32[np.ndarray, "..."] | np.float32,
) -> Float32[np.ndarray, "..."]:
    """Linear interpolation; `weight` is the upper one's."""
    result = upper - lower
    result *= weight
    result += lower
    return result


def _nearest(size: int, samples: int) -> Int[np.ndarray, "samples"]:
    """Index of the voxel that holds the centre of each of `samples` equal cells along `size` voxels."""
    return np.floor((np.arange(samples) + 0.5) * (size / samples)).astype(np.intp)


def _linear(samples: int, size: int) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], Float32[np.ndarray, "n"]]:
    """Lower and upper sample of each of `size` voxels, and the weight of the upper one."""
    position = np.maximum((np.arange(size) + 0.5) * (samples / size) - 0.5, 0)
    lower = np.minimum(position.astype(np.intp), samples - 1)
    return lower, np.minimum(lower + 1, samples - 1), (position - lower).astype(np.float32)
