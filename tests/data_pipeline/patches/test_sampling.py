"""Where patches lie and how they are read."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.conventions import MODALITIES
from data_pipeline.patches.sampling import (
    EACH_CLASS,
    EACH_REGION,
    choose_start,
    foreground_voxel,
    is_foreground_position,
    read_box,
    start_bounds,
    uniform_start,
)
from tests.data_pipeline.fakes import make_case


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


def test_random_patches_cover_the_volume_and_stay_inside(rng):
    low, high = start_bounds((9, 8, 4), (6, 8, 7), (6, 8, 7))
    starts = np.array([uniform_start(low, high, rng) for _ in range(200)])
    assert set(starts[:, 0]) == {0, 1, 2, 3}
    assert set(starts[:, 1]) == {0}
    assert set(starts[:, 2]) == {-2, -1}  # 3 voxels too few: 1 before and 2 behind, or the other way round


def test_bounds_of_an_enlarged_patch_by_hand():
    """128 in a box of 205: nnU-Net pads by 77, so the box starts at -39 to 140 + 39 - 205 and the patch 38 later."""
    low, high = start_bounds((140, 128, 100), (128, 128, 128), (205, 205, 205))
    np.testing.assert_array_equal(low, [-1, -1, -15])
    np.testing.assert_array_equal(high, [12, 0, -14])


def in_memory(label, voxels_per_class=None):
    """A case with at most so many stored voxels of each class."""
    stored = {c: np.argwhere(label == c)[:voxels_per_class] for c in (1, 2, 3)}
    return SimpleNamespace(
        id="case",
        modalities=MODALITIES,
        shape=label.shape,
        source=None,
        images=lambda: None,
        label=lambda: label,
        foreground=lambda: stored,
    )


def test_foreground_classes_are_drawn_equally_often_and_their_voxels_too(rng):
    """One class has 1 voxel, another 98: each class is drawn half of the time. Tolerance: 4 standard deviations."""
    label = np.zeros((120, 20, 20), np.uint8)
    label[12:110, 10, 10], label[5, 10, 10] = 3, 1
    case = in_memory(label)
    centres = np.add([choose_start(case, (4, 6, 8), True, rng) for _ in range(2000)], [2, 3, 4])
    assert abs((centres[:, 0] == 5).mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    assert len(np.unique(centres[:, 0])) > 95
    assert (label[tuple(centres.T)] > 0).all()


def test_regions_are_drawn_equally_often_and_classes_of_one_by_their_size(rng):
    """90 voxels oedema, 6 core, 4 enhancing: WT, TC or ET, then a voxel of it. As many are stored of each class."""
    label = np.zeros((100, 5, 5), np.uint8)
    label[:90, 2, 2], label[90:96, 2, 2], label[96:, 2, 2] = 2, 1, 3
    case = in_memory(label, voxels_per_class=4)
    drawn = Counter(int(label[*foreground_voxel(case, EACH_REGION, rng)]) for _ in range(3000))
    expected = {2: 0.9 / 3, 1: (0.06 + 0.6) / 3, 3: (0.04 + 0.4 + 1) / 3}
    for c, share in expected.items():
        assert abs(drawn[c] / 3000 - share) < 4 * np.sqrt(share * (1 - share) / 3000)


def test_a_region_without_voxels_is_not_drawn(rng):
    label = np.zeros((9, 9, 9), np.uint8)
    label[3, 3, 3] = 2
    assert all(label[*foreground_voxel(in_memory(label), EACH_REGION, rng)] == 2 for _ in range(20))


def test_a_patch_about_a_voxel_is_moved_back_at_the_near_end_alone(rng):
    """As nnU-Net bounds it; in a box of 7 for 5 the lowest start is 0."""
    for corner, expected in ((0, 0), (1, 0), (3, 1), (8, 6)):
        label = np.zeros((9, 9, 9), np.uint8)
        label[corner, corner, corner] = 1
        assert choose_start(in_memory(label), (5, 5, 5), True, rng, enlarged=(7, 7, 7)) == (expected,) * 3


def test_a_case_without_tumour_gives_a_random_patch(tmp_path, rng):
    case = make_case(tmp_path, 0)
    np.save(case.folder / "label.npy", np.zeros(case.shape, np.uint8))
    assert foreground_voxel(case, EACH_CLASS, rng) is None
    start = choose_start(case, (20, 22, 18), True, rng)
    assert start == (0, 0, 0)


@settings(max_examples=50)
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
