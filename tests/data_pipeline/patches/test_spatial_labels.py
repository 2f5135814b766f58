"""Which label an interpolated voxel gets; the same by either way of interpolating."""

import numpy as np
import pytest

from data_pipeline.conventions import OUTSIDE_BRAIN
from data_pipeline.patches.spatial_labels import MIXED, corner_weights, flat_index, label_cells
from data_pipeline.patches.spatial_turn import turn
from data_pipeline.patches.spatial_zoom import zoom


def turned(label, origin):
    return turn(
        np.ones((*label.shape, 1), np.float32),
        label,
        np.eye(3),
        origin,
        (1, 1, 1),
        np.zeros(3, int),
        np.array(label.shape),
    )[1].item()


def zoomed(label, origin):
    return zoom(np.ones((*label.shape, 1), np.float32), label, np.ones(3), origin, (1, 1, 1))[1].item()


EITHER = pytest.mark.parametrize("interpolated", [turned, zoomed])


@EITHER
def test_tied_labels_go_to_the_nearest_voxel(interpolated):
    """Halfway between two voxels both lead; a shade towards one of them, float16 still calls it a tie."""
    label = np.array([1, 2], np.uint8).reshape(2, 1, 1).repeat(2, 1).repeat(2, 2)
    for shade, expected in ((-1e-5, 1), (1e-5, 2)):
        assert interpolated(label, np.array([0.5 + shade, 0.0, 0.0])) == expected


@EITHER
def test_a_small_label_between_others_need_not_reach_half(interpolated):
    """0.4 of class 1, 0.3 each of 2 and 3: class 1, although 2 and 3 together outweigh it."""
    label = np.array([[1, 2], [3, 1]], np.uint8)[:, :, None].repeat(2, 2)
    assert interpolated(label, np.array([0.5, 0.45, 0.0])) == 1


@EITHER
def test_beyond_the_volume_is_outside_the_brain(interpolated):
    label = np.full((3, 3, 3), 2, np.uint8)
    assert interpolated(label, np.array([2.4, 1.0, 1.0])) == 2
    assert interpolated(label, np.array([2.6, 1.0, 1.0])) == OUTSIDE_BRAIN
    assert interpolated(label, np.array([9.0, 1.0, 1.0])) == OUTSIDE_BRAIN


def test_a_cell_has_a_label_if_its_corners_agree():
    label = np.full((3, 2, 2), 1, np.uint8)
    label[2, 1, 1] = 3
    padded, cells = label_cells(label)
    assert padded.shape == (7, 6, 6) and cells.shape == (6, 5, 5)
    assert cells[2:4, 2, 2].tolist() == [1, MIXED]
    assert cells[0, 0, 0] == OUTSIDE_BRAIN and cells[1, 1, 1] == MIXED


def test_weights_and_indices_agree_on_the_order_of_corners():
    """A volume that is linear is interpolated exactly."""
    volume = np.arange(24.0).reshape(2, 3, 4)
    offsets = np.array([[0.25], [0.5], [0.75]], np.float32)
    corners = np.array(list(np.ndindex(2, 2, 2))).T
    found = (volume.reshape(-1)[flat_index(corners, volume.shape)] * corner_weights(offsets)[:, 0]).sum()
    assert found == 0.25 * 12 + 0.5 * 4 + 0.75
