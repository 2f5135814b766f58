import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data_pipeline.conventions import region_mask
from kd_jax.postprocessing.components import keep_largest, keep_largest_of, remove_small_enhancing

MAPS = arrays(np.uint8, (4, 5, 6), elements=st.integers(0, 3))


def mask_of(*voxels):
    mask = np.zeros((5, 6, 7), bool)
    mask[tuple(np.transpose(voxels))] = True
    return mask


def test_voxels_that_share_a_corner_are_connected():
    diagonal = (0, 0, 0), (1, 1, 1), (2, 2, 2)
    pair = (4, 5, 5), (4, 5, 6)
    np.testing.assert_array_equal(keep_largest(mask_of(*diagonal, *pair)), mask_of(*diagonal))


def test_components_that_share_the_first_place_all_stay():
    first, second, single = ((0, 0, 0), (0, 0, 1)), ((4, 4, 4), (4, 4, 5)), ((0, 5, 6),)
    np.testing.assert_array_equal(keep_largest(mask_of(*first, *second, *single)), mask_of(*first, *second))


def test_the_largest_of_nothing_is_nothing_and_of_one_it_is_that():
    assert not keep_largest(np.zeros((3, 4, 5), bool)).any()
    assert keep_largest(np.ones((3, 4, 5), bool)).all()


@given(MAPS, st.sets(st.integers(1, 3), min_size=1))
def test_only_voxels_of_the_members_go_and_they_become_background(classes, members):
    before = classes.copy()
    after = keep_largest_of(classes, members)
    np.testing.assert_array_equal(classes, before)
    changed = after != classes
    assert np.isin(classes[changed], list(members)).all() and not after[changed].any()
    assert np.isin(after, list(members)).any() == np.isin(classes, list(members)).any()
    np.testing.assert_array_equal(keep_largest_of(after, members), after)


def test_a_region_is_one_mask_and_a_stray_piece_of_it_leaves_a_hole_in_the_larger_region():
    classes = np.full((1, 1, 9), 2, np.uint8)
    classes[0, 0, :3] = 1, 3, 1  # one piece of the core, three voxels
    classes[0, 0, 6:8] = 3  # another, with more enhancing voxels
    np.testing.assert_array_equal(keep_largest_of(classes, (1, 3))[0, 0], [1, 3, 1, 2, 2, 2, 0, 0, 2])
    np.testing.assert_array_equal(keep_largest_of(classes, (3,))[0, 0], [1, 0, 1, 2, 2, 2, 3, 3, 2])


@pytest.mark.parametrize(("min_ml", "stays"), [(0.015, True), (0.016, True), (0.0161, False)])
def test_enhancing_tumour_below_the_threshold_becomes_necrosis(min_ml, stays):
    classes = np.zeros((4, 5, 6), np.uint8)
    classes[:2, :2, :2], classes[3, 4, 5] = 3, 2
    spacing = (2.0, 1.0, 1.0)  # eight voxels of 2 mm³ are 0.016 ml
    np.testing.assert_array_equal(
        remove_small_enhancing(classes, spacing, min_ml), classes if stays else classes % 3 + (classes == 3)
    )


@given(MAPS)
def test_without_the_threshold_s_volume_whole_tumour_and_core_stay(classes):
    after = remove_small_enhancing(classes, (1, 1, 1), 1.0)
    assert not (after == 3).any()
    for region in ("WT", "TC"):
        np.testing.assert_array_equal(region_mask(after, region), region_mask(classes, region))
