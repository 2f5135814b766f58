"""nnU-Net's training augmentation: how often each transform is drawn, with which parameters, and in which order.

The transforms are pure functions in `spatial` and `intensity`; all randomness is here, so that a test can apply a
transform with parameters of its choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float32, UInt8

from data_pipeline.conventions import OUTSIDE_BRAIN, Index3, Shape3
from data_pipeline.errors import InputError
from data_pipeline.patches import intensity
from data_pipeline.patches.spatial import (
    Image,
    Label,
    Matrix,
    cut_patch,
    cut_turned,
    enlarged_patch,
    flat_axis,
    mirror,
    rotation_zoom,
)

Range = tuple[float, float]


@dataclass(frozen=True)
class Augmentation:
    """How often each transform is applied, and with which parameters; the defaults are nnU-Net v2's.

    A plain number is a probability: of the whole transform or, for `*_channel`, of each channel once the transform is
    drawn. A pair is the range that a parameter is drawn from. 0 switches a transform off; rotation, zoom, low
    resolution and blur cost most, so on a small CPU these four may be set to 0.

    Attributes:
      rotation: probability of turning about all three axes, by an angle each.
      rotation_degrees: range of the angle about an axis.
      flat_rotation_degrees: the same for flat patches (`spatial.flat_axis`), which turn about their thin axis only.
      zoom: probability of scaling, equally along all axes except a flat patch's thin one.
      zoom_range: voxels of the volume per voxel of the patch: above 1 makes things smaller.
      noise: probability of adding Gaussian noise to all channels.
      noise_sigma: standard deviation of the noise, in units of the normalised image.
      blur: probability of Gaussian blur.
      blur_channel: probability of blurring each channel, once blur is drawn.
      blur_sigma: standard deviation in voxels, drawn for every channel and axis.
      brightness: probability of multiplying each channel by a factor.
      brightness_factor: range of the factor.
      contrast: probability of scaling each channel about its mean within its range.
      contrast_factor: range of the factor.
      low_resolution: probability of sampling more coarsely and interpolating back.
      low_resolution_channel: probability for each channel, once low resolution is drawn.
      low_resolution_scale: fraction of the voxels kept along each axis except a flat patch's thin one.
      inverted_gamma: probability of the gamma transform of the negative image.
      gamma: probability of the gamma transform; both keep each channel's mean and standard deviation.
      gamma_exponent: range of the exponent.
      mirror: probability of mirroring, for each axis.
    """

    rotation: float = 0.2
    rotation_degrees: Range = (-30.0, 30.0)
    flat_rotation_degrees: Range = (-180.0, 180.0)
    zoom: float = 0.2
    zoom_range: Range = (0.7, 1.4)
    noise: float = 0.1
    noise_sigma: Range = (0.0, 0.1)
    blur: float = 0.2
    blur_channel: float = 0.5
    blur_sigma: Range = (0.5, 1.0)
    brightness: float = 0.15
    brightness_factor: Range = (0.75, 1.25)
    contrast: float = 0.15
    contrast_factor: Range = (0.75, 1.25)
    low_resolution: float = 0.25
    low_resolution_channel: float = 0.5
    low_resolution_scale: Range = (0.5, 1.0)
    inverted_gamma: float = 0.1
    gamma: float = 0.3
    gamma_exponent: Range = (0.7, 1.5)
    mirror: float = 0.5

    def __post_init__(self) -> None:
        """Raises InputError for a probability outside 0..1 and for a range that is reversed or not positive."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Sequence):
                _check_range(field.name, value)
            elif not 0 <= value <= 1:
                raise InputError(f"augmentation.{field.name} is {value}, but it is a probability: use 0 to 1")


def _check_range(name: str, value: Sequence[float]) -> None:
    if len(value) != 2 or value[0] > value[1]:
        raise InputError(f"augmentation.{name} is {value}, expected two numbers, the smaller first")
    may_be_zero = name == "noise_sigma"
    if "degrees" not in name and (value[0] < 0 or (value[0] == 0 and not may_be_zero)):
        raise InputError(
            f"augmentation.{name} is {value}, expected {'no negative' if may_be_zero else 'positive'} numbers"
        )
    if name == "low_resolution_scale" and value[1] > 1:
        raise InputError(f"augmentation.{name} is {value}, expected at most 1, which keeps every voxel")


def around_one(bounds: Range, rng: np.random.Generator) -> float:
    """A factor below 1 as often as above 1, uniform on either side (batchgeneratorsv2 `BGContrast`)."""
    low, high = bounds
    if low < 1 and rng.random() < 0.5:
        return rng.uniform(low, min(high, 1))
    return rng.uniform(max(low, 1), high) if high > 1 else rng.uniform(low, high)


def reach(patch: Shape3, settings: Augmentation) -> Shape3:
    """Size of the box around a patch that its augmentation reads from; it also limits where patches may lie."""
    flat = flat_axis(patch) is not None
    return enlarged_patch(patch, settings.flat_rotation_degrees if flat else settings.rotation_degrees)


