import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from data_pipeline.errors import InputError
from experiments.parity.check import GOLDEN
from kd_jax.config.data import DataConfig
from kd_jax.runs.split import Fold, cross_validation, read_folds, split_cases
from kd_jax.runs.split_files import FOLDS_FILE, SplitRecord, resume_split, write_split

RECORD = SplitRecord(["/a"], None, False, ["a"], ["b"])


def _split(cases, patients=None, **data):
    """(train, validation) of the settings."""
    left_out = data.pop("some_left_out", False)
    found = split_cases(cases, patients or cases, DataConfig(**data), some_left_out=left_out)
    return list(found.train), list(found.validation)


def test_the_split_is_nnunets_where_each_patient_has_one_case():
    # nnunetv2: KFold(n_splits=5, shuffle=True, random_state=12345) over the sorted case identifiers.
    names = [f"BraTS2021_{i:05d}" for i in range(23)]
    for fold, (train, held) in enumerate(KFold(5, shuffle=True, random_state=12345).split(names)):
        assert _split(names, fold=fold) == ([names[i] for i in train], [names[i] for i in held])


@given(st.lists(st.sampled_from("abcdefgh"), min_size=12).filter(lambda x: len(set(x)) >= 3))
def test_no_patient_is_on_both_sides_and_every_case_is_held_out_once(patients):
    cases = [f"{patient}-{i:02d}" for i, patient in enumerate(patients)]
    folds = cross_validation(cases, patients, 3)
    for fold in folds:
        assert sorted(fold.train + fold.val) == sorted(cases)
        assert not {case[0] for case in fold.train} & {case[0] for case in fold.val}
    assert sorted(case for fold in folds for case in fold.val) == sorted(cases)


def test_fold_all_trains_and_validates_on_everyone():
    assert _split(["a", "b"], fold="all") == (["a", "b"], ["a", "b"])


def test_fewer_patients_than_folds_are_refused():
    with pytest.raises(
        InputError, match=r"data\.folds is 5, but there are 2 patients: give fewer folds, or --data\.fold"
    ):
        _split(["a-0", "b-0", "b-1"], ["a", "b", "b"])


def test_a_damaged_split_is_named(tmp_path):
    (tmp_path / "split.json").write_text('{"train": []}')
    with pytest.raises(InputError, match=r"split\.json: damaged"):
        SplitRecord.read(tmp_path)
    assert SplitRecord.read(tmp_path / "nowhere") is None


def test_the_folds_are_those_that_nnunet_itself_made():
    folds = json.loads((GOLDEN / "splits.json").read_text())
    names = sorted(folds[0]["train"] + folds[0]["val"])
    assert cross_validation(names, names, 5) == tuple(Fold(**split) for split in folds)


def test_a_given_split_in_nnunets_form_is_honoured(tmp_path):
    names = ["a", "b", "c", "d"]
    file = _splits(tmp_path, [{"train": ["c", "a"], "val": ["b"]}, {"train": ["b"], "val": ["c", "d"]}])
    assert _split(names, splits=file, fold=0) == (["a", "c"], ["b"])  # d is in neither part
    assert _split(names, splits=file, fold=1) == (["b"], ["c", "d"])
    assert _split(names, splits=file, fold="all") == (names, names)
    assert _split(["b", "c"], splits=file, fold=1, some_left_out=True) == (["b"], ["c"])


def test_a_given_split_with_one_patient_on_both_sides_is_refused(tmp_path):
    names, patients = ["p1-000", "p1-001", "p1-002", "p2-000", "p3-000"], ["p1", "p1", "p1", "p2", "p3"]
    file = _splits(
        tmp_path,
        [
            {"train": ["p1-000", "p1-002", "p2-000"], "val": ["p1-001", "p3-000"]},
            {"train": ["p2-000", "p3-000"], "val": ["p1-000", "p1-001"]},
        ],
    )
    message = r"fold 0 has 1 patients on both sides, first p1 \(trains on p1-000, p1-002; holds out p1-001\); put all"
    with pytest.raises(InputError, match=message):
        _split(names, patients, splits=file, fold=0)
    assert _split(names, patients, splits=file, fold=1) == (names[3:], names[:2])
    assert _split(names, patients, splits=file, fold="all")[0] == names  # held out from nobody


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
        _split(["a", "b"], splits=file, fold=fold)
    assert str(error.value).startswith(str(file))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=20), st.integers(2, 4))
def test_all_folds_as_a_file_give_the_same_split_again(tmp_path_factory, patients, folds):
    names = [f"{patient}-{i:03d}" for i, patient in enumerate(patients)]
    run = tmp_path_factory.mktemp("run")
    made = cross_validation(names, patients, folds)
    write_split(run, RECORD, made)
    numbers = range(folds) if len(set(patients)) >= folds else ["all"]
    assert len(made) == len(numbers)
    for number in numbers:
        again = _split(names, patients, splits=run / FOLDS_FILE, fold=number)
        assert again == _split(names, patients, folds=folds, fold=number)


def test_the_file_has_the_form_of_nnunets(tmp_path):
    write_split(tmp_path, RECORD, [Fold(["a", "b"], ["c"]), Fold(["c"], ["a", "b"])])
    content = json.loads((tmp_path / "splits_final.json").read_text())
    assert content == [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]


def test_resuming_does_not_replace_other_folds(tmp_path):
    folds = [Fold(["a"], ["b"]), Fold(["b"], ["a"])]
    write_split(tmp_path, RECORD, folds)
    before = (tmp_path / FOLDS_FILE).read_bytes()
    resume_split(tmp_path, RECORD, folds)
    with pytest.raises(InputError, match=r"has other folds than the run would have now; .* give --data\.splits"):
        resume_split(tmp_path, RECORD, folds[:1])
    assert (tmp_path / FOLDS_FILE).read_bytes() == before
    with pytest.raises(InputError, match=r"not the 2 cases that .* was started with, but 3 \(different: c\)"):
        resume_split(tmp_path, replace(RECORD, train=["a", "c"]), folds)
    (tmp_path / FOLDS_FILE).write_text("[")
    with pytest.raises(InputError, match="expected nnU-Net's form"):
        resume_split(tmp_path, RECORD, folds)
    assert read_folds(_splits(tmp_path, [{"train": ["a"], "val": ["b"]}])) == folds[:1]


def _splits(folder, content):
    file = folder / "splits.json"
    file.write_text(json.dumps(content))
    return file
