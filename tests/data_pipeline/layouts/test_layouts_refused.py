"""Names that leave something open, and files that describe a data set wrongly: the errors."""

import json
import re
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from data_pipeline.layouts.find import find_cases
from tests.data_pipeline.layout_sets import HYPHENED, UNDERSCORED


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def yearly(name: str) -> list[str]:
    return [f"{name}/{Path(name).name}{suffix}.nii.gz" for suffix in HYPHENED]


@pytest.mark.parametrize(
    ("name", "convention"),
    [
        ("BraTS-GLI-00005-000", "brats2023"),
        ("BraTS-GLI-00005-100", "brats2024"),
        ("ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/BraTS-GLI-00005-001", "brats2023"),
        ("BraTS2024-BraTS-GLI/training_data1_v2/BraTS-GLI-00005-001", "brats2024"),
        ("BraTS_2024/BraTS-GLI-00005-001", "brats2024"),
        ("BraTS2024/BraTS2023-SSA/BraTS-SSA-00005-001", "brats2023"),
        ("BraTS2025-MET/BraTS-MET-00005-000", "brats2024"),
        ("BraTS2024-PED/BraTS-PED-00005-000", "brats2024-ped"),
        ("BraTS2023-PED/BraTS-PED-00005-000", "brats2023"),
        ("BraTS-PEDs2024_Training/BraTS-PED-00005-000", "brats2024-ped"),
        ("BraTS2024-SSA/BraTS-SSA-00005-000", "brats2023"),
        ("BraTS2024/BraTS-MEN-00005-000", "brats2023"),
    ],
)
def test_folders_and_time_points_tell_the_year(tmp_path, name, convention):
    touch(tmp_path, *yearly(name))
    (case,) = find_cases(tmp_path)
    assert case.convention.name == convention
    (case,) = find_cases(tmp_path / name)
    assert case.convention.name == convention


@pytest.mark.parametrize(("layout", "convention"), [("brats2023", "brats2023"), ("brats2024", "brats2024-ped")])
def test_a_layout_settles_the_year_of_paediatric_cases(tmp_path, layout, convention):
    touch(tmp_path, *yearly("BraTS-PED-00005-000"))
    (case,) = find_cases(tmp_path, layout=layout)
    assert case.convention.name == convention


@pytest.mark.parametrize("folder", ["brats_project_2025", "mybrats/2025"])
def test_only_a_folder_named_after_a_year_of_brats_settles_it_and_predictions_need_it_too(tmp_path, folder):
    images = [path for path in yearly(f"{folder}/BraTS-PED-00005-000") if "-seg" not in path]
    touch(tmp_path, *images)
    with pytest.raises(InputError, match=r"BraTS-PED files mean .* pass --layout"):
        find_cases(tmp_path)


def test_time_points_and_follow_ups_are_one_patient(tmp_path):
    touch(tmp_path, *yearly("BraTS-GLI-00005-100"), *yearly("BraTS-GLI-00005-101"))
    touch(tmp_path, "UCSF-PDGM-0391_nifti/UCSF-PDGM-0391_T1.nii.gz")
    touch(tmp_path, "UCSF-PDGM-0391_FU016d_nifti/UCSF-PDGM-0391_FU016d_T1.nii.gz")
    touch(tmp_path, *(f"u/UPENN-GBM-00001_{visit}/UPENN-GBM-00001_{visit}_T1.nii.gz" for visit in (11, 21)))
    found = {case.id: case.patient for case in find_cases(tmp_path)}
    assert len(found) == 6
    assert set(found.values()) == {"BraTS-GLI-00005", "UCSF-PDGM-0391", "UPENN-GBM-00001"}


def test_a_case_in_two_roots_names_both_folders(tmp_path):
    for part in ("a", "b"):
        touch(tmp_path / part, *(f"BraTS2021_00001/BraTS2021_00001{suffix}.nii" for suffix in UNDERSCORED))
    with pytest.raises(InputError, match=r"there are two cases BraTS2021_00001, in .*/a/BraTS.* and in .*/b/BraTS"):
        find_cases([tmp_path / "a", tmp_path / "b"])


