"""Intensity transforms; oracles: nnU-Net itself, kept in a file, scipy.ndimage, and hand-computed cases."""

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage as ndi

from data_pipeline.patches import intensity

GOLDEN = Path(__file__).parents[2] / "golden" / "augmentation.npz"
"""What nnU-Net gave; written by `make parity`."""
TRANSFORMED = {
    "blur (0.5, 1.0, 0.8)": lambda c: intensity.blur(c, (0.5, 1.0, 0.8)),
    "blur (0.75, 0.6, 0.95)": lambda c: intensity.blur(c, (0.75, 0.6, 0.95)),
    "contrast 0.75": lambda c: intensity.contrast(c, 0.75),
    "contrast 1.25": lambda c: intensity.contrast(c, 1.25),
    "gamma 0.7": lambda c: intensity.gamma(c, 0.7),
    "gamma 1.5": lambda c: intensity.gamma(c, 1.5),
    "inverted gamma 0.7": lambda c: intensity.gamma(c, 0.7, inverted=True),
    "inverted gamma 1.5": lambda c: intensity.gamma(c, 1.5, inverted=True),
    "low resolution (0.5, 0.5, 0.5)": lambda c: intensity.low_resolution(c, (0.5, 0.5, 0.5)),
    "low resolution (0.77, 0.77, 0.77)": lambda c: intensity.low_resolution(c, (0.77, 0.77, 0.77)),
    "low resolution (0.95, 1.0, 0.95)": lambda c: intensity.low_resolution(c, (0.95, 1.0, 0.95)),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transforms_are_nnunets(name):
    with np.load(GOLDEN) as golden:
        channel, expected = golden["image"][..., 0], golden[name]
    assert np.abs(expected - channel).max() > 0.05
    np.testing.assert_allclose(TRANSFORMED[name](channel), expected, atol=1e-5)


def smooth_channel(rng, shape=(12, 14, 10)):
    return ndi.gaussian_filter(rng.standard_normal(shape), 1).astype(np.float32)


@pytest.mark.parametrize(("sigma", "taps"), [(0.5, 3), (0.6, 5), (0.75, 5), (0.95, 7), (1.0, 7)])
def test_gaussian_kernel_has_nnunets_length_and_sums_to_one(sigma, taps):
    kernel = intensity.gaussian_kernel(sigma)
    assert len(kernel) == taps
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert kernel[taps // 2 + 1] / kernel[taps // 2] == pytest.approx(np.exp(-0.5 / sigma**2), rel=1e-5)


def test_blur_equals_scipy(rng):
    channel, sigmas = rng.standard_normal((9, 10, 11), dtype=np.float32), (0.5, 1.0, 0.8)
    expected = channel.astype(np.float64)
    for axis, sigma in enumerate(sigmas):
        expected = ndi.correlate1d(expected, intensity.gaussian_kernel(sigma), axis, mode="mirror")
    blurred = intensity.blur(channel, sigmas)
    np.testing.assert_allclose(blurred, expected, atol=1e-6)
    assert blurred.dtype == np.float32


def test_contrast_keeps_the_mean_and_never_leaves_the_range(rng):
    channel = smooth_channel(rng)
    weaker, stronger = intensity.contrast(channel, 0.75), intensity.contrast(channel, 1.25)
    np.testing.assert_allclose(weaker - channel.mean(), 0.75 * (channel - channel.mean()), atol=1e-6)
    assert stronger.max() == channel.max()
    assert stronger.min() == channel.min()
    unclipped = (stronger > channel.min()) & (stronger < channel.max())
    np.testing.assert_allclose((stronger - 1.25 * (channel - channel.mean()) - channel.mean())[unclipped], 0, atol=1e-6)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("exponent", [0.7, 1.5])
def test_gamma_keeps_mean_deviation_and_order(rng, exponent, inverted):
    channel = smooth_channel(rng)
    changed = intensity.gamma(channel, exponent, inverted=inverted)
    assert changed.mean() == pytest.approx(channel.mean(), abs=1e-6)
    assert changed.std() == pytest.approx(channel.std(), rel=1e-5)
    order = np.argsort(channel, axis=None)
    assert (np.diff(changed.ravel()[order]) >= -1e-6).all()
    assert np.abs(changed - channel).max() > 0.01


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_equals_its_formula(rng, inverted):
    """In double precision, with a power instead of logarithms; a fifth of the channel is air, as in a patch."""
    channel = smooth_channel(rng)
    channel[:, :3] = 0
    sign = -1 if inverted else 1
    values = sign * channel.astype(np.float64)
    power = ((values - values.min()) / np.ptp(values)) ** 0.8 * np.ptp(values)
    expected = sign * ((power - power.mean()) / power.std() * values.std() + values.mean())
    np.testing.assert_allclose(intensity.gamma(channel, 0.8, inverted=inverted), expected, rtol=1e-5, atol=1e-5)


def test_gamma_by_hand():
    """0, 1, 4 to the power 1/2, scaled to 0..1 and back: 0, 2, 4; then mean 5/3 and deviation sqrt(26/9) restored."""
    channel = np.array([0, 1, 4], np.float32).reshape(3, 1, 1)
    power = np.array([0.0, 2.0, 4.0])
    expected = (power - 2) / np.sqrt(8 / 3) * np.sqrt(26 / 9) + 5 / 3
    np.testing.assert_allclose(intensity.gamma(channel, 0.5).ravel(), expected, rtol=1e-6)


def test_inverted_gamma_bends_the_other_way(rng):
    """A power above 1 spreads the bright end of the image, or, inverted, its dark end."""
    ramp = np.linspace(0, 1, 101, dtype=np.float32).reshape(-1, 1, 1)
    plain = np.diff(intensity.gamma(ramp, 1.5).ravel())
    inverted = np.diff(intensity.gamma(ramp, 1.5, inverted=True).ravel())
    assert plain[-1] > plain[0]
    np.testing.assert_allclose(inverted, plain[::-1], atol=1e-6)


@pytest.mark.parametrize("transform", [lambda c: intensity.gamma(c, 1.3), lambda c: intensity.contrast(c, 1.2)])
def test_a_constant_channel_stays_constant(transform):
    """A missing modality is all zeros."""
    np.testing.assert_array_equal(transform(np.zeros((3, 4, 5), np.float32)), 0)


def test_low_resolution_by_hand():
    """4 voxels to 2: nearest takes voxels 1 and 3; their centres lie at 0.5 and 2.5, between them it is linear."""
    channel = np.array([0, 10, 20, 50], np.float32).reshape(4, 1, 1)
    np.testing.assert_allclose(intensity.low_resolution(channel, (0.5, 1.0, 1.0)).ravel(), [10, 20, 40, 50])
    np.testing.assert_array_equal(intensity.low_resolution(channel, (1.0, 0.5, 0.5)), channel)


def test_low_resolution_equals_scipy_zoom(rng):
    channel = rng.standard_normal((12, 10, 8), dtype=np.float32)
    small = channel[1::2, 1::2, 1::2]  # the centre of two voxels belongs to the second
    expected = ndi.zoom(small, 2, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(intensity.low_resolution(channel, (0.5, 0.5, 0.5)), expected, atol=1e-6)


def test_low_resolution_at_full_scale_changes_nothing(rng):
    channel = rng.standard_normal((5, 6, 7), dtype=np.float32)
    np.testing.assert_array_equal(intensity.low_resolution(channel, (1.0, 1.0, 1.0)), channel)
