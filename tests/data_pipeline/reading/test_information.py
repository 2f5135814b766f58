"""Mutual information against hand-computed cases and its own symmetries."""

import numpy as np
import pytest

from data_pipeline.reading.information import FLIPS, by_flip, by_offset, when_moved

SHAPE = (20, 22, 16)
AXES = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
OFFSETS = [tuple(sign * n for n in axis) for axis in AXES for sign in (-1, 1)]


def codes(seed, highest=32):
    return np.random.default_rng(seed).integers(1, highest + 1, SHAPE).astype(np.uint8)


def test_an_image_with_itself_has_its_entropy():
    """n levels, each as often: log n, but for the correction of (2(n - 1) - (n - 1)) / 2N."""
    levels = np.resize(np.arange(1, 5), SHAPE).astype(np.uint8)
    assert by_flip(levels, levels)[0] == pytest.approx(np.log(4) + 3 / (2 * levels.size), abs=1e-12)


def test_two_levels_that_agree_in_three_of_four_voxels():
    first = np.resize([1, 1, 1, 1, 2, 2, 2, 2], SHAPE).astype(np.uint8)
    second = np.resize([1, 1, 1, 2, 2, 2, 2, 1], SHAPE).astype(np.uint8)
    by_hand = np.log(2) + 0.75 * np.log(0.75) + 0.25 * np.log(0.25)
    assert by_flip(first, second)[0] == pytest.approx(by_hand - (3 - 2) / (2 * first.size), abs=1e-12)


def test_independent_images_have_none_on_average():
    found = [by_flip(codes(n), codes(n + 100))[0] for n in range(20)]
    assert abs(np.mean(found)) < 0.005


def test_outside_the_brain_does_not_count_and_too_little_is_nothing():
    first, second = codes(0, 4), codes(0, 4)
    second[:, :, 8:] = 0
    half = first[:, :, :8]
    assert by_flip(first, second)[0] == pytest.approx(by_flip(half, half)[0], abs=1e-12)
    second[2:] = 0
    assert by_flip(first, second)[0] == 0


@pytest.mark.parametrize("code", range(8))
def test_the_flip_that_was_made_fits_best(code):
    image = codes(1)
    assert by_flip(np.flip(image, FLIPS[code]), image).argmax() == code


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("by", [-1, 1])
def test_the_displacement_that_brings_it_back_fits_best(axis, by):
    image = codes(2)
    moved = np.roll(image, by, axis)
    back = tuple(-by * n for n in AXES[axis])
    assert OFFSETS[by_offset(moved, image, OFFSETS).argmax()] == back
    pairs = when_moved({"moved": moved, "still": image}, OFFSETS)
    np.testing.assert_allclose(pairs["still", "moved"], by_offset(image, moved, OFFSETS), rtol=0, atol=1e-12)
    assert OFFSETS[pairs["still", "moved"].argmax()] == tuple(by * n for n in AXES[axis])
