from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.inference.windows import gaussian_importance, split_into_chunks, window_count, window_shares, window_starts

GOLDEN = Path(__file__).parents[2] / "golden" / "inference.npz"


def test_brats_needs_eighteen_windows():
    # 240: ceil(112 / 64) + 1 = 3 at 0, 56, 112; 155: ceil(27 / 64) + 1 = 2 at 0, 27. 3 * 3 * 2 = 18.
    starts = window_starts((240, 240, 155), (128, 128, 128))
    assert len(starts) == window_count((240, 240, 155), (128, 128, 128)) == 18
    assert {s[0] for s in starts} == {0, 56, 112} and {s[2] for s in starts} == {0, 27}


@pytest.mark.parametrize(
    ("size", "edge", "expected"),
    [
        (8, 8, [0]),
        (9, 8, [0, 1]),
        (12, 8, [0, 4]),
        (13, 8, [0, 2, 5]),
        (20, 8, [0, 4, 8, 12]),
        (21, 7, [0, 4, 7, 10, 14]),
    ],
)
def test_starts_along_one_axis(size, edge, expected):
    # 13: two steps of 2.5, Python and nnU-Net round half to even. 21: room 14, step 3.5.
    assert [s[0] for s in window_starts((size, 4, 4), (edge, 4, 4))] == expected


@settings(max_examples=60)
@given(st.integers(2, 70), st.integers(0, 200))
def test_windows_cover_the_axis_and_overlap_by_half(edge, extra):
    starts = [s[0] for s in window_starts((edge + extra, 1, 1), (edge, 1, 1))]
    assert starts[0] == 0 and starts[-1] == extra
    assert max(np.diff(starts), default=0) <= np.ceil(edge / 2)
    assert len(set(starts)) == len(starts)


def test_a_volume_smaller_than_the_patch_has_no_starts_but_one_window():
    with pytest.raises(ValueError, match="smaller than the patch"):
        window_starts((7, 8, 8), (8, 8, 8))
    assert window_count((7, 1, 8), (8, 8, 8)) == 1


@pytest.mark.parametrize("patch", [(16, 16, 16), (32, 8, 5), (1, 4, 4)])
def test_importance_is_the_gaussian_of_its_formula(patch):
    weights = gaussian_importance(patch)
    axes = [(np.arange(n) - n // 2) / (n / 8) for n in patch]
    # The filter cuts off at 4 sigma, which only the outermost voxels feel.
    assert weights == pytest.approx(np.exp(-sum(g**2 for g in np.meshgrid(*axes, indexing="ij")) / 2), rel=1e-4)
    assert weights.max() == 1 and weights.min() > 0 and weights.dtype == np.float32


@pytest.mark.parametrize("shape", [(240, 240, 155), (128, 200, 191), (129, 333, 512)])
def test_windows_lie_where_nnunet_puts_them(shape):
    np.testing.assert_array_equal(window_starts(shape, (128, 128, 128)), np.load(GOLDEN)[f"starts/{shape}"])


@pytest.mark.parametrize("patch", [(16, 24, 8), (9, 16, 5)])
def test_importance_is_nnunet_s(patch):
    np.testing.assert_allclose(gaussian_importance(patch), np.load(GOLDEN)[f"gaussian/{patch}"], rtol=1e-6)


@settings(max_examples=30)
@given(st.tuples(*[st.integers(2, 12)] * 3), st.tuples(*[st.integers(0, 25)] * 3))
def test_shares_are_gaussians_by_their_sum(patch, extra):
    shape = tuple(edge + more for edge, more in zip(patch, extra, strict=True))
    total, weights = np.zeros(shape), gaussian_importance(patch)
    windows = {s: tuple(slice(i, i + e) for i, e in zip(s, patch, strict=True)) for s in window_starts(shape, patch)}
    for window in windows.values():
        total[window] += weights
    shares = window_shares(shape, patch)
    for start, window in windows.items():
        d, h, w = (along[first] for along, first in zip(shares, start, strict=True))
        np.testing.assert_allclose(np.einsum("d,h,w->dhw", d, h, w), weights / total[window], rtol=2e-6)


@pytest.mark.parametrize(
    ("voxels", "count", "size"),
    [
        (64 * 64 * 64, 1, (40, 40, 40)),  # room for 40³ is 64³
        (64 * 64 * 64 - 1, 4, (16, 40, 40)),
        (32 * 64 * 64 - 1, 16, (16, 16, 40)),
        (32 * 32 * 64 - 1, 64, (16, 16, 16)),
        (0, 64, (16, 16, 16)),
    ],
)
def test_chunks_are_as_few_as_their_voxels_allow(voxels, count, size):
    chunks = split_into_chunks((40, 40, 40), (16, 16, 16), voxels)  # windows at 0, 8, 16, 24 along each axis
    assert len(chunks) == count and {chunk.size for chunk in chunks} == {size}
    assert [window for chunk in chunks for window in chunk.windows] == window_starts((40, 40, 40), (16, 16, 16))
    for chunk in chunks:
        for place, firsts in zip(chunk.place, zip(*chunk.windows, strict=True), strict=True):
            assert place.start <= min(firsts) and max(firsts) + 16 <= place.stop <= 40
