"""How the transforms are drawn and put together; the settings are nnU-Net's."""

from dataclasses import fields, replace

import numpy as np
import pytest

from data_pipeline.conventions import OUTSIDE_BRAIN
from data_pipeline.errors import InputError
from data_pipeline.patches import augment
from data_pipeline.patches.augment import Augmentation, augment_patch, finish_patch
from data_pipeline.patches.spatial import cut_patch
from tests.data_pipeline.volumes import SHAPE, random_volume

OFF = Augmentation(**{f.name: 0.0 for f in fields(Augmentation) if isinstance(f.default, float)})
"""Every probability zero."""


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


def test_noise_has_the_deviation_asked_for_and_another_field_in_every_channel(rng):
    image = np.zeros((20, 20, 20, 3), np.float32)
    noisy = augment.add_noise(image, replace(OFF, noise=1.0, noise_sigma=(0.08, 0.08)), rng)
    np.testing.assert_allclose(noisy.std(axis=(0, 1, 2)), 0.08, rtol=0.05)  # 8,000 draws: 1 % standard error
    assert np.abs(np.corrcoef(noisy.reshape(-1, 3).T) - np.eye(3)).max() < 4 / np.sqrt(8000)


def test_around_one_is_below_and_above_equally_often(rng):
    """(0.7, 1.5) is lopsided, so a plain uniform draw would be below 1 only 3 times in 8."""
    factors = np.array([augment.around_one((0.7, 1.5), rng) for _ in range(2000)])
    assert abs((factors < 1).mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    assert factors.min() >= 0.7
    assert factors.max() <= 1.5
    assert all(1.1 <= augment.around_one((1.1, 1.2), rng) <= 1.2 for _ in range(20))
    assert all(0.8 <= augment.around_one((0.8, 0.9), rng) <= 0.9 for _ in range(20))


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
    image, _ = random_volume(rng)
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
    matrices = [augment.draw_rotation_zoom((16, 16, 16), Augmentation(), rng) for _ in range(2000)]
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


@pytest.mark.parametrize("thin", [0, 1, 2])
def test_a_flat_patch_turns_and_zooms_in_its_plane_alone(thin, rng):
    patch = tuple(4 if axis == thin else 16 for axis in range(3))
    always = Augmentation(rotation=1.0, zoom=1.0)
    matrices = np.array([augment.draw_rotation_zoom(patch, always, rng) for _ in range(200)])
    along = np.eye(3)[thin]
    np.testing.assert_allclose(matrices @ along, np.tile(along, (200, 1)), atol=1e-12)
    np.testing.assert_allclose(along @ matrices, np.tile(along, (200, 1)), atol=1e-12)
    plane = [axis for axis in range(3) if axis != thin]
    angles = np.degrees(np.arctan2(matrices[:, plane[1], plane[0]], matrices[:, plane[0], plane[0]]))
    assert np.histogram(angles, 4, (-180, 180))[0].min() > 25  # 50 expected in each quarter


def test_a_flat_patch_keeps_its_resolution_across(rng):
    image = rng.standard_normal((16, 3, 16, 1), dtype=np.float32)
    image[:, 1] = 0
    coarse = replace(OFF, low_resolution=1.0, low_resolution_channel=1.0, low_resolution_scale=(0.5, 0.5))
    changed = augment.random_low_resolution(image.copy(), coarse, rng)
    assert not changed[:, 1].any()
    assert (changed[:, 0] != image[:, 0]).mean() > 0.9


def test_everything_off_is_the_plain_patch_bit_for_bit(rng):
    image, label = random_volume(rng)
    got = augment_patch(image, label, (3, -2, 6), (9, 10, 11), OFF, rng)
    plain = finish_patch(*cut_patch(image, label, (3, -2, 6), (9, 10, 11)))
    for a, b in zip(got, plain, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(got[0][:, 2:, :10], image[3:12, :8, 6:])
    assert not got[0][:, :2].any()
    assert not got[0][:, :, 10:].any()


def test_outside_the_brain_is_zero_and_background_after_every_transform(rng):
    image, label = random_volume(rng)
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
    image, label = random_volume(rng)
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
    image, label = random_volume(rng)
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
    assert a.flat_rotation_degrees == (-180, 180)
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
