import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from data_pipeline.errors import InputError
from experiments.parity.check import GOLDEN
from kd_jax.cases import gather_cases
from kd_jax.settings import parse_config
from kd_jax.split import SplitRecord, given_split, split_patients
from tests.data_pipeline.cases import write_case


def test_the_split_is_nnunets_where_each_patient_has_one_case():
    # nnunetv2: KFold(n_splits=5, shuffle=True, random_state=12345) over the sorted case identifiers.
    names = [f"BraTS2021_{i:05d}" for i in range(23)]
    for fold, (train, held) in enumerate(KFold(5, shuffle=True, random_state=12345).split(names)):
        assert split_patients(names, 5, fold) == (train.tolist(), held.tolist())


@given(st.lists(st.sampled_from("abcdefgh"), min_size=12).filter(lambda x: len(set(x)) >= 3), st.integers(0, 2))
def test_no_patient_is_on_both_sides_and_no_case_is_lost(patients, fold):
    train, held = split_patients(patients, 3, fold)
    assert sorted(train + held) == list(range(len(patients)))
    assert not {patients[i] for i in train} & {patients[i] for i in held}
    assert train and held


def test_every_patient_is_held_out_once():
    patients = [f"p{i // 2}" for i in range(14)]
    held = [i for fold in range(3) for i in split_patients(patients, 3, fold)[1]]
    assert sorted(held) == list(range(14))


def test_fold_all_trains_and_validates_on_everyone():
    assert split_patients(["a", "b"], 5, "all") == ([0, 1], [0, 1])


def test_fewer_patients_than_folds_are_refused():
    with pytest.raises(
        InputError, match=r"data\.folds is 5, but there are 2 patients: give fewer folds, or --data\.fold"
    ):
        split_patients(["a", "b", "b"], 5, 0)


def _config(tmp_path, **data):
    values = {"root": str(tmp_path / "cases"), "cache": str(tmp_path / "cache"), "spacing": [1, 1, 1], "folds": 2}
    return parse_config({"data": {**values, **data}}, "test")


def test_cases_without_a_modality_are_listed_or_left_out(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(3):
        write_case(tmp_path / "cases", rng=rng, number=number, shape=(12, 12, 12))
    write_case(tmp_path / "cases", rng=rng, number=3, shape=(12, 12, 12), modalities=("flair", "t1ce"))
    with pytest.raises(InputError, match=r"1 of 4 cases miss a modality[^\n]*\n  BraTS2021_00003: has no t1, t2"):
        gather_cases(_config(tmp_path))
    split = gather_cases(_config(tmp_path, skip_bad=True))
    assert "left out:\n  BraTS2021_00003: has no t1, t2" in capsys.readouterr().err
    assert len(split.train) + len(split.validation) == 3
    record = split.record(_config(tmp_path).data)
    record.write(tmp_path)
    assert SplitRecord.read(tmp_path) == record
    assert sorted(record.train + record.validation) == [f"BraTS2021_0000{i}" for i in range(3)]


def test_what_is_wrong_is_listed_at_once(tmp_path):
    rng = np.random.default_rng(0)
    write_case(tmp_path / "cases", rng=rng, number=0, shape=(12, 12, 12))
    write_case(tmp_path / "cases", rng=rng, number=1, shape=(12, 12, 12), modalities=("flair", "t1ce"))
    broken = write_case(tmp_path / "cases", rng=rng, number=2, shape=(12, 12, 12))
    (broken / "BraTS2021_00002_t1.nii.gz").write_bytes(b"")
    with pytest.raises(InputError) as error:
        gather_cases(_config(tmp_path))
    assert "BraTS2021_00002_t1.nii.gz: the file has zero bytes" in str(error.value)
    assert "BraTS2021_00001: has no t1, t2" in str(error.value)


def test_a_damaged_split_is_named(tmp_path):
    (tmp_path / "split.json").write_text('{"train": []}')
    with pytest.raises(InputError, match=r"split\.json: damaged"):
        SplitRecord.read(tmp_path)
    assert SplitRecord.read(tmp_path / "nowhere") is None


def test_the_folds_are_those_that_nnunet_itself_made():
    folds = json.loads((GOLDEN / "splits.json").read_text())
    names = sorted(folds[0]["train"] + folds[0]["val"])
    for fold, split in enumerate(folds):
        train, held = split_patients(names, 5, fold)
        assert ([names[i] for i in train], [names[i] for i in held]) == (split["train"], split["val"])


def test_a_given_split_in_nnunets_form_is_honoured(tmp_path):
    names = ["a", "b", "c", "d"]
    file = _splits(tmp_path, [{"train": ["c", "a"], "val": ["b"]}, {"train": ["b"], "val": ["c", "d"]}])
    assert given_split(file, 0, names) == ([0, 2], [1])  # d is in neither part
    assert given_split(file, 1, names) == ([1], [2, 3])
    assert given_split(file, "all", names) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert given_split(file, 1, ["b", "c"], some_left_out=True) == ([0], [1])


@pytest.mark.parametrize(
    ("content", "fold", "message"),
    [
        ([{"train": ["a"], "val": ["b"]}], 1, r"has 1 folds; data\.fold 1 is not there: give 0 to 0"),
        ([{"train": ["a"], "val": ["z"]}], 0, r"names 1 cases that are not in the data, first z \(there is.* a\)"),
        ([{"train": ["a", "b"], "val": ["b"]}], 0, r"fold 0 trains on what it holds out, first b"),
        ([{"train": ["a", "a"], "val": ["b"]}], 0, r"fold 0 names a twice in train"),
        ([{"train": ["a"], "val": []}], 0, r"fold 0 has 1 training and 0 held-out cases"),
        ([{"train": ["a"], "test": ["b"]}], 0, r"expected nnU-Net's form.*found at 0\.val: .*required"),
        ({"train": ["a"]}, 0, r"expected nnU-Net's form.*found at the top: .*array"),
        ([], 0, r"found no fold"),
        (None, 0, r"cannot be read \(No such file"),
    ],
)
def test_a_split_that_cannot_be_used_is_refused(tmp_path, content, fold, message):
    file = tmp_path / "splits.json" if content is None else _splits(tmp_path, content)
    with pytest.raises(InputError, match=message) as error:
        given_split(file, fold, ["a", "b"])
    assert str(error.value).startswith(str(file))


def test_only_the_cases_of_a_given_split_are_prepared(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        write_case(tmp_path / "cases", rng=rng, number=number, shape=(12, 12, 12))
    file = _splits(tmp_path, [{"train": ["BraTS2021_00002"], "val": ["BraTS2021_00000"]}])
    split = gather_cases(_config(tmp_path, splits=str(file)))
    assert [case.id for case in split.train + split.validation] == ["BraTS2021_00002", "BraTS2021_00000"]
    assert len(list((tmp_path / "cache" / "prepared").iterdir())) == 2


def _splits(folder, content):
    file = folder / "splits.json"
    file.write_text(json.dumps(content))
    return file
