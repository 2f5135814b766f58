from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_pipeline.errors import FileError
from data_pipeline.reading.in_memory import open_array, open_image
from data_pipeline.reading.nifti import grid_of, image_of, read_image
from tests.data_pipeline.cases import write_nifti

NAME = Path("t1ce image")
OBLIQUE = np.array([[0, 0.1, 2.0, -5], [-1.2, 0, 0, 7], [0, 0.9, -0.2, 30], [0, 0, 0, 1]])


@pytest.fixture
def values(rng):
    return rng.normal(100, 20, (5, 6, 4))


def same(first, second):
    np.testing.assert_array_equal(first.data, second.data)
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-5)  # a file holds float32
    assert first.shape_on_disk == second.shape_on_disk


def test_an_array_and_an_image_become_what_the_file_becomes(tmp_path, values):
    file = write_nifti(tmp_path / "t1ce.nii", values.astype(np.float32), OBLIQUE)
    expected = read_image(file)
    same(image_of(open_array(NAME, values.astype(np.float32), OBLIQUE)), expected)
    same(image_of(open_image(NAME, nib.load(file))), expected)


def test_the_array_is_not_changed(values):
    values[0] -= 500
    before = values.copy()
    image_of(open_array(NAME, values, np.eye(4)))
    np.testing.assert_array_equal(values, before)


def test_the_header_of_a_nifti_image_is_kept_and_that_of_another_made(values):
    nifti = nib.Nifti2Image(values.astype(np.float32), OBLIQUE)
    nifti.header["qform_code"] = 1
    assert open_image(NAME, nifti).header is nifti.header
    other = nib.MGHImage(values.astype(np.float32), OBLIQUE)
    stored = open_image(NAME, other)
    assert isinstance(stored.header, nib.Nifti1Header)
    np.testing.assert_allclose(stored.header.get_best_affine(), OBLIQUE, atol=1e-6)
    np.testing.assert_array_equal(grid_of(stored).affine_on_disk, other.affine)


@pytest.mark.parametrize(
    ("shape", "affine", "found"),
    [
        ((4, 4), np.eye(4), "shape (4, 4), expected one 3-D volume"),
        ((4, 4, 4, 2), np.eye(4), "shape (4, 4, 4, 2), expected one 3-D volume"),
        ((4, 4, 4), np.eye(3), "an affine of shape (3, 3), expected (4, 4)"),
        ((4, 4, 4), np.zeros((4, 4)), "is not invertible"),
        ((4, 4, 4), np.diag([1e-3, 1e-3, 1e-3, 1]), "are not an image of a head"),
    ],
)
def test_arrays_that_are_no_image_of_a_head(shape, affine, found):
    with pytest.raises(FileError) as error:
        image_of(open_array(NAME, np.ones(shape), affine))
    assert str(error.value).startswith("t1ce image: ") and found in str(error.value)


def test_voxels_that_are_not_numbers(values):
    with pytest.raises(FileError, match="voxels of type complex128, expected real numbers"):
        open_array(NAME, values.astype(complex), np.eye(4))


def test_an_image_whose_file_is_damaged(tmp_path, values):
    file = write_nifti(tmp_path / "a.nii", values.astype(np.float32))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(FileError, match="t1ce image: its voxels cannot be read"):
        open_image(NAME, nib.load(file))


def test_an_image_without_an_affine(values):
    with pytest.raises(FileError, match=r"t1ce image: an affine of shape \(\), expected \(4, 4\)"):
        open_image(NAME, nib.Nifti1Image(values.astype(np.float32), None))
