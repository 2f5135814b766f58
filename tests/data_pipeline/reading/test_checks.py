import numpy as np
import pytest

from data_pipeline.case import Case
from data_pipeline.conventions import MODALITIES
from data_pipeline.errors import InputError
from data_pipeline.preprocessing.subject import load_subject
from data_pipeline.reading.checks import background_value
from data_pipeline.reading.findings import Finding
from tests.data_pipeline.cases import SRI24, file_of, one_case, rewrite


def notes_of(case: Case, **options) -> str:
    return "\n".join(finding.note() for finding in load_subject(case, 1.0, **options).findings)


def test_an_ordinary_case_has_no_notes(tmp_path, rng):
    assert notes_of(one_case(tmp_path, rng)) == ""


def test_negative_voxels_are_clipped(tmp_path, rng):
    case = one_case(tmp_path, rng)
    clean = load_subject(case, 1.0)

    def ring(voxels):
        voxels = voxels.copy()
        voxels[0, 0, :3] = -5  # outside the brain, as interpolation leaves them
        return voxels

    rewrite(case.images["t2"], ring)
    subject = load_subject(case, 1.0)
    assert subject.findings == (Finding("note", case.images["t2"], "3 negative voxels clipped to 0", ""),)
    np.testing.assert_array_equal(subject.images, clean.images)


def test_z_scores_around_a_zero_background_are_not_clipped(tmp_path, rng):
    case = one_case(tmp_path, rng)
    plain = load_subject(case, 1.0)

    def z_score(voxels):
        inside = voxels != 0
        return np.where(inside, (voxels - voxels[inside].mean()) / voxels[inside].std(), 0).astype(np.float32)

    rewrite(case.images["flair"], z_score)
    subject = load_subject(case, 1.0)
    assert "the image is already normalised, with background 0" in subject.findings[0].found
    channel = MODALITIES.index("flair")
    # Brain voxels that the union has and this image has not change the scale a little.
    np.testing.assert_allclose(subject.images[..., channel], plain.images[..., channel], atol=0.1)


def test_background_value():
    volume = np.full((6, 6, 6), -3.5, np.float32)
    volume[2:4, 2:4, 2:4] = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert background_value(volume) == -3.5
    volume[0, 0, :] = 9  # a stray line at the border
    assert background_value(volume) == -3.5
    ramp = np.arange(216, dtype=np.float32).reshape(6, 6, 6)  # nothing shared by the border
    assert background_value(ramp) == 0
    ramp[1:5, 1:5, 1:3] = 77  # cropped to the head: the background shows only as the most frequent value
    assert background_value(ramp) == 77


def test_skull_and_spacing_are_noted(tmp_path, rng):
    affine = np.diag([-0.5, -0.5, 1.0, 1.0])
    case = one_case(tmp_path, rng, modalities=("flair",), affine=affine)
    rewrite(case.images["flair"], lambda v: v + rng.integers(1, 99, v.shape).astype(np.int16))
    notes = notes_of(case)
    assert "100% of the voxels are not background: is the skull stripped?" in notes
    assert "spacing 0.5 x 0.5 x 1 mm, not the 1 mm of BraTS" in notes


def test_copies_under_another_name_are_noted(tmp_path, rng):
    case = one_case(tmp_path, rng)
    case.images["t2"].write_bytes(case.images["flair"].read_bytes())
    assert "_t2.nii.gz and BraTS2021_00000_flair.nii.gz are identical" in notes_of(case)


def test_no_tumour_and_tumour_outside_the_brain_are_noted(tmp_path, rng):
    case = one_case(tmp_path, rng)
    rewrite(case.label, np.zeros_like)
    assert notes_of(case).startswith("BraTS2021_00000_seg.nii.gz: no tumour is labelled; ")

    def corner(voxels):
        voxels[0, 0, :2] = 2
        return voxels

    rewrite(case.label, corner)
    assert "2 tumour voxels lie outside the brain mask" in notes_of(case)


@pytest.mark.parametrize("role", ["t2", "seg"])
def test_shapes_must_agree(tmp_path, rng, role):
    case = one_case(tmp_path, rng)
    path = file_of(next(iter(case.images.values())).parent, case.id, role)
    rewrite(path, lambda v: v[:-1])
    with pytest.raises(InputError) as error:
        load_subject(case, 1.0)
    assert str(error.value).startswith(
        f"{path}: shape (13, 16, 12) differs from (14, 16, 12) of BraTS2021_00000_t1.nii.gz"
    )


@pytest.mark.parametrize("role", ["t2", "seg"])
def test_affines_must_agree(tmp_path, rng, role):
    case = one_case(tmp_path, rng)
    path = file_of(next(iter(case.images.values())).parent, case.id, role)
    shifted = SRI24.copy()
    shifted[1, 3] += 5e-4  # rounding is fine
    rewrite(path, lambda v: v, shifted)
    assert notes_of(case) == ""
    shifted[1, 3] += 2
    rewrite(path, lambda v: v, shifted)
    with pytest.raises(InputError) as error:
        load_subject(case, 1.0)
    # Canonical affines: the y axis of 16 voxels runs from 239 - 15 upwards.
    assert f"{path}: affine [1 0 0 -13; 0 1 0 226.001; 0 0 1 0] differs from" in str(error.value)
    assert "[1 0 0 -13; 0 1 0 224; 0 0 1 0]" in str(error.value)
    assert "--ignore-affine" in str(error.value)
    assert "ignored as requested" in notes_of(case, ignore_affine=True)
