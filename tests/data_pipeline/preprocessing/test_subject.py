from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from data_pipeline.case import Case
from data_pipeline.conventions import CAVITY, CONVENTIONS, MODALITIES, OUTSIDE_BRAIN
from data_pipeline.errors import InputError
from data_pipeline.preprocessing import scratch
from data_pipeline.preprocessing.resample import as_spacing
from data_pipeline.preprocessing.subject import load_subject, to_original_grid
from data_pipeline.reading.findings import Finding
from data_pipeline.reading.scan import _brain, read_scan
from data_pipeline.reading.stored import open_nifti
from tests.data_pipeline.cases import SRI24, one_case, rewrite, write_nifti


def on_original_grid(values, subject, outside) -> np.ndarray:
    """The whole volume of `to_original_grid`, whose slabs must follow each other."""
    volume = np.full((*subject.reference.shape, values.shape[3]), np.nan, np.float32)
    end = 0
    for rows, slab in to_original_grid(values, subject, outside):
        assert rows.start == end
        volume[rows], end = slab, rows.stop
    return volume


def raw(case: Case, modality) -> np.ndarray:
    """Voxels in canonical orientation, by nibabel."""
    return nib.as_closest_canonical(nib.load(case.images[modality])).get_fdata()


def test_crop_is_the_bounding_box_of_the_union(tmp_path, rng):
    case = one_case(tmp_path, rng)
    union = np.any([raw(case, m) != 0 for m in MODALITIES], axis=0)
    subject = load_subject(case, 1.0)
    filled = ndimage.binary_fill_holes(union)
    inside = np.argwhere(filled)
    assert [(s.start, s.stop) for s in subject.crop] == list(
        zip(inside.min(axis=0), inside.max(axis=0) + 1, strict=True)
    )
    np.testing.assert_array_equal(subject.mask, filled[subject.crop])
    assert subject.images.shape == (*subject.mask.shape, 4)
    assert subject.spacing == (1, 1, 1)


def test_z_scored_inside_the_mask_and_zero_outside(tmp_path, rng):
    case = one_case(tmp_path, rng)
    subject = load_subject(case, 1.0)
    assert subject.images.dtype == np.float32
    for channel, modality in enumerate(MODALITIES):
        inside = raw(case, modality)[subject.crop][subject.mask]
        expected = (inside - inside.mean()) / inside.std()
        np.testing.assert_allclose(subject.images[..., channel][subject.mask], expected, atol=1e-5)
    assert not subject.images[~subject.mask].any()


def test_normalisation_forgets_scale_and_offset_of_the_background(tmp_path, rng):
    case = one_case(tmp_path, rng)
    plain = load_subject(case, 1.0)
    rewrite(case.images["t2"], lambda v: (v.astype(np.float32) - 500) / 37)
    shifted = load_subject(case, 1.0)
    np.testing.assert_allclose(shifted.images, plain.images, atol=1e-4)
    assert any(
        "background is the constant -13.51: the image is already normalised" in n
        for n in map(Finding.note, shifted.findings)
    )


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), density=st.floats(0.3, 0.9))
def test_holes_are_filled_as_scipy_does(seed, density):
    foreground = np.random.default_rng(seed).random((6, 7, 5)) < density
    crop, mask = _brain([foreground])
    np.testing.assert_array_equal(mask, ndimage.binary_fill_holes(foreground)[crop])


def test_missing_modalities_are_zero_and_not_listed(tmp_path, rng):
    subject = load_subject(one_case(tmp_path, rng, modalities=("t1ce", "flair")), 1.0)
    assert subject.modalities == ("t1ce", "flair")
    assert not subject.images[..., [MODALITIES.index("t1"), MODALITIES.index("t2")]].any()
    assert subject.images[..., [MODALITIES.index("t1ce"), MODALITIES.index("flair")]].any(axis=(0, 1, 2)).all()


def test_only_the_modalities_asked_for_are_read(tmp_path, rng):
    case = one_case(tmp_path, rng)
    case.images["t1"].write_bytes(b"")
    rewrite(case.images["t2"], lambda v: v[:-1])
    subject = load_subject(case, 1.0, ("flair", "t1ce"))
    assert subject.modalities == ("t1ce", "flair")
    union = (raw(case, "t1ce") != 0) | (raw(case, "flair") != 0)
    np.testing.assert_array_equal(subject.mask, ndimage.binary_fill_holes(union)[subject.crop])


def test_no_usable_modality(tmp_path, rng):
    case = one_case(tmp_path, rng, modalities=("t1", "t2"))
    with pytest.raises(InputError, match=r"none of the modalities flair, t1ce has a file \(found t1, t2\)"):
        load_subject(case, 1.0, ("flair", "t1ce"))


def test_label_is_marked_outside_the_brain_on_the_images_grid(tmp_path, rng):
    case = one_case(tmp_path, rng, shape=(20, 22, 18))
    for spacing in (1.0, 2.0, (1.0, 1.5, 3.0)):
        subject = load_subject(case, spacing)
        assert subject.label is not None
        assert subject.label.dtype == np.uint8
        assert subject.label.shape == subject.images.shape[:3] == subject.mask.shape
        np.testing.assert_array_equal(subject.label == OUTSIDE_BRAIN, ~subject.mask)
        assert set(np.unique(subject.label)) == {0, 1, 2, 3, OUTSIDE_BRAIN}
        assert not subject.images[~subject.mask].any()
        assert subject.spacing == as_spacing(spacing)


