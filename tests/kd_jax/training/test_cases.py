import json

import numpy as np
import pytest

from data_pipeline.errors import InputError
from data_pipeline.prepare import main
from kd_jax.config.load import parse_config
from kd_jax.runs.split_files import FOLDS_FILE, SplitRecord, write_split
from kd_jax.training.cases import gather_cases
from tests.data_pipeline.cases import write_case


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
    found = gather_cases(_config(tmp_path, skip_bad=True))
    assert "left out:\n  BraTS2021_00003: has no t1, t2" in capsys.readouterr().err
    assert len(found.train) + len(found.validation) == 3
    record = found.record
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


def test_only_the_cases_of_a_given_split_are_prepared(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        write_case(tmp_path / "cases", rng=rng, number=number, shape=(12, 12, 12))
    file = _splits(tmp_path, [{"train": ["BraTS2021_00002"], "val": ["BraTS2021_00000"]}])
    found = gather_cases(_config(tmp_path, splits=str(file)))
    assert [case.id for case in found.train + found.validation] == ["BraTS2021_00002", "BraTS2021_00000"]
    assert len(list((tmp_path / "cache" / "prepared").iterdir())) == 2


def test_the_folds_of_a_run_make_the_same_run_again(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        patient, time = divmod(number, 2)
        write_case(
            tmp_path / "cases", rng=rng, layout="2023", case=f"BraTS-GLI-{patient:05d}-{time:03d}", shape=(12, 12, 12)
        )
    found = gather_cases(_config(tmp_path, fold=1))
    assert [len({*fold.train, *fold.val}) for fold in found.folds] == [4, 4]
    write_split(tmp_path, found.record, found.folds)
    again = gather_cases(_config(tmp_path, fold=1, splits=str(tmp_path / FOLDS_FILE)))
    assert (again.train, again.validation, again.folds) == (found.train, found.validation, found.folds)
    ids = [case.id for case in found.train]
    given = [{"train": [ids[0], found.validation[0].id], "val": [ids[1]]}]
    with pytest.raises(InputError, match="fold 0 has 1 patients on both sides"):
        gather_cases(_config(tmp_path, splits=str(_splits(tmp_path, given))))


def test_training_finds_what_the_command_prepared(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for number in range(2):
        write_case(tmp_path / "cases", rng=rng, number=number, shape=(12, 12, 12))
    assert main([str(tmp_path / "cases"), "--cache", str(tmp_path / "cache"), "--workers", "0"]) == 0
    monkeypatch.setattr("data_pipeline.cache.fill.load_subject", None)
    assert len(gather_cases(_config(tmp_path)).train) == 1


def _splits(folder, content):
    file = folder / "splits.json"
    file.write_text(json.dumps(content))
    return file