def test_unknown_and_unfitting_layouts(tmp_path):
    touch(tmp_path, *yearly("BraTS-GLI-00005-000"))
    with pytest.raises(InputError, match=r"layout brats: not known; expected one of brats2013, "):
        find_cases(tmp_path, layout="brats")
    with pytest.raises(InputError, match=r"no cases in the layout bids.*found 5 files, for example BraTS-GLI"):
        find_cases(tmp_path, layout="bids")


def test_the_recipe_for_mha_is_a_program_that_names_the_folder(tmp_path):
    touch(tmp_path, "HGG/brats_2013_pat0001_1/VSD.Brain.XX.O.MR_Flair.54512/VSD.Brain.XX.O.MR_Flair.54512.mha")
    with pytest.raises(InputError) as error:
        find_cases(tmp_path)
    program = re.search(r"<<'END'\n(.+)\nEND", str(error.value), re.DOTALL)
    compile(program[1], "recipe", "exec")
    assert f"PosixPath('{tmp_path}')" not in program[1] and f"Path('{tmp_path}')" in program[1]


CHANNELS = {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}
LABELS = {"background": 0, "edema": 1, "necrotic core": 2, "enhancing tumor": 3}


def dataset(root: Path, **content: object) -> None:
    touch(root, *(f"imagesTr/A_{channel:04d}.nii.gz" for channel in range(4)), "labelsTr/A.nii.gz")
    (root / "dataset.json").write_text(json.dumps({"channel_names": CHANNELS, "labels": LABELS} | content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"channel_names": {**CHANNELS, "0": "CT"}}, 'channel 0 is called "CT": not a known modality'),
        ({"channel_names": {**CHANNELS, "1": "T1"}}, "t1, as is channel 0"),
        ({"channel_names": None}, "neither channel_names nor modality"),
        ({"channel_names": {"0": "T1"}}, "A_0001.nii.gz: channel 1 is not named in .*dataset.json"),
        ({"labels": {"background": 0, "tumour": 1}}, 'calls one "tumour", not a known name of NCR, ED, ET'),
        ({"labels": {"background": 0, "edema": 1}}, "labels has no NCR, ET"),
        ({"labels": {"background": 0, "WT": [1, 2], "TC": [2, 3], "ET": 3}}, "do not lie within each other"),
        ({"labels": "many"}, "at labels"),
        ({"labels": {**LABELS, "edema": 3}}, "gives one value to two classes"),
        ({"labels": {"background": 0, "WT": [1, 2, 3, 4], "TC": [1, 3], "ET": 3, "RC": 4}}, "one value to two classes"),
        ({"labels": {**LABELS, "edema": -1}}, r'gives "edema" the values \[-1\]; expected 0 to 255'),
        ({"labels": {**LABELS, "edema": []}}, r'gives "edema" the values \[\]'),
        ({"labels": {"background": 0, "WT": [0, 1, 2, 3], "TC": [2, 3], "ET": 3}}, "0 is the background"),
        ({"channel_names": {"-1": "T1", "0": "T1ce"}}, "has the channels -1, 0; expected 0 to 1"),
        ({"channel_names": {"0": "T1", "2": "T1ce"}}, "has the channels 0, 2; expected 0 to 1"),
        ({"file_ending": ".nrrd"}, "file_ending is .nrrd"),
    ],
)
def test_a_dataset_json_that_does_not_fit(tmp_path, content, message):
    dataset(tmp_path, **content)
    with pytest.raises(InputError, match=message):
        find_cases(tmp_path)


def test_a_dataset_json_is_read_from_its_folders_too_and_may_name_a_cavity(tmp_path):
    dataset(tmp_path, labels={"background": 0, "WT": [1, 2, 3], "TC": [1, 3], "ET": 3, "RC": 4})
    touch(tmp_path, *(f"imagesTs/B_{channel:04d}.nii.gz" for channel in range(4)))
    assert [case.id for case in find_cases(tmp_path)] == ["A", "B"]
    (case,) = find_cases(tmp_path / "imagesTs")
    assert case.id == "B" and case.label is None
    (case,) = find_cases(tmp_path / "imagesTr")
    assert case.label == tmp_path / "labelsTr" / "A.nii.gz"
    assert case.convention.meaning == "1 NCR, 2 ED, 3 ET, 4 cavity"


