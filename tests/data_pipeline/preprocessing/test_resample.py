from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from data_pipeline.errors import InputError
from data_pipeline.preprocessing.resample import (
    as_spacing,
    resample_image,
    resample_label,
    resample_linear_rows,
    resampled_shape,
    slice_axis,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "resampling.npz"


def resample_linear(values, shape, coarse_axis=None):
    """All rows, in pieces of three."""
    rows = [slice(i, min(i + 3, shape[0])) for i in range(0, shape[0], 3)]
    return np.concatenate([resample_linear_rows(values, shape, r, coarse_axis) for r in rows])


def test_same_spacing_is_not_resampled():
    assert resampled_shape((9, 8, 7), (1.0, 1.0, 1.0), (1.0005, 0.9995, 1.0)) == (9, 8, 7)
    assert resampled_shape((9, 8, 7), (1.0, 1.0, 3.0), (2.0, 1.0, 1.0)) == (4, 8, 21)
    assert resampled_shape((1, 1, 1), (1.0, 1.0, 1.0), (5.0, 5.0, 5.0)) == (1, 1, 1)


def test_half_voxel_centres_by_hand():
    """Two voxels to one is their mean; one to two repeats it; four to two are the means of pairs."""
    line = np.array([0, 2, 4, 10], np.float32).reshape(4, 1, 1, 1)
    np.testing.assert_allclose(resample_linear(line, (2, 1, 1)).ravel(), [1, 7])
    # Centres of the eight halves lie a quarter voxel from the old centres.
    np.testing.assert_allclose(resample_linear(line, (8, 1, 1)).ravel(), [0, 0.5, 1.5, 2.5, 3.5, 5.5, 8.5, 10])


def test_labels_by_hand():
    classes = np.array([1, 1, 1, 2, 2, 3, 3, 3], np.uint8).reshape(2, 2, 2)
    # Two of eight voxels are 2, three are 1 and three are 3; the centre's nearest voxel, by rounding up, is 3.
    assert resample_label(classes, (1, 1, 1)).item() == 3
    classes[1, 1, 1] = 2  # now 1 and 2 have three each, and the nearest is a 2
    assert resample_label(classes, (1, 1, 1)).item() == 2
    classes[1, 1, 1], classes[1, 0, 0] = 3, 0  # one 0, one 2, three 1, three 3
    assert resample_label(classes, (1, 1, 1)).item() == 3
    classes[:] = np.array([[2, 1], [1, 2]])[..., None]
    classes[1, 1, 1] = 3  # four 1, three 2, one 3: the nearest does not win against more
    assert resample_label(classes, (1, 1, 1)).item() == 1


@pytest.mark.parametrize(
    ("spacing", "target", "expected"),
    [
        ((1, 1, 1), (2, 2, 2), None),
        ((1, 1, 3), (1, 1, 1), None),  # three times is not yet more
        ((1, 1, 3.1), (1, 1, 1), 2),
        ((4.1, 1, 1), (1, 1, 5), 0),  # the grid that is left decides
        ((1, 1, 1), (1, 5, 1.5), 1),
        ((0.24, 1.25, 1.25), (1, 1, 5), None),  # two coarse axes
        ((0.24, 1.25, 1.25 + 1e-9), (1, 1, 1), None),
    ],
)
def test_an_axis_far_coarser_than_another_is_resampled_on_its_own(spacing, target, expected):
    assert slice_axis(spacing, target) == expected


def test_slices_are_not_mixed_along_the_coarse_axis(rng):
    values = rng.normal(size=(6, 7, 3, 2)).astype(np.float32)
    stretched = resample_linear(values, (6, 7, 9), coarse_axis=2)
    np.testing.assert_array_equal(stretched, np.repeat(values, 3, axis=2))
    image = resample_image(values[..., 0], (12, 5, 9), coarse_axis=2)
    np.testing.assert_array_equal(image[:, :, ::3], image[:, :, 1::3])


@pytest.mark.parametrize("name", ["coarser", "finer", "slices", "first axis apart", "second axis apart", "two coarse"])
def test_equality_with_nnunet(name):
    golden = np.load(GOLDEN)
    spacing, target = (tuple(row.tolist()) for row in golden[f"{name}/spacings"])
    image, label = golden[f"{name}/image"], golden[f"{name}/label"]
    shape, coarse_axis = resampled_shape(image.shape, spacing, target), slice_axis(spacing, target)
    np.testing.assert_allclose(resample_image(image, shape, coarse_axis), golden[f"{name}/image resampled"], atol=1e-6)
    np.testing.assert_array_equal(resample_label(label, shape, coarse_axis), golden[f"{name}/label resampled"])
    linear = resample_linear(image[..., None], shape, coarse_axis)[..., 0]
    np.testing.assert_allclose(linear, golden[f"{name}/logits resampled"], atol=1e-6)


def bump(shape, centre) -> np.ndarray:
    """A Gaussian of σ = 5 mm on a 1 mm grid."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    return np.exp(-((grid - centre) ** 2).sum(axis=-1) / (2 * 5.0**2)).astype(np.float32)


@pytest.mark.parametrize("small", [(20, 21, 17), (13, 14, 12), (41, 43, 35), (60, 64, 51)])
def test_there_and_back_does_not_shift(small):
    shape, centre = (40, 43, 35), np.array([21.3, 19.7, 16.2])
    original = bump(shape, centre)
    back = resample_linear(resample_image(original, small)[..., None], shape)[..., 0]
    found = np.array(ndimage.center_of_mass(back))
    np.testing.assert_allclose(found, ndimage.center_of_mass(original), atol=0.03)
    assert np.abs(back - original).max() < 0.2  # a 3 mm grid flattens the top of a 5 mm bump


def test_upsampling_a_smooth_function_is_nearly_exact():
    shape, centre = (40, 43, 35), np.array([21.3, 19.7, 16.2])
    original = bump(shape, centre)
    back = resample_linear(resample_image(original, (80, 86, 70))[..., None], shape)[..., 0]
    assert np.abs(back - original).max() < 0.02


@pytest.mark.parametrize("spacing", [0, -1.0, (1, 2), (1, 1, 0), float("nan")])
def test_spacing_is_checked(spacing):
    with pytest.raises(InputError, match="expected one or three positive numbers, in mm"):
        as_spacing(spacing)
