import itertools
import os
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.conventions import CONVENTIONS
from data_pipeline.errors import InputError
from data_pipeline.reading.nifti import read_image, read_label
from data_pipeline.reading.write_back import write_label, write_probabilities
from tests.data_pipeline.cases import SRI24, labels, write_nifti

BRATS = CONVENTIONS["brats2018"]
ORIENTATIONS = [
    (permutation, flips)
    for permutation in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
SPACING = np.array([1.0, 1.5, 2.5])


def affine_of(permutation, flips, tilt: float = 0.0) -> np.ndarray:
    """Axis i of the file runs along world axis permutation[i], forwards or backwards; `tilt` makes it oblique."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(permutation, flips, strict=True)):
        affine[world, axis] = sign * SPACING[axis]
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = [-10, 20, 3.5]
    return affine


@pytest.mark.parametrize(("permutation", "flips"), ORIENTATIONS)
@pytest.mark.parametrize("tilt", [0.0, 0.2])
def test_labels_come_back_bit_for_bit_in_every_orientation(tmp_path, rng, permutation, flips, tilt):
    values = labels(rng)
    source = write_nifti(tmp_path / "a.nii", values, affine_of(permutation, flips, tilt))
    classes, geometry = read_label(source, BRATS)
    write_label(tmp_path / "b.nii", classes, geometry, BRATS)
    one, two = nib.load(source), nib.load(tmp_path / "b.nii")
    np.testing.assert_array_equal(np.asanyarray(two.dataobj), values)
    assert two.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(two.affine, one.affine)
    for name in ("qform_code", "sform_code", "pixdim", "quatern_b", "qoffset_x", "srow_x", "srow_y", "srow_z"):
        np.testing.assert_array_equal(two.header[name], one.header[name])


@pytest.mark.parametrize(("permutation", "flips"), ORIENTATIONS)
def test_canonical_orientation_is_nibabels(tmp_path, rng, permutation, flips):
    data = rng.normal(size=(3, 4, 5)).astype(np.float32)
    path = write_nifti(tmp_path / "a.nii", data, affine_of(permutation, flips, 0.1))
    volume, oracle = read_image(path), nib.as_closest_canonical(nib.load(path))
    np.testing.assert_array_equal(volume.data, np.asanyarray(oracle.dataobj))
    np.testing.assert_allclose(volume.affine, oracle.affine, atol=1e-12)
    np.testing.assert_allclose(volume.spacing, oracle.header.get_zooms(), rtol=1e-6)
    assert volume.shape == volume.data.shape
    assert volume.shape_on_disk == (3, 4, 5)


@settings(max_examples=15)
@given(
    shape=st.tuples(*[st.integers(1, 4)] * 3),
    orientation=st.sampled_from(ORIENTATIONS),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    name=st.sampled_from(["x.nii", "x.nii.gz"]),
    seed=st.integers(0, 2**16),
)
def test_writing_what_was_read_changes_nothing(tmp_path_factory, shape, orientation, codes, name, seed):
    folder = tmp_path_factory.mktemp("round")
    image = nib.Nifti1Image(labels(np.random.default_rng(seed), shape), affine_of(*orientation))
    image.set_qform(image.affine, codes[0])
    image.set_sform(image.affine, codes[1])
    nib.save(image, folder / name)
    classes, geometry = read_label(folder / name, BRATS)
    write_label(folder / f"again_{name}", classes, geometry, BRATS)
    one, two = nib.load(folder / name), nib.load(folder / f"again_{name}")
    np.testing.assert_array_equal(two.dataobj, one.dataobj)
    np.testing.assert_array_equal(two.affine, one.affine)
    assert (int(two.header["qform_code"]), int(two.header["sform_code"])) == codes


def test_labels_are_written_on_the_images_grid_without_its_scaling(tmp_path, rng):
    image = nib.Nifti1Image(rng.integers(0, 99, (3, 4, 5)).astype(np.int16), SRI24)
    image.header.set_slope_inter(2.0, -1.0)
    image.header["cal_max"] = 500
    image.header.set_xyzt_units("mm", "sec")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"name of the patient"))
    nib.save(image, tmp_path / "image.nii.gz")
    volume = read_image(tmp_path / "image.nii.gz")
    classes = rng.integers(0, 4, volume.shape).astype(np.uint8)
    write_label(tmp_path / "label.nii.gz", classes, volume, CONVENTIONS["brats2013"])
    written = nib.load(tmp_path / "label.nii.gz")
    assert written.get_data_dtype() == np.uint8
    assert (written.dataobj.slope, written.dataobj.inter) == (1, 0)
    assert written.header["cal_max"] == 0
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert not written.header.extensions
    np.testing.assert_array_equal(read_label(tmp_path / "label.nii.gz", CONVENTIONS["brats2013"])[0], classes)
    assert set(np.unique(written.dataobj)) <= {0, 1, 2, 4}


def test_image_scaling_is_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([0.5, 3], "<f4").tobytes()  # scl_slope, scl_inter: nibabel rescales when it writes
    (tmp_path / "a.nii").write_bytes(raw)
    stored = np.frombuffer(bytes(raw[352:]), "<i2").reshape(2, 2, 2, order="F")
    np.testing.assert_allclose(read_image(tmp_path / "a.nii").data, stored * 0.5 + 3)


def test_nifti2_and_big_endian(tmp_path, rng):
    values = labels(rng)
    nib.save(nib.Nifti2Image(values, SRI24), tmp_path / "two.nii")
    big = nib.Nifti1Image(values, SRI24, nib.Nifti1Header(endianness=">"))
    nib.save(big, tmp_path / "big.nii.gz")
    for name in ("two.nii", "big.nii.gz"):
        classes, geometry = read_label(tmp_path / name, BRATS)
        write_label(tmp_path / f"again_{name}", classes, geometry, BRATS)
        again = nib.load(tmp_path / f"again_{name}")
        assert type(again) is type(nib.load(tmp_path / name))
        np.testing.assert_array_equal(again.dataobj, values)


@pytest.mark.parametrize("tail", [(), (1,)])
def test_a_volume_of_a_4d_file(tmp_path, rng, tail):
    data = rng.normal(size=(3, 4, 5, 2, *tail)).astype(np.float32)
    path = write_nifti(tmp_path / "a.nii.gz", data)
    for channel in range(2):
        volume = read_image(path, channel)
        alone = read_image(write_nifti(tmp_path / "b.nii.gz", data.reshape(3, 4, 5, 2)[..., channel]))
        np.testing.assert_array_equal(volume.data, alone.data)
        np.testing.assert_array_equal(volume.affine, alone.affine)
        assert (volume.shape_on_disk, volume.channel) == ((3, 4, 5), channel)
        write_label(tmp_path / "label.nii.gz", np.ones(volume.shape, np.uint8), volume, BRATS)
        assert nib.load(tmp_path / "label.nii.gz").shape == (3, 4, 5)
    with pytest.raises(InputError, match=r"shape \(3, 4, 5, 2.*expected a 4-D file with a volume 2; compare"):
        read_image(path, 2)


def test_a_channel_of_a_3d_file_and_a_bad_volume(tmp_path, rng):
    path = write_nifti(tmp_path / "a.nii.gz", labels(rng))
    with pytest.raises(InputError, match="expected a 4-D file with a volume 0"):
        read_image(path, 0)
    data = rng.normal(size=(3, 4, 5, 2)).astype(np.float32)
    data[..., 1] = 7
    with pytest.raises(InputError, match="volume 1: the image is constant: every voxel is 7"):
        read_image(write_nifti(tmp_path / "b.nii.gz", data), 1)


@pytest.mark.parametrize("tail", [(1,), (1, 1)])
def test_trailing_singletons_are_squeezed_and_written_back(tmp_path, rng, tail):
    values = labels(rng).reshape(3, 4, 5, *tail)
    classes, geometry = read_label(write_nifti(tmp_path / "a.nii", values), BRATS)
    assert classes.shape == (3, 4, 5)
    write_label(tmp_path / "b.nii", classes, geometry, BRATS)
    assert nib.load(tmp_path / "b.nii").shape == values.shape


@pytest.mark.parametrize(("permutation", "flips"), ORIENTATIONS[::7])
def test_probabilities_are_on_the_original_grid(tmp_path, rng, permutation, flips):
    source = write_nifti(
        tmp_path / "a.nii", rng.normal(size=(3, 4, 5)).astype(np.float32), affine_of(permutation, flips)
    )
    volume = read_image(source)
    probabilities = rng.random((*volume.shape, 4), np.float32)
    probabilities[..., 2] = volume.data
    write_probabilities(tmp_path / "p.nii.gz", probabilities, volume, ("background", "NCR", "ED", "ET"))
    written = nib.load(tmp_path / "p.nii.gz")
    assert written.header["descrip"].item() == b"background NCR ED ET"
    assert written.shape == (3, 4, 5, 4)
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(written.affine, nib.load(source).affine)
    np.testing.assert_array_equal(written.dataobj[..., 2], nib.load(source).dataobj)


@pytest.mark.parametrize("name", ["p.nii", "p.nii.gz"])
def test_writing_takes_little_memory_on_top_of_the_values(tmp_path, rng, name):
    volume = read_image(write_nifti(tmp_path / "a.nii", rng.normal(size=(50, 60, 70)).astype(np.float32)))
    values = rng.random((50, 60, 70, 4), np.float32)  # 3.4 MB
    tracemalloc.start()
    write_probabilities(tmp_path / name, values, volume, "abcd")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000
    np.testing.assert_array_equal(nib.load(tmp_path / name).dataobj, values[::-1, ::-1])  # SRI24 is towards left, back


def test_wrong_grid_and_wrong_classes_are_programming_errors(tmp_path, rng):
    classes, geometry = read_label(write_nifti(tmp_path / "a.nii", labels(rng)), BRATS)
    with pytest.raises(ValueError, match=r"not on the grid \(3, 4, 5\)"):
        write_label(tmp_path / "b.nii", classes[:2], geometry, BRATS)
    with pytest.raises(ValueError, match="classes must be 0 to 3, got 255"):
        write_label(tmp_path / "b.nii", np.full_like(classes, 255), geometry, BRATS)
    assert not (tmp_path / "b.nii").exists()


# --- writing ---------------------------------------------------------------------------------------------------------


def test_failed_write_leaves_what_was_there(tmp_path, rng, monkeypatch):
    classes, geometry = read_label(write_nifti(tmp_path / "a.nii", labels(rng)), BRATS)
    target = tmp_path / "out" / "b.nii.gz"
    write_label(target, classes, geometry, BRATS)
    before = target.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"b\.nii\.gz: cannot be written \(No space left on device\)"):
        write_label(target, np.zeros_like(classes), geometry, BRATS)
    assert target.read_bytes() == before
    assert list(target.parent.iterdir()) == [target]


def test_folder_that_cannot_be_made(tmp_path, rng):
    classes, geometry = read_label(write_nifti(tmp_path / "a.nii", labels(rng)), BRATS)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write_label(tmp_path / "file" / "b.nii.gz", classes, geometry, BRATS)


def test_writing_is_reproducible(tmp_path, rng):
    classes, geometry = read_label(write_nifti(tmp_path / "a.nii", labels(rng)), BRATS)
    for name in ("one.nii.gz", "two.nii.gz"):
        write_label(tmp_path / name, classes, geometry, BRATS)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()
