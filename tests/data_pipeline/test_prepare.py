import json
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import data_pipeline.prepare as prepare_module
from data_pipeline.checks import background_value
from data_pipeline.conventions import MODALITIES, OUTSIDE_BRAIN
from data_pipeline.errors import InputError
from data_pipeline.formats import Case, find_cases
from data_pipeline.prepare import PreparedCase, load_subject, prepare_cases, to_original_grid
from data_pipeline.resample import as_spacing, resample_image, resample_label, resample_linear, resampled_shape
from data_pipeline.subject import _brain
from tests.data_pipeline.cases import SRI24, file_of, write_case, write_nifti


def one_case(folder: Path, rng: np.random.Generator, **options) -> Case:
    return find_cases(write_case(folder, rng=rng, **options))[0]


def rewrite(path: Path, change, affine: np.ndarray | None = None) -> None:
    """Replace the voxels of a file by `change(voxels)`, and its affine if one is given."""
    image = nib.load(path)
    write_nifti(path, change(np.asarray(image.dataobj)), image.affine if affine is None else affine)


def raw(case: Case, modality) -> np.ndarray:
    """Voxels in canonical orientation, by nibabel."""
    return nib.as_closest_canonical(nib.load(case.images[modality])).get_fdata()


# --- crop, mask, normalisation ---------------------------------------------------------------------------------------


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
    assert any("background is the constant -13.51, the image is already normalised" in n for n in shifted.notes)


@settings(max_examples=20, deadline=None)
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


# --- checks ----------------------------------------------------------------------------------------------------------


def notes_of(case: Case, **options) -> str:
    return "\n".join(load_subject(case, 1.0, **options).notes)


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
    assert subject.notes == (f"{case.images['t2'].name}: 3 negative voxels clipped to 0",)
    np.testing.assert_array_equal(subject.images, clean.images)


def test_z_scores_around_a_zero_background_are_not_clipped(tmp_path, rng):
    case = one_case(tmp_path, rng)
    plain = load_subject(case, 1.0)

    def z_score(voxels):
        inside = voxels != 0
        return np.where(inside, (voxels - voxels[inside].mean()) / voxels[inside].std(), 0).astype(np.float32)

    rewrite(case.images["flair"], z_score)
    subject = load_subject(case, 1.0)
    assert "the image is already normalised with background 0" in subject.notes[0]
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
    assert "100% of the voxels are not background, is the skull stripped?" in notes
    assert "spacing 0.5 x 0.5 x 1 mm, not the 1 mm of BraTS" in notes


def test_copies_under_another_name_are_noted(tmp_path, rng):
    case = one_case(tmp_path, rng)
    case.images["t2"].write_bytes(case.images["flair"].read_bytes())
    assert "_t2.nii.gz and BraTS2021_00000_flair.nii.gz are identical" in notes_of(case)


def test_no_tumour_and_tumour_outside_the_brain_are_noted(tmp_path, rng):
    case = one_case(tmp_path, rng)
    rewrite(case.label, np.zeros_like)
    assert notes_of(case) == "BraTS2021_00000_seg.nii.gz: no tumour is labelled"

    def corner(voxels):
        voxels[0, 0, :2] = 2
        return voxels

    rewrite(case.label, corner)
    assert "2 tumour voxels are outside the brain mask" in notes_of(case)


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
    assert "ignored as asked" in notes_of(case, ignore_affine=True)


@pytest.mark.parametrize("spacing", [0, -1.0, (1, 2), (1, 1, 0), float("nan")])
def test_spacing_is_checked(spacing):
    with pytest.raises(InputError, match="expected one or three positive numbers, in mm"):
        as_spacing(spacing)


# --- resampling ------------------------------------------------------------------------------------------------------


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
    # One third is below 1's and 3's three of eight: the lower class wins their tie.
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
    back = to_original_grid(values, subject)
    assert back.shape == (*full, 2)
    assert back.dtype == np.float32
    x, y, z = np.meshgrid(*[np.arange(n) for n in full], indexing="ij")
    inner = tuple(slice(s.start + 1, s.stop - 1) for s in subject.crop)  # the outermost centres are extrapolated
    np.testing.assert_allclose(back[inner][..., 0], (x + 2 * y - z)[inner], atol=1e-3)
    assert np.abs(back[inner][..., 1] - (np.sin(x / 8) * np.cos(y / 9))[inner]).max() < 0.02


