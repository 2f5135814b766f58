"""Oracles: scipy.ndimage for resampling and blur, the definitions of nnU-Net's transforms for the rest."""

from dataclasses import fields, replace

import numpy as np
import pytest
import scipy.ndimage as ndi
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import augment, intensity
from data_pipeline.augment import Augmentation, augment_patch, finish_patch
from data_pipeline.conventions import OUTSIDE_BRAIN
from data_pipeline.errors import InputError
from data_pipeline.sampling import (
    choose_start,
    foreground_start,
    is_foreground_position,
    read_box,
    uniform_start,
)
from data_pipeline.spatial import cut_patch, mirror, patch_origin, resample, rotation_zoom
from tests.data_pipeline.fakes import make_case

OFF = Augmentation(**{f.name: 0.0 for f in fields(Augmentation) if isinstance(f.default, float)})
"""Every probability zero."""

SHAPE = (18, 20, 16)


def volume(rng, shape=SHAPE, channels=4):
    """A random image with negative values inside a brain, zero in the rim around it, and a label with all classes."""
    label = np.full(shape, OUTSIDE_BRAIN, np.uint8)
    inner = tuple(slice(2, -2) for _ in shape)
    label[inner] = rng.integers(0, 4, label[inner].shape)
    image = rng.standard_normal((*shape, channels), dtype=np.float32) * (label != OUTSIDE_BRAIN)[..., None]
    return image.astype(np.float32), label


def smooth_channel(rng, shape=(12, 14, 10)):
    return ndi.gaussian_filter(rng.standard_normal(shape), 1).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    ("batch", "fraction", "forced"),
    [
        (2, 1 / 3, [1]),  # nnU-Net's default batch
        (3, 1 / 3, [2]),
        (8, 1 / 3, [5, 6, 7]),
        (1, 1 / 3, []),
        (4, 0.0, []),
        (4, 1.0, [0, 1, 2, 3]),
    ],
)
def test_the_last_third_of_a_batch_is_foreground(batch, fraction, forced):
    assert [i for i in range(batch) if is_foreground_position(i, batch, fraction)] == forced


def test_uniform_start_covers_the_volume_and_stays_inside(rng):
    starts = np.array([uniform_start((9, 8, 4), (6, 8, 7), rng) for _ in range(200)])
    assert set(starts[:, 0]) == {0, 1, 2, 3}
    assert set(starts[:, 1]) == {0}
    assert set(starts[:, 2]) == {-1}  # 3 voxels too few: 1 before, 2 behind


