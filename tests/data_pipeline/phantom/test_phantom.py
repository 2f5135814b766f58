"""Phantoms: the head they start from, single cases, and the files of a small data set."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from data_pipeline.conventions import CONVENTIONS, MODALITIES
from data_pipeline.layouts.find import find_cases
from data_pipeline.phantom import confounders, data_set, make
from data_pipeline.phantom import deformation as deform
from data_pipeline.phantom.grid import box_grid

# ---------------------------------------------------------------- anatomy


def test_template_tissues_are_where_they_belong(head):
    def at(channel, *point):
        return float(head.sample(channel, np.array(point, np.float32).reshape(3, 1))[0])

    assert at("wm", 26, -20, 30) > 0.9  # corona radiata
    assert at("gm", 12, -18, 8) > 0.5  # thalamus
    assert at("gm", 5, 5, 16) + at("wm", 5, 5, 16) < 0.1  # lateral ventricle
    assert at("periventricular", 5, 5, 16) == 1
    assert at("enhancing", 22, -40, 12) > 0.5  # choroid plexus
    assert at("enhancing", 0, -68, 58) > 0.3  # superior sagittal sinus
    assert at("depth", 26, -20, 20) > 30
    assert at("depth", 90, 0, 0) == 0


def test_template_is_symmetric_and_a_subject_is_not(head):
    grid = box_grid(4.0)
    points = grid.points()
    mirrored = points * np.array([-1, 1, 1], np.float32).reshape(3, 1, 1, 1)

    def asymmetry(here, there):
        return np.abs(head.sample("wm", here) - head.sample("wm", there)).mean() / head.sample("wm", here).mean()

    bent = deform.random_diffeomorphism(np.random.default_rng(0))
    assert asymmetry(points, mirrored) < 0.03
    assert asymmetry(deform.to_template(points, np.eye(3), bent), deform.to_template(mirrored, np.eye(3), bent)) > 0.15


# ---------------------------------------------------------------- confounders


def with_confounders(head, monkeypatch, keep):
    found = []

    def only(rng, around):
        found[:] = [c for c in confounders.draw_confounders(rng, around) if keep(c)]
        return found

    monkeypatch.setattr(make, "draw_confounders", only)
    return make.make_case(head, 5, 1, 4.0), list(found)


def test_vessels_are_bright_on_t1ce_and_absent_from_every_other_modality(head, monkeypatch):
    plain, _ = with_confounders(head, monkeypatch, lambda c: False)
    vessels, found = with_confounders(head, monkeypatch, lambda c: set(c.intensity) == {"t1ce"})
    assert {"vessels", "cortical vessels"} <= {c.name for c in found}
    for modality in ("t1", "t2", "flair"):
        np.testing.assert_array_equal(vessels.images[modality], plain.images[modality])
    rise = vessels.images["t1ce"].astype(float) - plain.images["t1ce"]
    brain = plain.images["t1ce"][plain.images["t1ce"] > 0]
    assert (rise > 0.3 * np.median(brain)).sum() > 100
    np.testing.assert_array_equal(vessels.label, plain.label)


def test_age_related_lesions_show_on_flair_and_not_on_t1ce(head, monkeypatch):
    plain, _ = with_confounders(head, monkeypatch, lambda c: False)
    aged, found = with_confounders(head, monkeypatch, lambda c: "flair" in c.intensity and "t1" not in c.intensity)
    assert "periventricular caps" in {c.name for c in found}
    assert (aged.images["flair"] > plain.images["flair"]).sum() > 50
    np.testing.assert_array_equal(aged.images["t1ce"], plain.images["t1ce"])


# ---------------------------------------------------------------- the data set


def test_files_are_skull_stripped_int16_on_the_brats_field_of_view(phantoms):
    for name in data_set.finished_cases(phantoms):
        images = {m: nib.load(phantoms / name / f"{name}_{m}.nii.gz") for m in MODALITIES}
        voxels = {m: np.asarray(i.dataobj) for m, i in images.items()}
        brain = voxels["t1"] > 0
        for modality, image in images.items():
            assert image.get_data_dtype() == np.int16 and image.shape == (120, 120, 78)
            assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
            np.testing.assert_array_equal(np.diag(image.affine), [-2, -2, 2, 1])
            np.testing.assert_array_equal(voxels[modality] > 0, brain)
            assert voxels[modality].min() == 0
        assert 900 < brain.sum() * 0.008 < 2100  # ml
        seg = nib.load(phantoms / name / f"{name}_seg.nii.gz")
        assert seg.get_data_dtype() == np.uint8
        assert not np.asarray(seg.dataobj)[~brain].any()
    assert make.image_grid(1.0).shape == (240, 240, 155)


def test_the_reader_finds_complete_cases(phantoms):
    cases = find_cases(phantoms)
    assert [c.id for c in cases] == [data_set.case_name(i) for i in range(3)]
    assert all(set(c.images) == set(MODALITIES) and c.label is not None for c in cases)
    assert cases[0].convention == CONVENTIONS["brats2018"]


def test_a_case_is_the_same_head_and_tumour_at_every_spacing(head, phantoms):
    coarse = make.make_case(head, 0, 2, 4.0).label
    name = data_set.case_name(2)
    fine = np.asarray(nib.load(phantoms / name / f"{name}_seg.nii.gz").dataobj)
    assert (coarse > 0).sum() * 0.064 == pytest.approx((fine > 0).sum() * 0.008, rel=0.1)
    centre = [4.0 * np.argwhere(coarse > 0).mean(0), 2.0 * np.argwhere(fine[::-1, ::-1] > 0).mean(0)]
    origin = [np.array(make.image_grid(s).origin) for s in (4.0, 2.0)]
    np.testing.assert_allclose(origin[0] + centre[0], origin[1] + centre[1], atol=2.0)


def test_gzip_header_holds_no_time_and_no_name(phantoms):
    for file in (phantoms / data_set.case_name(0)).iterdir():
        header = file.read_bytes()[:10]
        assert header[:3] == b"\x1f\x8b\x08" and header[3] == 0 and header[4:8] == bytes(4)
        gzip.decompress(file.read_bytes())
