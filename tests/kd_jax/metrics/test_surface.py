"""HD95 against its plain definition: distance transforms over the whole volume, read at all surface voxels."""

import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from kd_jax.metrics import hd95, surface
from kd_jax.metrics.surface import bounding_box

SHAPE = (23, 20, 18)
ISOTROPIC = (1.0, 1.0, 1.0)
many = settings(max_examples=30)


def hd95_by_definition(prediction, reference, spacing):
    def surface_of(mask):
        return mask & ~ndimage.binary_erosion(mask)

    def directed(source, target):
        return np.percentile(ndimage.distance_transform_edt(~target, sampling=spacing)[source], 95)

    surfaces = surface_of(prediction), surface_of(reference)
    return max(directed(*surfaces), directed(*surfaces[::-1]))


def blob(seed, quantile):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2)
    return field > np.quantile(field, quantile)


def scattered(seed, count):
    mask = np.zeros(SHAPE, bool)
    mask.ravel()[np.random.default_rng(seed).choice(mask.size, count, replace=False)] = True
    return mask


def box(low, size):
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))] = True
    return mask


def boxes(largest):
    return st.builds(box, st.tuples(*[st.integers(0, n - 1) for n in SHAPE]), st.tuples(*[st.integers(1, largest)] * 3))


seeds = st.integers(0, 10_000)
masks = st.one_of(
    st.builds(blob, seeds, st.sampled_from([0.3, 0.9, 0.99])),  # the first fills most of the volume, to its border
    st.builds(scattered, seeds, st.integers(1, 60)),
    boxes(3),
    boxes(20),
    st.builds(lambda a, b: a | b, st.builds(blob, seeds, st.just(0.95)), boxes(3)),  # a tumour and a false island
    st.just(np.ones(SHAPE, bool)),
)
regular = st.sampled_from([ISOTROPIC, (2.0, 2.0, 2.0), (0.5, 1.0, 4.0)])
uneven = st.tuples(*[st.floats(0.4, 5.0)] * 3)


@many
@given(masks, masks, regular)
def test_every_bit_is_that_of_the_definition_where_distances_are_exact(a, b, spacing):
    assert hd95(a, b, spacing) == hd95_by_definition(a, b, spacing)


@many
@given(masks, masks, uneven)
def test_any_spacing_agrees_with_the_definition(a, b, spacing):
    assert hd95(a, b, spacing) == pytest.approx(hd95_by_definition(a, b, spacing), rel=1e-12)


@pytest.mark.parametrize("cost", [0, math.inf], ids=["tree", "transform"])
@settings(max_examples=15)
@given(masks, masks, uneven)
def test_both_ways_to_what_is_far_agree_with_the_definition(cost, a, b, spacing):
    with mock.patch.object(surface, "_search_cost", lambda *_: cost):
        assert hd95(a, b, spacing) == pytest.approx(hd95_by_definition(a, b, spacing), rel=1e-12)


def test_a_search_costs_more_where_a_surface_is_equally_far_all_around():
    angles = np.random.default_rng(0).normal(size=(3000, 3))
    sphere = 50 * angles / np.linalg.norm(angles, axis=1, keepdims=True)
    from_centre, from_beside = (surface._search_cost(np.full((20, 3), x), sphere, ISOTROPIC) for x in (0.0, 40.0))
    assert from_centre > 400 > 20 > from_beside


@pytest.mark.parametrize("count", [*range(1, 8), 20, 21, 22, 40, 41, 42, 101])
def test_the_percentile_needs_no_distance_that_was_not_looked_up(count):
    """Of `count` voxels in a row one is far: at 21, 41 and 101 the 95th percentile is a voxel's own distance."""
    line, other = np.zeros((2, 1, 1, 400), bool)
    line[..., :count], other[..., :count] = True, True
    other[..., count - 1], other[..., 399] = False, True
    for a, b in ((line, other), (other, line)):
        assert hd95(a, b, ISOTROPIC) == hd95_by_definition(a, b, ISOTROPIC)


@pytest.mark.parametrize("spacing", [ISOTROPIC, (0.05, 1.0, 6.0), (0.7, 0.7, 5.0)])
def test_neighbours_are_all_within_a_radius_and_few(spacing):
    shells = surface._shells(spacing)
    distances = [shell.distance for shell in shells]
    assert distances == sorted(distances) and distances[0] == 0
    count = sum(len(shell.offsets) for shell in shells)
    reach = np.indices((33, 33, 33)).reshape(3, -1).T - 16
    within = np.linalg.norm(reach * spacing, axis=1) <= distances[-1] * (1 + 1e-12)
    assert count == np.count_nonzero(within) <= 400
    assert max(np.abs(shell.offsets).max() for shell in shells) <= 8


def test_voxels_at_opposite_corners_of_a_case():
    a, b = np.zeros((2, 240, 240, 155), bool)
    a[0, 0, 0], b[-1, -1, -1] = True, True
    assert hd95(a, b, (1.0, 2.0, 3.0)) == math.sqrt(239**2 + (2 * 239) ** 2 + (3 * 154) ** 2)


@pytest.mark.parametrize(
    "order", [np.asfortranarray, lambda mask: mask[::-1].copy()[::-1]], ids=["columns", "reversed"]
)
def test_the_order_of_voxels_in_memory_does_not_matter(order):
    a, b = np.ones(SHAPE, bool), box((3, 4, 5), (9, 8, 7))  # the whole volume stays in the order it has
    assert hd95(order(a), order(b), ISOTROPIC) == hd95_by_definition(a, b, ISOTROPIC)


def test_of_an_empty_mask_there_is_no_distance():
    nothing, something = np.zeros(SHAPE, bool), box((1, 1, 1), (2, 2, 2))
    for pair in ((nothing, something), (something, nothing), (nothing, nothing)):
        assert math.isnan(hd95(*pair, ISOTROPIC))


@settings(max_examples=15)
@given(masks)
def test_the_bounding_box_is_that_of_scipy(mask):
    assert (bounding_box(mask),) == tuple(ndimage.find_objects(mask.astype(np.uint8)))


def test_the_bounding_box_of_nothing_holds_nothing():
    assert np.zeros(SHAPE)[bounding_box(np.zeros(SHAPE, np.uint8))].size == 0