def test_the_cavity_is_background_to_networks(tmp_path, rng):
    case = replace(one_case(tmp_path, rng, layout="2023"), convention=CONVENTIONS["brats2024"])
    rewrite(case.label, lambda v: np.where(v == 3, 4, v))
    subject, scan = load_subject(case, 1.0), read_scan(case, label=True)
    cavity = scan.classes[scan.crop] == CAVITY
    assert cavity.any()
    assert not subject.label[cavity].any()
    assert set(np.unique(subject.label)) == {0, 1, 2, OUTSIDE_BRAIN}


def test_all_errors_of_a_case_are_reported_at_once(tmp_path, rng):
    case = one_case(tmp_path, rng)
    case.images["t1"].write_bytes(b"")
    rewrite(case.images["t2"], lambda v: v[:-1])
    rewrite(case.label, lambda v: np.full_like(v, 9))
    with pytest.raises(InputError) as error:
        load_subject(case, 1.0)
    lines = str(error.value).splitlines()
    assert [line.strip().split(": ")[0] for line in lines] == [
        str(case.images["t1"]),
        str(case.label),
        str(case.images["t2"]),
    ]


def test_volumes_of_one_file_are_read_once_and_like_files(tmp_path, rng):
    plain = one_case(tmp_path, rng)
    stacked = np.stack([np.asarray(nib.load(plain.images[m]).dataobj) for m in reversed(MODALITIES)], axis=-1)
    path = write_nifti(tmp_path / "all.nii.gz", stacked)
    case = replace(plain, images=dict.fromkeys(MODALITIES, path), channels={m: 3 - i for i, m in enumerate(MODALITIES)})
    opened = []
    subject = load_subject(case, 1.0, open_file=lambda p: opened.append(p) or open_nifti(p))
    np.testing.assert_array_equal(subject.images, load_subject(plain, 1.0).images)
    assert opened == [path]


def test_label_is_optional(tmp_path, rng):
    assert load_subject(one_case(tmp_path, rng, label=False), 1.0).label is None


def test_layouts_and_orientations_give_the_same_subject(tmp_path):
    reference = load_subject(one_case(tmp_path / "a", np.random.default_rng(1)), 1.0)
    other = load_subject(one_case(tmp_path / "b", np.random.default_rng(1), layout="2023", extension=".nii"), 1.0)
    np.testing.assert_array_equal(other.images, reference.images)
    np.testing.assert_array_equal(other.label, reference.label)
    flipped = one_case(tmp_path / "c", np.random.default_rng(1), layout="2013")
    flip = SRI24.copy()
    flip[0] = [1, 0, 0, -13]  # the first axis backwards: voxel i lies where 13 - i was
    for path in (*flipped.images.values(), flipped.label):
        rewrite(path, lambda v: v[::-1], flip)
    subject = load_subject(flipped, 1.0)
    np.testing.assert_array_equal(subject.images, reference.images)
    np.testing.assert_array_equal(subject.label, reference.label)


def test_to_original_grid_puts_things_where_they_were(tmp_path, rng):
    """A smooth function of position in mm, sampled on the subject's grid, arrives where the position says."""
    case = one_case(tmp_path, rng, shape=(40, 44, 36))
    subject = load_subject(case, 2.0)
    full = subject.reference.shape
    centres = [
        s.start - 0.5 + (np.arange(n) + 0.5) * (s.stop - s.start) / n
        for s, n in zip(subject.crop, subject.mask.shape, strict=True)
    ]
    x, y, z = np.meshgrid(*centres, indexing="ij")
    values = np.stack([x + 2 * y - z, np.sin(x / 8) * np.cos(y / 9)], axis=-1).astype(np.float32)
    back = on_original_grid(values, subject, (0, 0))
    assert back.shape == (*full, 2)
    assert back.dtype == np.float32
    x, y, z = np.meshgrid(*[np.arange(n) for n in full], indexing="ij")
    inner = tuple(slice(s.start + 1, s.stop - 1) for s in subject.crop)  # the outermost centres are extrapolated
    np.testing.assert_allclose(back[inner][..., 0], (x + 2 * y - z)[inner], atol=1e-3)
    assert np.abs(back[inner][..., 1] - (np.sin(x / 8) * np.cos(y / 9))[inner]).max() < 0.02


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_to_original_grid_has_the_given_values_outside_the_crop(tmp_path, rng, monkeypatch, rows):
    subject = load_subject(one_case(tmp_path, rng), 1.0)
    values = rng.random((*subject.mask.shape, 3), np.float32)
    monkeypatch.setattr(scratch, "SLAB", rows * 16 * 12 * 3 * 4)
    full = on_original_grid(values, subject, (1, -2, 0))
    np.testing.assert_array_equal(full[subject.crop], values)
    outside = np.ones(full.shape[:3], bool)
    outside[subject.crop] = False
    assert outside.any()
    np.testing.assert_array_equal(full[outside], np.broadcast_to(np.float32([1, -2, 0]), (outside.sum(), 3)))
    with pytest.raises(ValueError, match="not on the subject's grid"):
        on_original_grid(values[1:], subject, (1, -2, 0))


def test_slabs_of_any_size_give_the_same_values(tmp_path, rng, monkeypatch):
    subject = load_subject(one_case(tmp_path, rng, shape=(20, 22, 18)), (1.4, 0.9, 4.2))
    values = rng.normal(size=(*subject.mask.shape, 2)).astype(np.float32)
    whole = on_original_grid(values, subject, (0, 0))
    monkeypatch.setattr(scratch, "SLAB", 0)
    np.testing.assert_allclose(on_original_grid(values, subject, (0, 0)), whole, rtol=1e-6, atol=1e-6)
