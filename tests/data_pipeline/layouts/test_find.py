import pickle
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from data_pipeline.layouts.find import find_cases
from data_pipeline.layouts.label_map import parse_label_map
from tests.data_pipeline.cases import file_of, write_case


def touch(*paths: Path) -> None:
    """Names decide everything here: no file is opened."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def touch_case(folder: Path, suffixes: list[str], extension: str = ".nii.gz") -> None:
    touch(*(folder / f"{folder.name}{suffix}{extension}" for suffix in suffixes))


UNDERSCORED = ["_t1", "_t1ce", "_t2", "_flair", "_seg"]
HYPHENED = ["-t1n", "-t1c", "-t2w", "-t2f", "-seg"]


@pytest.mark.parametrize(
    ("name", "suffixes", "layout", "convention", "patient"),
    [
        ("Brats18_TCIA01_201_1", UNDERSCORED, "BraTS 2018-2021", "brats2018", "Brats18_TCIA01_201_1"),
        # Patients of 2013 that later years renamed have the later years' labels.
        ("Brats18_2013_2_1", UNDERSCORED, "BraTS 2018-2021", "brats2018", "Brats18_2013_2_1"),
        ("BraTS20_Training_001", UNDERSCORED, "BraTS 2018-2021", "brats2018", "BraTS20_Training_001"),
        ("BraTS2021_00000", UNDERSCORED, "BraTS 2018-2021", "brats2018", "BraTS2021_00000"),
        ("TCGA-FG-6692", UNDERSCORED, "BraTS 2018-2021", "brats2018", "TCGA-FG-6692"),
        ("brats_2013_pat0001_1", UNDERSCORED, "BraTS 2013", "brats2013", "brats_2013_pat0001_1"),
        ("BraTS-GLI-00000-001", HYPHENED, "BraTS 2023", "brats2023", "BraTS-GLI-00000"),
        ("BraTS-MEN-00004-000", HYPHENED, "BraTS 2023", "brats2023", "BraTS-MEN-00004"),
    ],
)
@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".NII.GZ"])
def test_names_decide_layout_and_convention(tmp_path, name, suffixes, layout, convention, patient, extension):
    touch_case(tmp_path / name, suffixes, extension)
    (case,) = find_cases(tmp_path)
    assert (case.id, case.layout, case.convention.name, case.patient) == (name, layout, convention, patient)
    files = dict(zip(("t1", "t1ce", "t2", "flair"), suffixes, strict=False))
    assert dict(case.images) == {m: tmp_path / name / f"{name}{s}{extension}" for m, s in files.items()}
    assert case.label == tmp_path / name / f"{name}{suffixes[4]}{extension}"


def test_nested_folders_sorted_by_id_and_hidden_files_skipped(tmp_path):
    touch_case(tmp_path / "LGG" / "Brats18_A_1", UNDERSCORED)
    touch_case(tmp_path / "HGG" / "Brats18_B_1", UNDERSCORED)
    touch(tmp_path / "HGG" / "Brats18_B_1" / "._Brats18_B_1_t1.nii.gz", tmp_path / "HGG" / "survival_data.csv")
    touch_case(tmp_path / "__MACOSX" / "Brats18_A_1", UNDERSCORED)
    assert [case.id for case in find_cases(tmp_path)] == ["Brats18_A_1", "Brats18_B_1"]


def test_root_may_be_one_patient_folder(tmp_path, rng):
    home = write_case(tmp_path, rng=rng, layout="2023", modalities=("t1ce", "flair"))
    (case,) = find_cases(home)
    assert case.id == home.name
    assert set(case.images) == {"t1ce", "flair"}
    assert case.images["flair"] == file_of(home, home.name, "flair", "2023")


def test_missing_files_are_absent(tmp_path):
    touch_case(tmp_path / "BraTS2021_00001", ["_flair"])
    (case,) = find_cases(tmp_path)
    assert list(case.images) == ["flair"]
    assert case.label is None


def test_letter_case_of_suffixes_does_not_matter(tmp_path):
    touch_case(tmp_path / "P1", ["_T1", "_T1CE", "_T2", "_FLAIR", "_Seg"])
    (case,) = find_cases(tmp_path)
    assert list(case.images) == ["t1", "t1ce", "t2", "flair"]
    assert case.label is not None


def test_stray_label_of_brats_2020_case_355(tmp_path):
    home = tmp_path / "BraTS20_Training_355"
    touch_case(home, UNDERSCORED[:4], ".nii")
    touch(home / "W39_1998.09.19_Segm.nii")
    (case,) = find_cases(tmp_path)
    assert case.label == home / "W39_1998.09.19_Segm.nii"


def test_tcia_release_prefers_the_corrected_label(tmp_path):
    name = "TCGA-02-0006_1996.08.23"
    touch_case(tmp_path / name, ["_t1", "_t1Gd", "_t2", "_flair", "_GlistrBoost", "_GlistrBoost_ManuallyCorrected"])
    (case,) = find_cases(tmp_path)
    assert case.label == tmp_path / name / f"{name}_GlistrBoost_ManuallyCorrected.nii.gz"
    assert case.images["t1ce"].name == f"{name}_t1Gd.nii.gz"
    assert case.patient == "TCGA-02-0006"


def test_linked_folders_are_followed_once(tmp_path):
    touch_case(tmp_path / "store" / "BraTS2021_00001", UNDERSCORED)
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "store")
    (root / "loop").symlink_to(root)
    assert [case.id for case in find_cases(root)] == ["BraTS2021_00001"]


def test_duplicate_ids(tmp_path):
    for part in ("HGG", "LGG"):
        touch_case(tmp_path / part / "Brats18_A_1", UNDERSCORED)
    with pytest.raises(InputError, match=r"there are two cases Brats18_A_1, in .*HGG.* and in .*LGG"):
        find_cases(tmp_path)


def test_two_files_for_one_modality(tmp_path):
    touch_case(tmp_path / "A_1", UNDERSCORED)
    touch_case(tmp_path / "A_1", ["_t1"], ".nii")
    with pytest.raises(InputError, match=r"second file for t1; keep one"):
        find_cases(tmp_path)


def test_nothing_found_says_which_layouts_are_understood(tmp_path):
    with pytest.raises(InputError, match=r"no cases found(.|\n)*t1ce.*BraTS 2018 to 2021(.|\n)*t2f.*BraTS 2023"):
        find_cases(tmp_path)
    touch(tmp_path / "notes.txt", tmp_path / "a" / "brain.nii.gz")
    with pytest.raises(
        InputError, match=r"found 2 files, for example a/brain\.nii\.gz, notes\.txt; name(.|\n)*BIDS(.|\n)*CSV"
    ):
        find_cases(tmp_path)


def test_mha_says_how_to_convert(tmp_path):
    touch(tmp_path / "HGG" / "brats_2013_pat0001_1" / "VSD.Brain.XX.O.MR_Flair.54512" / "VSD.mha")
    with pytest.raises(InputError, match=r"VSD\.mha: nibabel cannot read MHA.*SimpleITK"):
        find_cases(tmp_path)


def test_root_must_be_a_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        find_cases(tmp_path / "absent")
    touch(tmp_path / "x_t1.nii")
    with pytest.raises(InputError, match=r"x_t1\.nii: is a file; expected the folder"):
        find_cases(tmp_path / "x_t1.nii")


def test_paediatric_labels_need_a_map(tmp_path):
    touch_case(tmp_path / "BraTS-PED-00001-000", HYPHENED)
    with pytest.raises(InputError, match="or --label-map"):
        find_cases(tmp_path)
    (case,) = find_cases(tmp_path, label_map="1=ET,2=NET,3=CC,4=ED")
    assert dict(case.convention.to_class) == {0: 0, 1: 3, 2: 1, 3: 1, 4: 2}
    assert dict(case.convention.from_class) == {0: 0, 3: 1, 1: 2, 2: 4}


def test_label_map_overrides_every_layout(tmp_path):
    touch_case(tmp_path / "BraTS2021_00001", UNDERSCORED)
    touch_case(tmp_path / "brats_2013_pat0001_1", UNDERSCORED)
    conventions = {case.convention.name for case in find_cases(tmp_path, label_map="1=ED, 2=net, 3=ET")}
    assert conventions == {"label map 1=ED, 2=net, 3=ET"}


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("1=NCR,2=ED", "no value for ET"),
        ("1=NCR,2=ED,4=TUMOUR", "unknown class TUMOUR; expected one of"),
        ("1=NCR,1=ED,4=ET", "the value 1 is named twice"),
        ("NCR=1", 'cannot read "NCR=1"'),
        ("", 'cannot read ""'),
        ("0=NCR,2=ED,4=ET", "value 0 is not allowed"),
        ("1=NCR,2=ED,256=ET", "value 256 is not allowed"),
        ("1.5=NCR,2=ED,4=ET", 'cannot read "1.5=NCR"'),
    ],
)
def test_label_map_is_checked(text, fragment):
    with pytest.raises(InputError) as error:
        parse_label_map(text)
    assert fragment in str(error.value)


def test_cases_travel_to_other_processes(tmp_path):
    touch_case(tmp_path / "BraTS2021_00001", UNDERSCORED)
    (case,) = find_cases(tmp_path)
    assert pickle.loads(pickle.dumps(case)) == case