def test_to_original_grid_is_background_outside_the_crop(tmp_path, rng):
    subject = load_subject(one_case(tmp_path, rng), 1.0)
    values = rng.random((*subject.mask.shape, 4), np.float32)
    full = to_original_grid(values, subject)
    np.testing.assert_array_equal(full[subject.crop], values)
    outside = np.ones(full.shape[:3], bool)
    outside[subject.crop] = False
    assert outside.any()
    np.testing.assert_array_equal(full[outside], np.broadcast_to(np.float32([1, 0, 0, 0]), (outside.sum(), 4)))
    with pytest.raises(ValueError, match="not on the subject's grid"):
        to_original_grid(values[1:], subject)


# --- the cache -------------------------------------------------------------------------------------------------------


def folder_of(root: Path, rng: np.random.Generator, count: int = 3, **options) -> list[Case]:
    for number in range(count):
        write_case(root, rng=rng, number=number, **options)
    return find_cases(root)


def prepare(cases, cache: Path, spacing=2.0, workers=0, **options) -> list[PreparedCase]:
    return prepare_cases(cases, spacing, cache, workers=workers, progress=False, **options)


def test_prepared_arrays_are_the_subjects(tmp_path, rng):
    cases = folder_of(tmp_path / "data", rng, modalities=("t1", "flair"))
    prepared = prepare(cases, tmp_path / "cache")
    assert [p.id for p in prepared] == [c.id for c in cases]
    for case, entry in zip(cases, prepared, strict=True):
        subject = load_subject(case, 2.0)
        assert isinstance(entry.images(), np.memmap)
        assert isinstance(entry.label(), np.memmap)
        np.testing.assert_array_equal(entry.images(), subject.images)
        np.testing.assert_array_equal(entry.label(), subject.label)
        assert entry.shape == subject.mask.shape
        assert entry.modalities == ("t1", "flair")
        assert entry.source == case
        assert entry.patient == case.patient
        assert json.loads((entry.folder / "meta.json").read_text())["convention"] == "brats2018"


def test_foreground_voxels_are_of_their_class_and_at_most_ten_thousand(tmp_path, rng, monkeypatch):
    (case,) = folder_of(tmp_path / "data", rng, 1)
    (entry,) = prepare([case], tmp_path / "cache", spacing=1.0)
    label, foreground = np.asarray(entry.label()), entry.foreground()
    assert set(foreground) == {1, 2, 3}
    for index, voxels in foreground.items():
        np.testing.assert_array_equal(
            np.sort(np.ravel_multi_index(voxels.T, label.shape)), np.flatnonzero(label == index)
        )
    monkeypatch.setattr(prepare_module, "FOREGROUND_VOXELS", 5)
    again = [prepare([case], tmp_path / name, spacing=1.0)[0].foreground() for name in ("cache2", "cache3")]
    for index, voxels in again[0].items():
        assert len(voxels) == min(5, len(foreground[index]))
        assert len(np.unique(voxels, axis=0)) == len(voxels)
        assert (label[tuple(voxels.T)] == index).all()
        np.testing.assert_array_equal(voxels, again[1][index])


def test_an_absent_class_has_no_voxels(tmp_path, rng):
    (case,) = folder_of(tmp_path / "data", rng, 1)
    rewrite(case.label, lambda v: np.where(v == 4, 2, v))
    assert prepare([case], tmp_path / "cache")[0].foreground()[3].shape == (0, 3)


def stamps(cache: Path) -> dict[str, int]:
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in cache.rglob("*")}


def test_finished_cases_are_not_done_again(tmp_path, rng):
    cases = folder_of(tmp_path / "data", rng)
    first = prepare(cases[:1], tmp_path / "cache")
    done = stamps(tmp_path / "cache")
    both = prepare(cases, tmp_path / "cache")
    after = stamps(tmp_path / "cache")
    assert both[0].folder == first[0].folder
    assert {name: after[name] for name in done} == done
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_the_key_follows_contents_and_settings(tmp_path, rng):
    (case,) = folder_of(tmp_path / "data", rng, 1)
    cache = tmp_path / "cache"
    base = prepare([case], cache)[0].folder
    mapped = find_cases(tmp_path / "data", label_map="1=NCR,2=ET,4=ED")
    folders = [
        prepare([case], cache, spacing=1.0)[0].folder,
        prepare([case], cache, ignore_affine=True)[0].folder,
        prepare(mapped, cache)[0].folder,
        prepare([replace(case, images={m: p for m, p in case.images.items() if m != "t2"})], cache)[0].folder,
    ]
    path = case.images["t1"]
    os.utime(path, (0, 0))
    assert prepare([case], cache)[0].folder == base  # the date does not matter
    rewrite(path, lambda v: v + (v > 0).astype(v.dtype))
    folders.append(prepare([case], cache)[0].folder)
    assert len({base, *folders}) == 6