def test_two_strange_labels_of_one_case(tmp_path):
    touch(tmp_path, *(f"B/B{suffix}.nii" for suffix in UNDERSCORED[:4]), "B/W38_Segm.nii")
    (case,) = find_cases(tmp_path)
    assert case.label == tmp_path / "B" / "W38_Segm.nii"
    touch(tmp_path, "B/W39_Segm.nii")
    with pytest.raises(InputError, match=r"W39_Segm\.nii: W38_Segm\.nii is a second file for seg of B"):
        find_cases(tmp_path)
    touch(tmp_path, "B/B_seg.nii")
    (case,) = find_cases(tmp_path)
    assert case.label == tmp_path / "B" / "B_seg.nii"


def test_images_without_their_dataset_json(tmp_path):
    touch(tmp_path, "imagesTr/BRATS_001.nii.gz")
    with pytest.raises(
        InputError, match=r"dataset\.json: does not exist; put the data set's own file next to imagesTr"
    ):
        find_cases(tmp_path)


def test_bids_asks_for_a_map_and_for_one_file_per_modality(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_FLAIR.nii.gz")
    (case,) = find_cases(tmp_path)
    assert (case.id, case.label, list(case.images)) == ("sub-1", None, ["t1", "flair"])
    touch(tmp_path, "sub-1/anat/sub-1_dseg.nii.gz")
    with pytest.raises(InputError, match=r"sub-1_dseg\.nii\.gz: BIDS does not say .* pass --label-map"):
        find_cases(tmp_path)
    touch(tmp_path, "sub-1/anat/sub-1_run-2_T1w.nii.gz")
    with pytest.raises(InputError, match=r"sub-1_run-2_T1w.* is a second file for t1 of sub-1|sub-1_T1w.*second file"):
        find_cases(tmp_path, label_map="1=NCR,2=ED,3=ET")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the columns"),
        ("case,t1,t1gd\nA,a.nii,a.nii\n", "line 1: unknown column 't1gd'"),
        ("case;t1\nA;a.nii\n", "line 1: unknown column 'case;t1'"),
        ("case,seg\nA,a.nii\n", "case and one modality are needed"),
        ("case,t1\n", "lists no case"),
        ("case,t1\nA,c.nii\n", r"line 2: .*c\.nii does not exist"),
        ("case,t1\nA,cases.csv\n", r"line 2: cases\.csv does not end in \.nii"),
        (f"case,t1\nA,{'x' * 5000}\n", r"line 2: .*xxx does not exist"),
        ("case,t1\nA,a.nii\n\nA,a.nii\n", "line 4: case A is also in line 2"),
        ("case,t1\nA,a.nii,a.nii\n", "line 2: 3 cells under 2 columns"),
        ("case,t1\n../A,a.nii\n", "line 2: '../A' cannot name a case"),
        ("case,t1\nA,\n", "line 2: A has no image"),
        ("case,t1,seg\nA,a.nii,b.nii\n", "line 2: .*pass --label-map"),
        ("case,t1,t2\nA,a.nii,./a.nii\n", r"line 2: t1 and t2 are the same file, a\.nii"),
        ("case,t1,seg\nA,a.nii,a.nii\n", r"line 2: t1 and seg are the same file, a\.nii"),
    ],
)
def test_a_csv_that_does_not_fit(tmp_path, text, message):
    touch(tmp_path, "a.nii", "b.nii")
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        find_cases(tmp_path / "cases.csv")


def test_a_csv_may_name_patients_and_leave_files_out(tmp_path):
    touch(tmp_path, "a.nii", "b.nii.gz")
    (tmp_path / "cases.csv").write_text(
        "\ufeffcase, T1 ,flair,patient\nA,a.nii,,P\nB,,b.nii.gz,P\nC,a.nii,,\n", "utf-8"
    )
    found = find_cases(tmp_path / "cases.csv")
    assert [(case.patient, list(case.images)) for case in found] == [("P", ["t1"]), ("P", ["flair"]), ("C", ["t1"])]
