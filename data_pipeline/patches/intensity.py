"""nnU-Net's intensity transforms of one channel: pure functions of the channel and their parameters.

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
    fast for the 3 to 7 taps of these sigmas, mainly because one slice at a time stays in the processor's cache.
    """
    depth, *within = (gaussian_kernel(sigma) for sigma in sigmas)
    padded = np.pad(channel, [(0, 0), *((len(kernel) // 2,) * 2 for kernel in within)], mode="reflect")
    slices, blurred = np.empty(channel.shape, np.float32), np.empty(channel.shape, np.float32)
    for plane, result in zip(padded, slices, strict=True):
        for axis, kernel in enumerate(within):
            size = channel.shape[1 + axis]
            plane = _weighted_sum(
                [plane[(slice(None),) * axis + (slice(k, k + size),)] for k in range(len(kernel))], kernel
            )
        result[:] = plane
    places = np.pad(np.arange(len(slices)), len(depth) // 2, mode="reflect")
    for d, result in enumerate(blurred):
        result[:] = _weighted_sum([slices[k] for k in places[d : d + len(depth)]], depth)
    return blurred


def _weighted_sum(shifted: Sequence[np.ndarray], kernel: Float32[np.ndarray, "k"]) -> Float32[np.ndarray, "h w"]:
    """The sum of the shifted arrays, one for each tap of a symmetric kernel, weighted by the taps."""
    radius = len(kernel) // 2
    result = shifted[radius] * kernel[radius]
    for k in range(1, radius + 1):
        pair = shifted[radius - k] + shifted[radius + k]
        pair *= kernel[radius + k]
        result += pair
    return result


def contrast(channel: Channel, factor: float) -> Channel:
    """Scales the distance to the mean and clips to the channel's former range."""
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
      inverted: acts on the negative image, which exchanges bright and dark.
    """
    mean, deviation = _moments(channel)
    low, high = channel.min(), channel.max()
    extent = high - low
    changed = np.empty(channel.shape, np.float32)
    with np.errstate(divide="ignore"):  # the logarithm of 0
        for plane, power in zip(channel, changed, strict=True):
            np.subtract(*((high, plane) if inverted else (plane, low)), out=power)
            power /= max(extent, SMALLEST)
            # NumPy vectorises these two, but not powers.
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
    """Mean and standard deviation, slice by slice, so that no array of deviations has to be stored."""
    mean = np.float32(channel.mean())
    squares = 0.0
    for plane in channel:
        deviation = plane - mean
        squares += float(np.einsum("hw,hw->", deviation, deviation))
    return mean, np.float32(np.sqrt(squares / channel.size))


def low_resolution(channel: Channel, scales: tuple[float, float, float]) -> Channel:
    """Samples each axis down to `scales` times as many voxels (nearest) and interpolates back linearly.

    Voxels are cells, not points: the grids cover the same box (PyTorch's `nearest-exact`, `align_corners=False`).
    """
    sizes = [max(1, round(size * scale)) for size, scale in zip(channel.shape, scales, strict=True)]
    small = channel
    for axis, (size, samples) in enumerate(zip(channel.shape, sizes, strict=True)):
        small = small.take(_nearest(size, samples), axis)
    rows, columns = (_linear(samples, size) for samples, size in zip(sizes[1:], channel.shape[1:], strict=True))
    slices, coarsened = np.empty((sizes[0], *channel.shape[1:]), np.float32), np.empty(channel.shape, np.float32)
    for plane, result in zip(small, slices, strict=True):
        # The last axis first, while there are still few rows.
        plane = _between(plane.take(columns[0], 1), plane.take(columns[1], 1), columns[2])
        result[:] = _between(plane.take(rows[0], 0), plane.take(rows[1], 0), rows[2][:, None])
    for lower, upper, weight, result in zip(*_linear(sizes[0], len(channel)), coarsened, strict=True):
        result[:] = _between(slices[lower], slices[upper], weight)
    return coarsened


def _between(
    lower: Float32[np.ndarray, "..."],
    upper: Float32[np.ndarray, "..."],
    weight: Float32[np.ndarray, "..."] | np.float32,
) -> Float32[np.ndarray, "..."]:
    """Linear interpolation with the weight of the upper value."""
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
