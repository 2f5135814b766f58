"""What can be wrong with a file, read as an image or as a label."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_pipeline.conventions import CAVITY, CONVENTIONS
from data_pipeline.errors import InputError
from data_pipeline.reading.nifti import read_image, read_label
from tests.data_pipeline.cases import SRI24, labels, write_nifti

BRATS = CONVENTIONS["brats2018"]


def valid(path: Path, rng) -> bytes:
    return write_nifti(path, rng.normal(size=(8, 8, 8)).astype(np.float32)).read_bytes()


def cut_header(path: Path, rng) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(valid(path, rng))[:100]))


def cut_voxels(path: Path, rng) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(valid(path, rng))[:-50]))


def cut_gzip(path: Path, rng) -> None:
    path.write_bytes(valid(path, rng)[:-200])


def damaged_gzip(path: Path, rng) -> None:
    content = bytearray(valid(path, rng))
    content[len(content) // 2 : len(content) // 2 + 4] = b"\x00\xff\x00\xff"
    path.write_bytes(content)


def not_gzip(path: Path, rng) -> None:
    path.write_bytes(gzip.decompress(valid(path, rng)))


@pytest.mark.parametrize(
    ("spoil", "fragment"),
    [
        (cut_gzip, "truncated or damaged"),
        (not_gzip, "the file is not compressed, although its name says so"),
        (lambda path, rng: path.write_bytes(b""), "zero bytes"),
        (lambda path, rng: path.write_bytes(gzip.compress(b"an error page of a server" * 40)), "not a NIfTI file"),
        (cut_header, "not a NIfTI file (Binary block is wrong size)"),
        (cut_voxels, "voxel data are incomplete"),
        (lambda path, rng: None, "cannot be read (No such file or directory)"),
    ],
)
def test_unreadable_files(tmp_path, rng, spoil, fragment):
    path = tmp_path / "case_t1.nii.gz"
    spoil(path, rng)
    with pytest.raises(InputError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: ")
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)


def test_damage_inside_the_gzip_stream_is_seen(tmp_path, rng):
    damaged_gzip(tmp_path / "a.nii.gz", rng)
    with pytest.raises(InputError, match="gzip"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        (np.full((2, 2, 2), np.nan, np.float32), "8 voxels are NaN or Inf"),
        (np.array([[[1, 2], [np.inf, 4]]], np.float32), "1 voxels are NaN or Inf"),
        (np.array([[[1, 2], [1e300, 4]]], np.float64), "1 voxels are NaN or Inf"),
        (np.zeros((2, 2, 2), np.int16), "is empty: every voxel is 0"),
        (np.full((2, 2, 2), 7, np.int16), "is constant: every voxel is 7"),
        (np.zeros((2, 2, 2, 4), np.int16), "shape (2, 2, 2, 4), expected one 3-D volume"),
        (np.zeros((2, 2), np.int16), "shape (2, 2), expected one 3-D volume"),
        (np.ones((2, 2, 2), np.complex64), "voxels of type complex64"),
    ],
)
def test_unusable_images(tmp_path, data, fragment):
    path = write_nifti(tmp_path / "a.nii", data)
    with pytest.raises(InputError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: ")
    assert fragment in str(error.value)


def test_singular_affine(tmp_path, rng):
    image = nib.Nifti1Image(labels(rng), SRI24)
    image.header["srow_x"] = 0
    (tmp_path / "a.nii").write_bytes(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header).to_bytes())
    with pytest.raises(InputError, match=r"affine .* is not invertible"):
        read_image(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("value", "convention", "fragment"),
    [
        (7, "brats2018", "found label 7, expected one of 0, 1, 2, 4 (brats2018); pass --label-map"),
        (3, "brats2018", "found label 3, expected one of 0, 1, 2, 4"),
        (4, "brats2023", "found label 4, expected one of 0, 1, 2, 3"),
        (-1, "brats2013", "found label -1, expected one of 0, 1, 2, 3, 4"),
        (0.5, "brats2018", "found the label value 0.5, expected integers"),
        (np.inf, "brats2018", "found the label value inf, expected integers"),
        (np.nan, "brats2018", "found the label value nan, expected integers"),
    ],
)
def test_values_outside_the_convention(tmp_path, value, convention, fragment):
    data = np.zeros((2, 2, 2), np.float32)
    data[0, 1, 0] = value
    path = write_nifti(tmp_path / "x_seg.nii.gz", data)
    with pytest.raises(InputError) as error:
        read_label(path, CONVENTIONS[convention])
    assert str(error.value).startswith(f"{path}: {fragment}")


def test_float_typed_integers_are_fine(tmp_path, rng):
    values = labels(rng)
    expected, _ = read_label(write_nifti(tmp_path / "a.nii", values), BRATS)
    found, _ = read_label(write_nifti(tmp_path / "b.nii", values.astype(np.float64) + 1e-5), BRATS)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_labels_of_every_type_are_the_same_classes(tmp_path, rng, dtype):
    values = labels(rng)
    expected, _ = read_label(write_nifti(tmp_path / "a.nii", values), BRATS)
    image = nib.Nifti1Image(values.astype(dtype), SRI24, dtype=dtype)
    nib.save(image, tmp_path / "b.nii")
    found, _ = read_label(tmp_path / "b.nii", BRATS)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8
    table = np.array([0, 1, 2, 0, 3], np.uint8)
    np.testing.assert_array_equal(found, table[values][::-1, ::-1])  # SRI24 is towards left, back


def test_the_cavity_is_a_class_of_2024(tmp_path):
    values = np.arange(5, dtype=np.uint8).repeat(2).reshape(5, 2, 1)
    classes, _ = read_label(write_nifti(tmp_path / "a.nii", values, np.eye(4)), CONVENTIONS["brats2024"])
    np.testing.assert_array_equal(np.unique(classes), [0, 1, 2, 3, CAVITY])