def draw_rotation_zoom(patch: Shape3, settings: Augmentation, rng: np.random.Generator) -> Matrix | None:
    """A random matrix of rotation and zoom for `spatial.cut_turned`; None if neither was drawn."""
    rotate, zoom = rng.random() < settings.rotation, rng.random() < settings.zoom
    if not (rotate or zoom):
        return None
    thin = flat_axis(patch)
    degrees = settings.rotation_degrees if thin is None else settings.flat_rotation_degrees
    factor = rng.uniform(*settings.zoom_range) if zoom else 1.0
    return rotation_zoom(
        [rng.uniform(*degrees) if rotate and thin in (None, axis) else 0.0 for axis in range(3)],
        [1.0 if axis == thin else factor for axis in range(3)],
    )


def add_noise(image: Image, settings: Augmentation, rng: np.random.Generator) -> Image:
    """Adds Gaussian noise, independent in every channel, with probability `noise`. Changes `image`."""
    if rng.random() < settings.noise:
        sigma = rng.uniform(*settings.noise_sigma)
        for c in range(image.shape[3]):
            image[..., c] += intensity.noise_field(image.shape[:3], sigma, rng)
    return image


def random_blur(image: Image, settings: Augmentation, rng: np.random.Generator) -> Image:
    """Blurs channels with probability `blur` and then `blur_channel` each. Changes `image`."""
    if rng.random() < settings.blur:
        for c in np.flatnonzero(rng.random(image.shape[3]) < settings.blur_channel):
            x, y, z = rng.uniform(*settings.blur_sigma, size=3)
            image[..., c] = intensity.blur(image[..., c], (x, y, z))
    return image


def random_brightness(image: Image, settings: Augmentation, rng: np.random.Generator) -> Image:
    """Multiplies every channel by its own factor with probability `brightness`. Changes `image`."""
    if rng.random() < settings.brightness:
        for c in range(image.shape[3]):
            image[..., c] *= np.float32(around_one(settings.brightness_factor, rng))
    return image


def random_contrast(image: Image, settings: Augmentation, rng: np.random.Generator) -> Image:
    """Changes every channel's contrast by its own factor with probability `contrast`. Changes `image`."""
    if rng.random() < settings.contrast:
        for c in range(image.shape[3]):
            image[..., c] = intensity.contrast(image[..., c], around_one(settings.contrast_factor, rng))
    return image


def random_low_resolution(image: Image, settings: Augmentation, rng: np.random.Generator) -> Image:
    """Coarsens channels with probability `low_resolution`, then `low_resolution_channel` each. Changes `image`."""
    if rng.random() < settings.low_resolution:
        d, h, w = image.shape[:3]
        thin = flat_axis((d, h, w))
        for c in np.flatnonzero(rng.random(image.shape[3]) < settings.low_resolution_channel):
            scale = rng.uniform(*settings.low_resolution_scale)
            x, y, z = (1.0 if axis == thin else scale for axis in range(3))
            image[..., c] = intensity.low_resolution(image[..., c], (x, y, z))
    return image


def random_gamma(image: Image, settings: Augmentation, rng: np.random.Generator) -> Image:
    """Gamma of the negative image, then of the image, each with its probability, per channel. Changes `image`."""
    for probability, inverted in ((settings.inverted_gamma, True), (settings.gamma, False)):
        if rng.random() < probability:
            for c in range(image.shape[3]):
                exponent = around_one(settings.gamma_exponent, rng)
                image[..., c] = intensity.gamma(image[..., c], exponent, inverted=inverted)
    return image


def finish_patch(image: Image, label: Label) -> tuple[Image, Label]:
    """Sets the image to 0 and the label to background where the label is OUTSIDE_BRAIN.

    Returns:
      Contiguous, channels-last copies, whatever the strides of the inputs.
    """
    inside = label != OUTSIDE_BRAIN
    finished = np.empty(image.shape, np.float32)
    for depth, plane in enumerate(finished):  # a slice stays in the processor's cache until its last channel
        weight = inside[depth].astype(np.float32)
        for c in range(image.shape[3]):
            np.multiply(image[depth, ..., c], weight, out=plane[..., c])
    return finished, np.ascontiguousarray(label * inside)


def augment_patch(
    images: Float32[np.ndarray, "D H W c"],
    label: UInt8[np.ndarray, "D H W"],
    start: Index3,
    patch: Shape3,
    settings: Augmentation,
    rng: np.random.Generator,
) -> tuple[Image, Label]:
    """Cuts the patch whose first voxel is `start` out of a volume and augments it.

    Takes the volume, not just the patch, because rotation and zoom read beyond the patch's border, as far as `reach`.
    The volume is not changed.

    Returns:
      image [*patch, c] float32, 0 outside the brain; label [*patch] uint8 in 0..3.
    """
    matrix = draw_rotation_zoom(patch, settings, rng)
    if matrix is None:
        image, classes = cut_patch(images, label, start, patch)
    else:
        image, classes = cut_turned(images, label, start, patch, reach(patch, settings), matrix)
    for transform in (
        add_noise,
        random_blur,
        random_brightness,
        random_contrast,
        random_low_resolution,
        random_gamma,
    ):
        image = transform(image, settings, rng)
    x, y, z = (bool(draw < settings.mirror) for draw in rng.random(3))
    return finish_patch(*mirror(image, classes, (x, y, z)))
