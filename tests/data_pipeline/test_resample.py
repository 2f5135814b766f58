import numpy as np
import pytest
from scipy import ndimage

from data_pipeline.errors import InputError
from data_pipeline.resample import as_spacing, resample_image, resample_label, resample_linear, resampled_shape


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
    # Two of eight voxels are 2, three are 1 and three are 3: the lower class wins the tie.
    assert resample_label(classes, (1, 1, 1), 4).item() == 1
    classes[0, 0, 0] = 3
    assert resample_label(classes, (1, 1, 1), 4).item() == 3


def test_high_frequencies_are_suppressed_before_the_grid_gets_coarser(rng):
    """White noise sampled four times as coarsely keeps its variance; smoothed first it loses most of it."""
    noise = rng.normal(size=(32, 32, 32)).astype(np.float32)
    plain = ndimage.zoom(noise, 0.25, order=3, mode="nearest", grid_mode=True)
    assert resample_image(noise, (8, 8, 8)).var() < 0.1 * plain.var()


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
    assert np.abs(back - original).max() < 0.2  # a 3 mm grid and its smoothing flatten the top of a 5 mm bump


def test_upsampling_a_smooth_function_is_nearly_exact():
    shape, centre = (40, 43, 35), np.array([21.3, 19.7, 16.2])
    original = bump(shape, centre)
    back = resample_linear(resample_image(original, (80, 86, 70))[..., None], shape)[..., 0]
    assert np.abs(back - original).max() < 0.02


@pytest.mark.parametrize("spacing", [0, -1.0, (1, 2), (1, 1, 0), float("nan")])
def test_spacing_is_checked(spacing):
    with pytest.raises(InputError, match="expected one or three positive numbers, in mm"):
        as_spacing(spacing)