def test_foreground_classes_are_drawn_equally_often_and_their_voxels_too(rng):
    """One class has 1 voxel, another 99: each class is drawn half of the time. Tolerance: 4 standard deviations."""
    voxels = {1: np.array([[5, 5, 5]]), 2: np.zeros((0, 3), int), 3: np.stack([np.arange(99)] * 3, axis=1) + 10}
    starts = [foreground_start(voxels, (4, 6, 8), rng) for _ in range(2000)]
    centres = np.add(starts, [2, 3, 4])
    assert abs((centres[:, 0] == 5).mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    assert len(np.unique(centres[:, 0])) > 95


def test_a_case_without_tumour_gives_a_uniform_patch(tmp_path, rng):
    case = make_case(tmp_path, 0)
    np.save(case.folder / "label.npy", np.zeros(case.shape, np.uint8))
    assert foreground_start(case.foreground(), (4, 4, 4), rng) is None
    start = choose_start(case, (20, 22, 18), True, rng)
    assert start == (0, 0, 0)


@settings(max_examples=50, deadline=None)
@given(
    start=st.tuples(*[st.integers(-9, 9)] * 3),
    size=st.tuples(*[st.integers(1, 9)] * 3),
)
def test_read_box_equals_a_slice_of_the_padded_volume(start, size):
    whole = np.arange(5 * 4 * 6 * 2).reshape(5, 4, 6, 2)
    padded = np.pad(whole, [(20, 20)] * 3 + [(0, 0)], constant_values=-1)
    expected = padded[tuple(slice(s + 20, s + 20 + n) for s, n in zip(start, size, strict=True))]
    np.testing.assert_array_equal(read_box(whole, start, size, -1), expected)


def test_read_box_inside_the_volume_copies_nothing():
    whole = np.zeros((5, 5, 5))
    assert read_box(whole, (1, 1, 1), (3, 3, 3), 0).base is whole


# ----------------------------------------------------------------------------------------------------------- spatial


def test_rotation_keeps_lengths_and_zoom_scales_them():
    matrix = rotation_zoom((10.0, -20.0, 30.0), 1.25)
    np.testing.assert_allclose(matrix @ matrix.T, 1.25**2 * np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1.25**3)
    np.testing.assert_allclose(rotation_zoom((0.0, 0.0, 90.0), 1.0) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


@pytest.mark.parametrize("start", [(2, 3, 1), (-4, 5, 9)])
def test_identity_matrix_equals_the_plain_cut(rng, start):
    image, label = volume(rng)
    plain = cut_patch(image, label, start, (8, 9, 10))
    turned = cut_patch(image, label, start, (8, 9, 10), rotation_zoom((0.0, 0.0, 0.0), 1.0))
    np.testing.assert_array_equal(turned[0], plain[0])
    np.testing.assert_array_equal(turned[1], plain[1])


@pytest.mark.parametrize("zoom", [0.7, 1.0, 1.4])
def test_resampling_equals_scipy(rng, zoom):
    image, label = volume(rng)
    patch = (11, 12, 13)
    matrix = rotation_zoom((25.0, -17.0, 8.0), zoom)
    origin = patch_origin(matrix, (5, 3, 4), patch)
    got_image, got_label = resample(image, label, matrix, origin, patch)
    for c in range(4):
        expected = ndi.affine_transform(
            image[..., c].astype(np.float64), matrix, origin, output_shape=patch, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(got_image[..., c], expected, atol=2e-5)
    nearest = ndi.affine_transform(
        label, matrix, origin, output_shape=patch, order=0, mode="grid-constant", cval=OUTSIDE_BRAIN
    )
    np.testing.assert_array_equal(got_label, nearest)


def test_the_centre_stays_where_it_is_when_a_patch_turns(rng):
    image, label = volume(rng)
    start, patch = (4, 5, 3), (9, 9, 9)  # odd sizes: the centre is a voxel
    turned = cut_patch(image, label, start, patch, rotation_zoom((30.0, -30.0, 30.0), 1.4))
    np.testing.assert_allclose(turned[0][4, 4, 4], image[8, 9, 7], atol=1e-5)
    assert turned[1][4, 4, 4] == label[8, 9, 7]


def test_rotation_shows_no_border_inside_the_volume():
    """The corners of a turned patch come from beyond the patch, not from padding."""
    image, label = np.ones((40, 40, 40, 1), np.float32), np.zeros((40, 40, 40), np.uint8)
    turned = cut_patch(image, label, (14, 14, 14), (12, 12, 12), rotation_zoom((30.0, 30.0, 30.0), 1.4))
    np.testing.assert_allclose(turned[0], 1, atol=1e-5)
    assert not turned[1].any()


def test_image_and_label_move_together():
    """The image holds the label's code, in large blocks: away from block borders both must agree voxel by voxel."""
    blocks = np.kron(np.random.default_rng(1).integers(0, 4, (4, 4, 4)), np.ones((8, 8, 8), int)).astype(np.uint8)
    coded = np.repeat(blocks[..., None], 2, axis=3).astype(np.float32)
    geometry = replace(OFF, rotation=1.0, zoom=1.0, mirror=0.5)
    for seed in range(8):
        image, label = augment_patch(coded, blocks, (6, 7, 8), (18, 17, 16), geometry, np.random.default_rng(seed))
        whole = np.abs(image - np.round(image)) < 1e-5  # not interpolated between blocks
        agrees = np.round(image) == label[..., None]
        assert whole.mean() > 0.2
        assert agrees[whole].mean() > 0.98  # a mixture of blocks may be whole by chance: (0 + 2) / 2
        assert not np.array_equal(label, blocks[6:24, 7:24, 8:24])


def test_mirror_reverses_the_chosen_axes_as_views(rng):
    image, label = volume(rng)
    flipped = mirror(image, label, (True, False, True))
    np.testing.assert_array_equal(flipped[0], np.flip(image, (0, 2)))
    np.testing.assert_array_equal(flipped[1], np.flip(label, (0, 2)))
    assert np.shares_memory(flipped[0], image)
    for once, again in zip(mirror(*flipped, (True, False, True)), (image, label), strict=True):
        np.testing.assert_array_equal(once, again)


def test_each_axis_is_mirrored_half_of_the_time(rng):
    image = np.moveaxis(np.indices((2, 2, 2)), 0, -1).astype(np.float32)
    label = np.zeros((2, 2, 2), np.uint8)
    corners = np.array(
        [
            augment_patch(image, label, (0, 0, 0), (2, 2, 2), replace(OFF, mirror=0.5), rng)[0][0, 0, 0]
            for _ in range(800)
        ]
    )
    assert np.abs(corners.mean(axis=0) - 0.5).max() < 4 * 0.5 / np.sqrt(800)
    assert len(np.unique(corners, axis=0)) == 8


# --------------------------------------------------------------------------------------------------------- intensity


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
    np.testing.assert_allclose(intensity.low_resolution(channel, 0.5).ravel(), [10, 20, 40, 50])


def test_low_resolution_equals_scipy_zoom(rng):
    channel = rng.standard_normal((12, 10, 8), dtype=np.float32)
    small = channel[1::2, 1::2, 1::2]  # the centre of two voxels belongs to the second
    expected = ndi.zoom(small, 2, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(intensity.low_resolution(channel, 0.5), expected, atol=1e-6)


def test_low_resolution_at_full_scale_changes_nothing(rng):
    channel = rng.standard_normal((5, 6, 7), dtype=np.float32)
    np.testing.assert_array_equal(intensity.low_resolution(channel, 1.0), channel)


def test_noise_has_the_deviation_asked_for_and_is_the_same_in_all_channels(rng):
    image = np.zeros((20, 20, 20, 3), np.float32)
    noisy = augment.add_noise(image, replace(OFF, noise=1.0, noise_sigma=(0.08, 0.08)), rng)
    assert noisy.std() == pytest.approx(0.08, rel=0.05)  # 8,000 draws: 1 % standard error
    np.testing.assert_array_equal(noisy[..., 0], noisy[..., 2])


def test_around_one_is_below_and_above_equally_often(rng):
    """(0.7, 1.5) is lopsided, so a plain uniform draw would be below 1 only 3 times in 8."""
    factors = np.array([augment.around_one((0.7, 1.5), rng) for _ in range(2000)])
    assert abs((factors < 1).mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    assert factors.min() >= 0.7
    assert factors.max() <= 1.5
    assert all(1.1 <= augment.around_one((1.1, 1.2), rng) <= 1.2 for _ in range(20))
    assert all(0.8 <= augment.around_one((0.8, 0.9), rng) <= 0.9 for _ in range(20))


# ------------------------------------------------------------------------------------------------------- composition

TRANSFORMS = {
    "noise": augment.add_noise,
    "blur": augment.random_blur,
    "brightness": augment.random_brightness,
    "contrast": augment.random_contrast,
    "low_resolution": augment.random_low_resolution,
    "inverted_gamma": augment.random_gamma,
    "gamma": augment.random_gamma,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_transform_changes_something_at_probability_one_and_nothing_at_zero(name, rng):
    image, _ = volume(rng)
    full = replace(OFF, **{name: 1.0}, blur_channel=1.0, low_resolution_channel=1.0, low_resolution_scale=(0.5, 0.6))
    unchanged = TRANSFORMS[name](image.copy(), OFF, rng)
    np.testing.assert_array_equal(unchanged, image)
    changed = TRANSFORMS[name](image.copy(), full, rng)
    assert all(not np.array_equal(changed[..., c], image[..., c]) for c in range(4))
    assert changed.dtype == np.float32


@pytest.mark.parametrize("name", TRANSFORMS)
def test_how_often_each_transform_is_applied(name, rng):
    """1,000 draws on a tiny image; tolerance 4 standard deviations."""
    probability = getattr(Augmentation(), name)
    chosen = replace(OFF, **{name: probability}, blur_channel=1.0, low_resolution_channel=1.0)
    if name == "low_resolution":
        chosen = replace(chosen, low_resolution_scale=(0.5, 0.5))  # a scale near 1 would leave 4 voxels as they are
    image = rng.standard_normal((4, 4, 4, 1), dtype=np.float32)
    applied = [not np.array_equal(TRANSFORMS[name](image.copy(), chosen, rng), image) for _ in range(1000)]
    assert abs(np.mean(applied) - probability) < 4 * np.sqrt(probability * (1 - probability) / 1000)


@pytest.mark.parametrize(("name", "share"), [("blur", "blur_channel"), ("low_resolution", "low_resolution_channel")])
def test_half_of_the_channels_are_blurred_or_coarsened(name, share, rng):
    chosen = replace(OFF, **{name: 1.0, share: 0.5}, low_resolution_scale=(0.5, 0.5))
    image = rng.standard_normal((4, 4, 4, 10), dtype=np.float32)
    changed = [(TRANSFORMS[name](image.copy(), chosen, rng) != image).any(axis=(0, 1, 2)) for _ in range(100)]
    assert abs(np.mean(changed) - 0.5) < 4 * 0.5 / np.sqrt(1000)


def test_how_often_a_patch_is_turned_and_zoomed(rng):
    matrices = [augment.draw_rotation_zoom(Augmentation(), rng) for _ in range(2000)]
    drawn = [m for m in matrices if m is not None]
    zooms = np.array([np.cbrt(np.linalg.det(m)) for m in drawn])
    angles = [
        np.degrees(np.arccos(np.clip((np.trace(m / z) - 1) / 2, -1, 1))) for m, z in zip(drawn, zooms, strict=True)
    ]
    deviation = 4 * 0.5 / np.sqrt(2000)
    assert abs(len(drawn) / 2000 - (1 - 0.8**2)) < deviation
    assert abs(sum(abs(zooms - 1) > 1e-9) / 2000 - 0.2) < deviation
    assert abs(sum(np.array(angles) > 1e-3) / 2000 - 0.2) < deviation
    assert zooms.min() >= 0.7 - 1e-9
    assert zooms.max() <= 1.4 + 1e-9


def test_everything_off_is_the_plain_patch_bit_for_bit(rng):
    image, label = volume(rng)
    got = augment_patch(image, label, (3, -2, 6), (9, 10, 11), OFF, rng)
    plain = finish_patch(*cut_patch(image, label, (3, -2, 6), (9, 10, 11)))
    for a, b in zip(got, plain, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(got[0][:, 2:, :10], image[3:12, :8, 6:])
    assert not got[0][:, :2].any()
    assert not got[0][:, :, 10:].any()


def test_outside_the_brain_is_zero_and_background_after_every_transform(rng):
    image, label = volume(rng)
    always = Augmentation(
        **{
            f.name: 1.0
            for f in fields(Augmentation)
            if isinstance(f.default, float) and f.name not in ("rotation", "zoom")
        },
        rotation=0.0,
        zoom=0.0,
    )
    got_image, got_label = augment_patch(image, label, (0, 0, 0), SHAPE, always, rng)
    outside = np.flip(label, (0, 1, 2)) == OUTSIDE_BRAIN  # mirror is certain, too
    assert not got_image[outside].any()
    assert (got_image[~outside] != 0).all()
    assert not got_label[outside].any()
    np.testing.assert_array_equal(got_label[~outside], np.flip(label, (0, 1, 2))[~outside])


def test_results_are_contiguous_float32_and_the_volume_is_untouched(rng):
    image, label = volume(rng)
    before = image.copy(), label.copy()
    image.flags.writeable = label.flags.writeable = False
    for seed in range(10):
        got_image, got_label = augment_patch(
            image, label, (1, 2, 3), (10, 9, 8), Augmentation(rotation=0.5), np.random.default_rng(seed)
        )
        assert got_image.dtype == np.float32
        assert got_label.dtype == np.uint8
        assert got_image.flags.c_contiguous
        assert got_label.flags.c_contiguous
        assert np.isfinite(got_image).all()
        assert got_label.max() <= 3
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


def test_the_same_generator_gives_the_same_patch(rng):
    image, label = volume(rng)
    one, same, other = (
        augment_patch(image, label, (1, 2, 3), (10, 9, 8), Augmentation(noise=1.0), np.random.default_rng(seed))[0]
        for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_defaults_are_nnunets():
    """nnU-Net v2, `nnUNetTrainer.get_training_transforms`."""
    a = Augmentation()
    assert (a.rotation, a.rotation_degrees, a.zoom, a.zoom_range) == (0.2, (-30, 30), 0.2, (0.7, 1.4))
    assert (a.noise, a.noise_sigma) == (0.1, (0, 0.1))
    assert (a.blur, a.blur_channel, a.blur_sigma) == (0.2, 0.5, (0.5, 1))
    assert (a.brightness, a.brightness_factor, a.contrast, a.contrast_factor) == (
        0.15,
        (0.75, 1.25),
        0.15,
        (0.75, 1.25),
    )
    assert (a.low_resolution, a.low_resolution_channel, a.low_resolution_scale) == (0.25, 0.5, (0.5, 1))
    assert (a.inverted_gamma, a.gamma, a.gamma_exponent, a.mirror) == (0.1, 0.3, (0.7, 1.5), 0.5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("blur", 1.5, "augmentation.blur is 1.5, but it is a probability"),
        ("mirror", -0.1, "augmentation.mirror is -0.1"),
        ("zoom_range", (1.4, 0.7), "the smaller first"),
        ("gamma_exponent", (0.0, 1.5), "expected positive numbers"),
        ("noise_sigma", (-1.0, 0.1), "expected no negative numbers"),
        ("low_resolution_scale", (0.5, 1.5), "expected at most 1"),
    ],
)
def test_impossible_settings_are_refused(field, value, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        Augmentation(**{field: value})
