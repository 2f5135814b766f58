import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from data_pipeline.errors import InputError
from experiments.parity.check import GOLDEN
from kd_jax.runs.folds import FOLDS_FILE, Fold, read_folds, resume_folds, write_folds
from kd_jax.runs.split import SplitRecord, cross_validation, given_split, split_patients


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
    assert cross_validation(names, names, 5) == [Fold(**split) for split in folds]


def test_a_given_split_in_nnunets_form_is_honoured(tmp_path):
    names = ["a", "b", "c", "d"]
    file = _splits(tmp_path, [{"train": ["c", "a"], "val": ["b"]}, {"train": ["b"], "val": ["c", "d"]}])
    assert given_split(file, 0, names, names) == ([0, 2], [1])  # d is in neither part
    assert given_split(file, 1, names, names) == ([1], [2, 3])
    assert given_split(file, "all", names, names) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert given_split(file, 1, ["b", "c"], ["b", "c"], some_left_out=True) == ([0], [1])


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
        given_split(file, 0, names, patients)
    assert given_split(file, 1, names, patients) == ([3, 4], [0, 1])
    assert given_split(file, "all", names, patients)[0] == [0, 1, 2, 3, 4]  # held out from nobody


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
        given_split(file, fold, ["a", "b"], ["a", "b"])
    assert str(error.value).startswith(str(file))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=20), st.integers(2, 4))
def test_all_folds_as_a_file_give_the_same_split_again(tmp_path_factory, patients, folds):
    names = [f"{patient}-{i:03d}" for i, patient in enumerate(patients)]
    run = tmp_path_factory.mktemp("run")
    made = cross_validation(names, patients, folds)
    write_folds(run, made)
    numbers = range(folds) if len(set(patients)) >= folds else ["all"]
    assert len(made) == len(numbers)
    for number in numbers:
        assert given_split(run / FOLDS_FILE, number, names, patients) == split_patients(patients, folds, number)


def test_the_file_has_the_form_of_nnunets(tmp_path):
    write_folds(tmp_path, [Fold(["a", "b"], ["c"]), Fold(["c"], ["a", "b"])])
    content = json.loads((tmp_path / "splits_final.json").read_text())
    assert content == [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]


def test_resuming_does_not_replace_other_folds(tmp_path):
    folds = [Fold(["a"], ["b"]), Fold(["b"], ["a"])]
    resume_folds(tmp_path, folds)  # a run that has no file yet gets one
    before = (tmp_path / FOLDS_FILE).read_bytes()
    resume_folds(tmp_path, folds)
    with pytest.raises(InputError, match=r"has other folds than the run would have now; .* give --data\.splits"):
        resume_folds(tmp_path, folds[:1])
    assert (tmp_path / FOLDS_FILE).read_bytes() == before
    (tmp_path / FOLDS_FILE).write_text("[")
    with pytest.raises(InputError, match="expected nnU-Net's form"):
        resume_folds(tmp_path, folds)
    assert read_folds(_splits(tmp_path, [{"train": ["a"], "val": ["b"]}])) == folds[:1]


def _splits(folder, content):
    file = folder / "splits.json"
    file.write_text(json.dumps(content))
    return file
