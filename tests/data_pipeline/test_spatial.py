"""Cutting, turning, zooming and mirroring patches; oracles: nnU-Net itself, kept in a file, and scipy.ndimage."""

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage as ndi

from data_pipeline.augment import Augmentation, reach
from data_pipeline.conventions import OUTSIDE_BRAIN
from data_pipeline.spatial import cut_patch, cut_turned, enlarged_patch, flat_axis, mirror, resample, rotation_zoom
from tests.data_pipeline.volumes import SHAPE, random_volume

GOLDEN = Path(__file__).parents[1] / "golden" / "augmentation.npz"
"""What nnU-Net gave; written by `make parity`."""
STILL = rotation_zoom((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("number", range(5))
def test_turned_patches_are_nnunets(golden, number):
    """Angles, zoom, what is read beyond patch and volume, the label's rule; the last two patches are flat."""
    start, patch, degrees, zooms, image, label = (
        golden[f"turn/{number}/{name}"] for name in ("start", "patch", "degrees", "zooms", "image", "label")
    )
    enlarged = reach(tuple(patch.tolist()), Augmentation())
    matrix = rotation_zoom(degrees, zooms)
    ours = cut_turned(golden["image"], golden["label"], tuple(start), tuple(patch), enlarged, matrix)
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


@pytest.mark.parametrize("zoom", [0.7, 1.0, 1.4])
def test_resampling_equals_scipy(rng, zoom):
    """The label's indicators, too, are interpolated; where one leads by more than rounding it must be taken."""
    image, label = random_volume(rng)
    patch = (11, 12, 13)
    matrix = rotation_zoom((25.0, -17.0, 8.0), (zoom, zoom, zoom))
    origin = np.array([5, 3, 4]) + (np.array(patch) - 1) / 2 @ (np.eye(3) - matrix.T)
    got_image, got_label = resample(image, label, matrix, origin, patch, np.zeros(3, int), np.array(SHAPE))

    def turned(volume, beyond):
        return ndi.affine_transform(
            volume.astype(np.float64), matrix, origin, output_shape=patch, order=1, mode="grid-constant", cval=beyond
        )

    for c in range(4):
        np.testing.assert_allclose(got_image[..., c], turned(image[..., c], 0), atol=2e-5)
    names = np.array([OUTSIDE_BRAIN, 0, 1, 2, 3])
    scores = np.stack([turned(label == name, float(name == OUTSIDE_BRAIN)) for name in names])
    first, second = np.sort(scores, axis=0)[[-1, -2]]
    clear = first - second > 0.002
    assert clear.mean() > 0.97
    np.testing.assert_array_equal(got_label[clear], names[scores.argmax(axis=0)][clear])


def test_tied_labels_go_to_the_nearest_voxel():
    """Halfway between two voxels both lead; a shade towards one of them, float16 still calls it a tie."""
    label = np.array([1, 2], np.uint8).reshape(2, 1, 1).repeat(2, 1).repeat(2, 2)
    image = np.ones((2, 2, 2, 1), np.float32)
    for shade, expected in ((-1e-5, 1), (1e-5, 2)):
        origin = np.array([0.5 + shade, 0.0, 0.0])
        got = resample(image, label, STILL, origin, (1, 1, 1), np.zeros(3, int), np.full(3, 2))[1]
        assert got.item() == expected


def test_a_small_label_between_others_need_not_reach_half():
    """0.4 of class 1, 0.3 each of 2 and 3: class 1, although 2 and 3 together outweigh it."""
    label = np.array([[1, 2], [3, 1]], np.uint8)[:, :, None].repeat(2, 2)
    origin = np.array([0.5, 0.45, 0.0])
    got = resample(np.ones((2, 2, 2, 1), np.float32), label, STILL, origin, (1, 1, 1), np.zeros(3, int), np.full(3, 2))
    assert got[1].item() == 1


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
