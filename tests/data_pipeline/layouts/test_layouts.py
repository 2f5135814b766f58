"""Every layout of the field, written from the same cases, gives the same cases back."""

import re

import nibabel as nib
import numpy as np
import pytest

from data_pipeline.conventions import MODALITIES, region_mask
from data_pipeline.layouts.find import describe, find_cases
from data_pipeline.layouts.table import LAYOUTS
from data_pipeline.preprocessing.subject import load_subject
from data_pipeline.reading.nifti import read_image, read_label
from data_pipeline.reading.write_back import write_label
from tests.data_pipeline.layout_sets import CASES, SETS, source_cases, write_set


@pytest.mark.parametrize("name", SETS)
def test_the_same_images_and_regions_voxel_for_voxel_from_every_layout(tmp_path, name):
    _, _, title, label_map = SETS[name]
    cases = find_cases(write_set(tmp_path, name), label_map)
    assert len(cases) == CASES and {case.layout for case in cases} == {title}
    assert len({case.patient for case in cases}) == CASES
    for case, (images, classes) in zip(cases, source_cases(), strict=True):
        assert tuple(case.images) == MODALITIES
        # The affine of the files reverses the first two axes.
        for m, expected in images.items():
            found = read_image(case.images[m], case.channels.get(m)).data
            np.testing.assert_array_equal(found, expected[::-1, ::-1])
        labels, _ = read_label(case.label, case.convention)
        for region in ("WT", "TC", "ET"):
            np.testing.assert_array_equal(region_mask(labels, region), region_mask(classes[::-1, ::-1], region))


@pytest.mark.parametrize("name", SETS)
def test_predictions_are_written_in_the_source_s_own_values(tmp_path, name):
    case = find_cases(write_set(tmp_path, name), SETS[name][3])[0]
    classes, geometry = read_label(case.label, case.convention)
    write_label(tmp_path / "written.nii.gz", classes, geometry, case.convention)
    written, source = nib.load(tmp_path / "written.nii.gz"), nib.load(case.label)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(source.dataobj))


def test_networks_are_given_the_same_by_every_layout(tmp_path):
    subjects = {}
    for name in ("2021", "2024-ped", "upenn", "msd", "nnunet-regions", "bids", "csv"):
        case = find_cases(write_set(tmp_path / name, name), SETS[name][3])[0]
        subjects[name] = load_subject(case, 1.0)
    first = subjects.pop("2021")
    for subject in subjects.values():
        np.testing.assert_array_equal(subject.images, first.images)
        np.testing.assert_array_equal(subject.label, first.label)


@pytest.mark.parametrize("name", SETS)
def test_the_decision_is_reported(tmp_path, name):
    (line,) = describe(find_cases(write_set(tmp_path, name), SETS[name][3]))
    ncr, ed, et = SETS[name][1]
    assert line.startswith(f"{CASES} cases as in {SETS[name][2]} (")
    assert {f"{ncr} NCR", f"{ed} ED", f"{et} ET"} <= set(re.findall(r"\d \w+", line.partition("label values: ")[2]))


_FORCED = {"tcga": "brats2018", "upenn": "upenn-gbm", "ucsf": "ucsf-pdgm", "nnunet-regions": "nnunet"}


@pytest.mark.parametrize("name", SETS)
def test_a_layout_can_be_forced(tmp_path, name):
    root, label_map = write_set(tmp_path, name), SETS[name][3]
    year = re.match(r"20\d\d", name)
    byyear = {"2013": "brats2013", "2023": "brats2023", "2024": "brats2024"}
    layout = _FORCED.get(name) or (byyear.get(year[0], "brats2018") if year else name)
    assert layout in LAYOUTS
    assert find_cases(root, label_map, layout) == find_cases(root, label_map)


def test_the_images_of_upenn_alone_find_their_labels(tmp_path):
    write_set(tmp_path, "upenn")
    images = tmp_path / "NIfTI-files" / "images_structural"
    whole, part = find_cases(tmp_path), find_cases(images)
    assert [case.label.resolve() for case in part] == [case.label.resolve() for case in whole]
    (case,) = find_cases(images / whole[1].id)
    assert case.label.name == f"{case.id}_automated_approx_segm.nii.gz"


def test_sets_are_joined(tmp_path):
    roots = [write_set(tmp_path / name, name) for name in ("2021", "2024-gli", "msd")]
    cases = find_cases(roots)
    assert len(cases) == 3 * CASES == len({case.id for case in cases})
    assert len(describe(cases)) == 3
