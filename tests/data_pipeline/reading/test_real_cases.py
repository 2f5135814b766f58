"""The four real cases next to the repository on a developer's machine."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_pipeline.case import Case
from data_pipeline.check.checked_case import CheckedCase, check_case
from data_pipeline.check.summary import check_dataset
from data_pipeline.conventions import MODALITIES, OUTSIDE_BRAIN
from data_pipeline.layouts.find import find_cases
from data_pipeline.preprocessing.subject import Subject, load_subject, to_original_grid
from data_pipeline.reading.nifti import read_label
from data_pipeline.reading.scan import inspect_case
from data_pipeline.reading.write_back import write_label

DATA = Path(__file__).resolve().parents[3] / "../shared/data"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"{DATA} is not there: real cases are not part of the project"
)


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return {case.id: case for case in find_cases(DATA)}


@pytest.fixture(scope="module")
def subjects(cases) -> dict[str, Subject]:
    return {name: load_subject(case, 1.0) for name, case in cases.items()}


def test_all_are_found_with_their_conventions(cases):
    assert {name: (case.layout, case.convention.name, tuple(case.images)) for name, case in cases.items()} == {
        "TCGA-DU-7294": ("BraTS 2018-2021", "brats2018", MODALITIES),
        "TCGA-FG-6692": ("BraTS 2018-2021", "brats2018", MODALITIES),
        "brats_2013_pat0001_1": ("BraTS 2013", "brats2013", ("t1ce", "flair")),
        "brats_2013_pat0002_1": ("BraTS 2013", "brats2013", ("t1ce", "flair")),
    }


CLIPPED = {  # negative voxels that resampling left
    "TCGA-DU-7294": {"t1": 2250, "t1ce": 1242, "t2": 136, "flair": 1561},
    "TCGA-FG-6692": {"t1": 1472, "t1ce": 4, "t2": 5528, "flair": 14121},
}
BACKGROUND = {  # the constants around brains that are already z-scored
    "brats_2013_pat0001_1": {"t1ce": -4.755, "flair": -3.624},
    "brats_2013_pat0002_1": {"t1ce": -3.581, "flair": -3.194},
}


@pytest.fixture(scope="module")
def reports(cases) -> dict[str, CheckedCase]:
    return {name: check_case(case) for name, case in cases.items()}


def test_all_pass_the_check_with_the_notes_they_deserve(reports):
    expected = {
        name: [f"{name}_{m}.nii.gz: {count} negative voxels clipped to 0" for m, count in counts.items()]
        for name, counts in CLIPPED.items()
    } | {
        name: [
            *(
                f"{name}_{m}.nii.gz: the background is the constant {value}: the image is already normalised"
                for m, value in values.items()
            ),
            "no t1, t2; networks that need them cannot use this case",
        ]
        for name, values in BACKGROUND.items()
    }
    assert {name: [finding.note() for finding in report.findings] for name, report in reports.items()} == expected
    assert {finding.severity for report in reports.values() for finding in report.findings} == {"note"}
    assert check_dataset(list(reports.values())) == []


def test_what_the_check_measures(cases, reports):
    for name, report in reports.items():
        assert report.shape == (240, 240, 155)
        values = np.asarray(nib.load(cases[name].label).dataobj)
        assert report.volumes_ml["WT"] == pytest.approx(np.count_nonzero(values) / 1000)
        assert report.volumes_ml["ET"] == pytest.approx(np.count_nonzero(values == 4) / 1000)
        assert len(report.thumbnail) < 20_000
    assert reports["TCGA-DU-7294"].volumes_ml["ET"] == 0


@pytest.mark.parametrize("name", [*CLIPPED, *BACKGROUND])
def test_preparation_notes_the_same(subjects, reports, name):
    assert set(subjects[name].findings) == {finding for finding in reports[name].findings if finding.file}


@pytest.mark.slow
@pytest.mark.parametrize("swap", [("t1", "t2"), ("t1", "flair"), ("t2", "flair"), ("t1ce", "flair"), ("t1ce", "t2")])
def test_swapped_files_are_noticed(cases, swap):
    for case in cases.values():
        if set(swap) <= set(case.images):
            a, b = swap
            swapped = replace(case, images={**case.images, a: case.images[b], b: case.images[a]})
            warnings = [f.remedy for f in inspect_case(swapped).findings if f.severity == "warning"]
            assert warnings and all("are two of them swapped?" in remedy for remedy in warnings)


@pytest.mark.parametrize("name", ["TCGA-DU-7294", "TCGA-FG-6692", "brats_2013_pat0001_1", "brats_2013_pat0002_1"])
def test_a_brain_remains(subjects, name):
    """1 mm voxels: an adult brain without skull has 1.0 to 1.8 litres; z-scores inside it, nothing outside."""
    subject = subjects[name]
    assert subject.spacing == (1, 1, 1)
    assert 1.0e6 < subject.mask.sum() < 1.8e6
    channels = [MODALITIES.index(m) for m in subject.modalities]
    inside = subject.images[subject.mask][:, channels].astype(np.float64)
    np.testing.assert_allclose(inside.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(inside.std(axis=0), 1, atol=1e-3)
    assert not subject.images[~subject.mask].any()
    assert not np.delete(subject.images, channels, axis=-1).any()


def test_classes_present(subjects):
    found = {name: set(np.unique(subject.label)) - {OUTSIDE_BRAIN} for name, subject in subjects.items()}
    assert found["TCGA-DU-7294"] == {0, 1, 2}  # no enhancing tumour
    assert all(found[name] == {0, 1, 2, 3} for name in found if name != "TCGA-DU-7294")


def test_no_tumour_is_lost_to_the_mask(cases, subjects):
    for name, subject in subjects.items():
        values = np.asarray(nib.load(cases[name].label).dataobj)
        inside = (subject.label != 0) & (subject.label != OUTSIDE_BRAIN)
        assert inside.sum() == np.count_nonzero(values)


@pytest.mark.parametrize("name", ["TCGA-FG-6692", "brats_2013_pat0001_1"])
def test_label_returns_to_the_original_grid(cases, subjects, tmp_path, name):
    case, subject = cases[name], subjects[name]
    classes = np.zeros(subject.reference.shape, np.uint8)
    classes[subject.crop] = np.where(subject.label == OUTSIDE_BRAIN, 0, subject.label)
    write_label(tmp_path / "seg.nii.gz", classes, subject.reference, case.convention)
    written, source = nib.load(tmp_path / "seg.nii.gz"), nib.load(case.label)
    values = np.asarray(source.dataobj).astype(np.uint8)
    if case.convention.name == "brats2013":
        values = np.where(values == 3, 1, values)  # necrosis and non-enhancing core are one class
    np.testing.assert_array_equal(written.dataobj, values)
    assert written.shape == source.shape
    np.testing.assert_array_equal(written.affine, source.affine)
    np.testing.assert_array_equal(read_label(tmp_path / "seg.nii.gz", case.convention)[0], classes)


@pytest.mark.slow
def test_two_millimetres_and_back_keep_the_tumour_in_place(cases, subjects):
    name = "TCGA-FG-6692"
    coarse, fine = load_subject(cases[name], 2.0), subjects[name]
    assert coarse.crop == fine.crop
    whole = np.isin(coarse.label, (1, 2, 3)).astype(np.float32)
    slabs = to_original_grid(np.stack([1 - whole, whole], axis=-1), coarse, (1, 0))
    back = np.concatenate([slab[..., 1] for _, slab in slabs])
    truth = np.zeros(back.shape, bool)
    truth[fine.crop] = np.isin(fine.label, (1, 2, 3))
    found = back >= 0.5
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9
    positions = np.argwhere(back > 0)
    centre = np.average(positions, axis=0, weights=back[back > 0])
    # In mm: half a coarse voxel would be 1, half a fine one 0.5.
    np.testing.assert_allclose(centre, np.argwhere(truth).mean(axis=0), atol=0.15)


@pytest.mark.slow
def test_the_mask_of_two_modalities_is_nearly_that_of_four(cases, subjects):
    """A clinic without T1 and T2 gets a mask that differs in 28 of 1,602,573 voxels (2e-5), hence z-scores of T1CE
    and FLAIR that differ by less than 0.004: one mask per case in training is no other input than its own at test.
    """
    four, two = subjects["TCGA-FG-6692"], load_subject(cases["TCGA-FG-6692"], 1.0, ("t1ce", "flair"))
    assert two.crop == four.crop
    assert np.count_nonzero(two.mask != four.mask) < 5e-5 * four.mask.sum()
    channels = [MODALITIES.index("t1ce"), MODALITIES.index("flair")]
    difference = np.abs(two.images - four.images)[two.mask & four.mask][:, channels]
    assert difference.max() < 0.004
