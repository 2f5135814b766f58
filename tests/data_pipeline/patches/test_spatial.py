"""Cutting, turning, zooming and mirroring patches; oracle: nnU-Net itself, kept in a file."""

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.conventions import OUTSIDE_BRAIN
from data_pipeline.patches.augment import Augmentation, reach
from data_pipeline.patches.spatial import cut_patch, cut_turned, enlarged_patch, flat_axis, mirror, rotation_zoom
from tests.data_pipeline.volumes import random_volume

GOLDEN = Path(__file__).parents[2] / "golden" / "augmentation.npz"
"""What nnU-Net gave; written by `make parity`."""
STILL = rotation_zoom((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("number", range(5))
def test_turned_patches_are_nnunets(golden, number):
    """Angles, zoom, values beyond patch and volume, the label's rule; the last two patches are flat."""
    start, patch, degrees, zooms, image, label = (
        golden[f"turn/{number}/{name}"] for name in ("start", "patch", "degrees", "zooms", "image", "label")
    )
    enlarged = reach(tuple(patch.tolist()), Augmentation())
    matrix = rotation_zoom(degrees.tolist(), zooms.tolist())
    ours = cut_turned(golden["image"], golden["label"], tuple(start.tolist()), tuple(patch.tolist()), enlarged, matrix)
    np.testing.assert_allclose(ours[0], image, atol=1e-4)
    assert (ours[1] != label).mean() < 0.001
    assert len(np.unique(label)) == 5


def test_enlarged_patches_are_nnunets(golden):
    for patch, size in zip(golden["enlarged/patches"].tolist(), golden["enlarged/sizes"].tolist(), strict=True):
        assert reach(tuple(patch), Augmentation()) == tuple(size)


@pytest.mark.parametrize(
    ("patch", "thin"), [((128, 128, 128), None), ((32, 96, 96), None), ((31, 96, 96), 0), ((96, 64, 16), 2)]
)
def test_a_patch_is_flat_if_its_longest_axis_exceeds_three_times_its_shortest(patch, thin):
    assert flat_axis(patch) == thin


def test_a_flat_patch_is_enlarged_in_its_plane_whichever_axis_is_thin():
    degrees = Augmentation().flat_rotation_degrees
    x, y, z = enlarged_patch((16, 96, 64), degrees)
    assert (x, y, z) == (16, 112, 112)
    assert enlarged_patch((96, 16, 64), degrees) == (112, 16, 112)
    assert enlarged_patch((96, 64, 16), degrees) == (112, 112, 16)


def test_rotation_keeps_lengths_and_zoom_scales_them():
    matrix = rotation_zoom((10.0, -20.0, 30.0), (1.25, 1.25, 1.25))
    np.testing.assert_allclose(matrix @ matrix.T, 1.25**2 * np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1.25**3)
    np.testing.assert_allclose(rotation_zoom((0.0, 0.0, 90.0), (1, 1, 1)) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation_zoom((0.0, 0.0, 0.0), (1, 2, 3)), np.diag([1, 2, 3]))


@pytest.mark.parametrize("start", [(2, 3, 1), (-4, 5, 9)])
def test_identity_matrix_equals_the_plain_cut(rng, start):
    image, label = random_volume(rng)
    plain = cut_patch(image, label, start, (8, 9, 10))
    turned = cut_turned(image, label, start, (8, 9, 10), (12, 13, 14), STILL)  # the same parity: the same centre
    np.testing.assert_array_equal(turned[0], plain[0])
    np.testing.assert_array_equal(turned[1], plain[1])


def test_nothing_is_read_beyond_the_enlarged_patch(rng):
    """A zoom of 1.4 needs 15 voxels for 11; the box has 13, so a voxel's width of the patch stays empty."""
    image, label = np.ones((40, 40, 40, 1), np.float32), np.zeros((40, 40, 40), np.uint8)
    turned = cut_turned(image, label, (14, 14, 14), (11, 11, 11), (13, 13, 13), rotation_zoom((0, 0, 0), (1.4,) * 3))
    np.testing.assert_allclose(turned[0][1:-1, 1:-1, 1:-1], 1, atol=1e-5)
    assert not turned[0][[0, -1]].any()
    assert (turned[1][[0, -1]] == OUTSIDE_BRAIN).all()
    assert not turned[1][1:-1, 1:-1, 1:-1].any()


def test_the_centre_stays_where_it_is_when_a_patch_turns(rng):
    image, label = random_volume(rng)
    start, patch = (4, 5, 3), (9, 9, 9)  # odd sizes: the centre is a voxel
    turned = cut_turned(image, label, start, patch, (15, 15, 15), rotation_zoom((30.0, -30.0, 30.0), (1.4, 1.4, 1.4)))
    np.testing.assert_allclose(turned[0][4, 4, 4], image[8, 9, 7], atol=1e-5)
    assert turned[1][4, 4, 4] == label[8, 9, 7]


def test_mirror_reverses_the_chosen_axes_as_views(rng):
    image, label = random_volume(rng)
    flipped = mirror(image, label, (True, False, True))
    np.testing.assert_array_equal(flipped[0], np.flip(image, (0, 2)))
    np.testing.assert_array_equal(flipped[1], np.flip(label, (0, 2)))
    assert np.shares_memory(flipped[0], image)
    for once, again in zip(mirror(*flipped, (True, False, True)), (image, label), strict=True):
        np.testing.assert_array_equal(once, again)
