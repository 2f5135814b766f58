"""Cutting, turning, zooming and mirroring patches; the oracle of resampling is scipy.ndimage."""

import numpy as np
import pytest
import scipy.ndimage as ndi

from data_pipeline.conventions import OUTSIDE_BRAIN
from data_pipeline.spatial import cut_patch, mirror, patch_origin, resample, rotation_zoom
from tests.data_pipeline.volumes import random_volume


def test_rotation_keeps_lengths_and_zoom_scales_them():
    matrix = rotation_zoom((10.0, -20.0, 30.0), 1.25)
    np.testing.assert_allclose(matrix @ matrix.T, 1.25**2 * np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1.25**3)
    np.testing.assert_allclose(rotation_zoom((0.0, 0.0, 90.0), 1.0) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


@pytest.mark.parametrize("start", [(2, 3, 1), (-4, 5, 9)])
def test_identity_matrix_equals_the_plain_cut(rng, start):
    image, label = random_volume(rng)
    plain = cut_patch(image, label, start, (8, 9, 10))
    turned = cut_patch(image, label, start, (8, 9, 10), rotation_zoom((0.0, 0.0, 0.0), 1.0))
    np.testing.assert_array_equal(turned[0], plain[0])
    np.testing.assert_array_equal(turned[1], plain[1])


@pytest.mark.parametrize("zoom", [0.7, 1.0, 1.4])
def test_resampling_equals_scipy(rng, zoom):
    image, label = random_volume(rng)
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
    image, label = random_volume(rng)
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


def test_mirror_reverses_the_chosen_axes_as_views(rng):
    image, label = random_volume(rng)
    flipped = mirror(image, label, (True, False, True))
    np.testing.assert_array_equal(flipped[0], np.flip(image, (0, 2)))
    np.testing.assert_array_equal(flipped[1], np.flip(label, (0, 2)))
    assert np.shares_memory(flipped[0], image)
    for once, again in zip(mirror(*flipped, (True, False, True)), (image, label), strict=True):
        np.testing.assert_array_equal(once, again)
