"""Where patches lie and how they are read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.sampling import (
    choose_start,
    foreground_start,
    is_foreground_position,
    read_box,
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
