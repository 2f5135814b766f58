import numpy as np
import pytest

from data_pipeline.conventions import CAVITY, CONVENTIONS, region_mask, without_cavity
from data_pipeline.errors import FileError
from data_pipeline.layouts.find import find_cases
from data_pipeline.layouts.label_map import parse_label_map
from data_pipeline.preprocessing.fingerprint import measure_cases
from data_pipeline.preprocessing.subject import load_subject
from data_pipeline.reading.nifti import read_label
from tests.data_pipeline.cases import file_of, rewrite, write_case

ALL = [*CONVENTIONS.values(), parse_label_map("1=ET,2=NET,3=CC,4=ED"), parse_label_map("1=NCR,2=ED,3=ET,4=RC")]


@pytest.mark.parametrize("convention", ALL, ids=lambda c: c.name)
def test_classes_come_back_from_the_values_they_are_written_in(convention):
    classes = np.arange(5 if CAVITY in convention.from_class else 4).reshape(1, 1, -1)
    np.testing.assert_array_equal(convention.decode(convention.encode(classes)), classes)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("brats2013", "1 NCR, 2 ED, 3 NCR, 4 ET"),
        ("brats2018", "1 NCR, 2 ED, 4 ET"),
        ("brats2023", "1 NCR, 2 ED, 3 ET"),
        ("brats2024", "1 NCR, 2 ED, 3 ET, 4 cavity"),
        ("brats2024-ped", "1 ET, 2 NCR, 3 NCR, 4 ED"),
        ("msd", "1 ED, 2 NCR, 3 ET"),
    ],
)
def test_meaning_of_values(name, meaning):
    assert CONVENTIONS[name].meaning == meaning


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("brats2013", [0, 1, 2, 4, 0]),
        ("brats2018", [0, 1, 2, 4, 0]),
        ("brats2023", [0, 1, 2, 3, 0]),
        ("brats2024", [0, 1, 2, 3, 4]),
        ("brats2024-ped", [0, 2, 4, 1, 0]),
        ("msd", [0, 2, 1, 3, 0]),
    ],
)
def test_values_that_are_written(name, values):
    assert CONVENTIONS[name].encode(np.arange(5)).tolist() == values


def test_no_region_holds_the_cavity():
    classes = np.array([[[0, 1, 2, 3, CAVITY]]], np.uint8)
    assert [region_mask(classes, region).sum() for region in ("WT", "TC", "ET")] == [3, 2, 1]
    assert without_cavity(classes).tolist() == [[[0, 1, 2, 3, 0]]]


def _with_cavity(folder):
    """A case of 2024 whose outermost tumour voxels are a cavity, and the same without a label there."""
    cases = []
    for name, value in (("with", 4), ("without", 0)):
        home = write_case(folder / name, rng=np.random.default_rng(3), layout="2023", case="BraTS-GLI-00001-101")
        rewrite(
            file_of(home, home.name, "seg", "2023"),
            lambda labels, value=value: np.where(labels == 2, value, labels).astype(np.uint8),
        )
        cases += find_cases(home)
    return cases


def test_the_cavity_is_read_as_its_own_class_and_trained_on_as_background(tmp_path):
    case, plain = _with_cavity(tmp_path)
    assert set(np.unique(read_label(case.label, case.convention)[0])) == {0, 1, 3, CAVITY}
    np.testing.assert_array_equal(load_subject(case, 1.0).label, load_subject(plain, 1.0).label)
    np.testing.assert_array_equal(load_subject(case, 2.0).label, load_subject(plain, 2.0).label)


def test_the_cavity_is_no_tumour_to_the_fingerprint(tmp_path):
    first, second = (measure_cases([case], workers=0, progress=False) for case in _with_cavity(tmp_path))
    assert first.intensities == second.intensities


def test_a_4_in_a_set_of_2023_points_to_the_later_layout(tmp_path):
    home = write_case(tmp_path, rng=np.random.default_rng(3), layout="2023", case="BraTS-MET-00001-000")
    rewrite(file_of(home, home.name, "seg", "2023"), lambda labels: np.where(labels == 2, 4, labels))
    (case,) = find_cases(home)
    with pytest.raises(FileError, match="--layout brats2024"):
        read_label(case.label, case.convention)
    (case,) = find_cases(home, layout="brats2024")
    assert CAVITY in read_label(case.label, case.convention)[0]
