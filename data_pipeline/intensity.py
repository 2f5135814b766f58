"""nnU-Net's intensity transforms of one channel, each a pure function of the channel and its parameters.

Source: batchgeneratorsv2, `transforms/intensity`, `noise/gaussian_blur.py` and `spatial/low_resolution.py`.
Everything stays float32. Statistics are taken over the whole patch, air included, as nnU-Net takes them.
"""

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

    Equal to `scipy.ndimage.correlate1d(mode="mirror")` along each axis. Summing shifted arrays is 3 times as fast for
    the 3 to 7 taps of these sigmas.
    """
    for axis, sigma in enumerate(sigmas):
        kernel = gaussian_kernel(sigma)
        radius, size = len(kernel) // 2, channel.shape[axis]
        padded = np.pad(channel, [(radius, radius) if a == axis else (0, 0) for a in range(3)], mode="reflect")
        shifted = [padded[(slice(None),) * axis + (slice(k, k + size),)] for k in range(len(kernel))]
        channel = shifted[radius] * kernel[radius]
        for k in range(1, radius + 1):
            pair = shifted[radius - k] + shifted[radius + k]
            pair *= kernel[radius + k]
            channel += pair
    return channel


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
    if inverted:
        return -gamma(-channel, exponent)
    mean, deviation, low = channel.mean(), channel.std(), channel.min()
    extent = channel.max() - low
    changed = channel - low
    changed /= max(extent, SMALLEST)
    np.power(changed, np.float32(exponent), out=changed)
    changed *= extent
    changed -= changed.mean()
    changed *= deviation / max(changed.std(), SMALLEST)
    changed += mean
    return changed


def low_resolution(channel: Channel, scales: tuple[float, float, float]) -> Channel:
    """Samples `scales` times as many voxels along each axis (nearest) and interpolates back linearly.

    Voxels are cells, not points: their centres keep their place (PyTorch's `nearest-exact`, and `align_corners=False`).
    """
    sizes = [max(1, round(size * scale)) for size, scale in zip(channel.shape, scales, strict=True)]
    small = channel[np.ix_(*(_nearest(size, n) for size, n in zip(channel.shape, sizes, strict=True)))]
    for axis in (2, 1, 0):  # the last axis first, while there is least to interpolate along the slow axis
        lower, upper, weight = _linear(small.shape[axis], channel.shape[axis])
        weight = weight.reshape([-1 if a == axis else 1 for a in range(3)])
        below, above = small.take(lower, axis), small.take(upper, axis)
        above -= below
        above *= weight
        small = np.add(below, above, out=below)
    return small


def _nearest(size: int, samples: int) -> Int[np.ndarray, "samples"]:
    """Index of the voxel that holds the centre of each of `samples` equal cells along `size` voxels."""
    return np.floor((np.arange(samples) + 0.5) * (size / samples)).astype(np.intp)


def _linear(samples: int, size: int) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], Float32[np.ndarray, "n"]]:
    """Lower and upper sample of each of `size` voxels, and the weight of the upper one."""
    position = np.maximum((np.arange(size) + 0.5) * (samples / size) - 0.5, 0)
    lower = np.minimum(position.astype(np.intp), samples - 1)
    return lower, np.minimum(lower + 1, samples - 1), (position - lower).astype(np.float32)