def test_a_damaged_entry_is_made_again(tmp_path, rng):
    cases = folder_of(tmp_path / "data", rng, 1)
    (entry,) = prepare(cases, tmp_path / "cache")
    images = np.array(entry.images())
    (entry.folder / "images.npy").unlink()
    (again,) = prepare(cases, tmp_path / "cache")
    np.testing.assert_array_equal(again.images(), images)


def test_worker_processes_prepare_the_same(tmp_path, rng):
    cases = folder_of(tmp_path / "data", rng)
    cases[1].label.write_bytes(b"")
    alone = prepare(cases, tmp_path / "alone", skip_bad=True)
    together = prepare(cases, tmp_path / "together", workers=2, skip_bad=True)
    assert [p.id for p in together] == [p.id for p in alone] == [cases[0].id, cases[2].id]
    for one, two in zip(alone, together, strict=True):
        assert one.folder.name == two.folder.name
        np.testing.assert_array_equal(one.images(), two.images())
        for index, voxels in one.foreground().items():
            np.testing.assert_array_equal(voxels, two.foreground()[index])


def test_all_problems_are_listed_at_once(tmp_path, rng, capsys):
    cases = folder_of(tmp_path / "data", rng, 4)
    cases[0].images["t1"].write_bytes(b"")
    cases[1].label.unlink()
    cases = find_cases(tmp_path / "data")
    rewrite(cases[3].label, lambda v: np.where(v == 4, 9, v))
    with pytest.raises(InputError) as error:
        prepare(cases, tmp_path / "cache")
    lines = str(error.value).splitlines()
    assert lines[0] == "3 of 4 cases cannot be used; repair them or pass --skip-bad:"
    assert "BraTS2021_00000_t1.nii.gz: the file has zero bytes" in lines[1]
    assert "BraTS2021_00001: no label file" in lines[2]
    assert "found label 9" in lines[3]
    assert len(lines) == 4
    left = prepare(cases, tmp_path / "cache", skip_bad=True)
    assert [p.id for p in left] == ["BraTS2021_00002"]
    assert capsys.readouterr().err.splitlines()[0] == "left out 3 of 4 cases:"
    with pytest.raises(InputError, match="none of 3 cases can be used"):
        prepare([cases[0], cases[1], cases[3]], tmp_path / "cache", skip_bad=True)


def test_full_disk_is_no_bad_case(tmp_path, rng, monkeypatch):
    cases = folder_of(tmp_path / "data", rng, 2)

    def full(*_args, **_arrays) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        prepare(cases, tmp_path / "cache", skip_bad=True)
    assert list((tmp_path / "cache").iterdir()) == []


def test_interruption_leaves_no_half_written_case(tmp_path, rng, monkeypatch):
    cases = folder_of(tmp_path / "data", rng, 1)

    def interrupt(*_args, **_arrays) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(cases, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(prepare(cases, tmp_path / "cache")) == 1


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path, rng):
    old, new = tmp_path / "cache" / ".a.0.tmp", tmp_path / "cache" / ".b.0.tmp"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    prepare(folder_of(tmp_path / "data", rng, 1), tmp_path / "cache")
    assert not old.exists()
    assert new.exists()


def test_a_case_that_another_process_finished_meanwhile_stays(tmp_path, rng, monkeypatch):
    cases = folder_of(tmp_path / "data", rng, 1)
    load = prepare_module.load_subject

    def slow(*args, **options):
        monkeypatch.setattr(prepare_module, "load_subject", load)
        prepare(cases, tmp_path / "cache")  # the other process
        return load(*args, **options)

    monkeypatch.setattr(prepare_module, "load_subject", slow)
    (entry,) = prepare(cases, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [entry.folder.name]
    assert entry.images().shape == (*entry.shape, 4)


def test_cache_that_is_a_file_and_odd_workers(tmp_path, rng):
    cases = folder_of(tmp_path / "data", rng, 1)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        prepare(cases, tmp_path / "file")
    with pytest.raises(InputError, match="workers -1"):
        prepare(cases, tmp_path / "cache", workers=-1)


def test_prepared_cases_travel_to_other_processes(tmp_path, rng):
    (entry,) = prepare(folder_of(tmp_path / "data", rng, 1), tmp_path / "cache")
    assert pickle.loads(pickle.dumps(entry)) == entry


def test_progress_is_shown(tmp_path, rng, capsys):
    prepare_cases(folder_of(tmp_path / "data", rng, 1), 2.0, tmp_path / "cache", workers=0)
    assert "Preparing cases: 100%" in capsys.readouterr().err
