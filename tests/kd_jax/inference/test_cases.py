"""One loop over cases for every command: files opened once, networks by name, problems case by case."""

import csv
import json

import numpy as np
import pytest

from data_pipeline.command_line import run_command
from data_pipeline.errors import InputError
from data_pipeline.layouts.find import find_cases
from kd_jax import evaluate, postprocess, predict
from kd_jax.inference import segmenter as segmenters
from kd_jax.inference.cases import Task, segment_cases
from kd_jax.inference.load import load_segmenters
from kd_jax.inference.segmenter import segment_case
from tests.data_pipeline.cases import write_case
from tests.kd_jax.fake_run import write_run_of_many, write_split

STUDENTS = {"t2": (1, ("t2",)), "pair": (2, ("t1ce", "flair")), "same": (3, ("t1ce", "flair"))}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for number in range(2):
        write_case(folder / "data", rng=rng, number=number)
    write_case(folder / "data", rng=rng, number=2, modalities=("t1ce", "flair"))
    return folder


@pytest.fixture(scope="module")
def run(place):
    run = write_run_of_many(place / "run", STUDENTS, teacher=4)
    write_split(run, place / "data", train=[], validation=[f"BraTS2021_0000{i}" for i in range(3)])
    return run


def _outcomes(place, run, names, **options):
    found = load_segmenters([run], names, "best", mirror=())
    tasks = [Task(case, found) for case in find_cases(place / "data")]
    return list(segment_cases(tasks, announce=lambda number, task: None, **options))


def test_every_file_is_opened_once_for_all_networks(place, run, monkeypatch):
    opened, open_nifti = [], segmenters.open_nifti
    monkeypatch.setattr(segmenters, "open_nifti", lambda path: opened.append(path) or open_nifti(path))
    outcomes = _outcomes(place, run, "all")
    assert len(outcomes) == 3 * 4
    images = [path for case in find_cases(place / "data") for path in case.images.values()]
    assert sorted(opened) == sorted(images)


def test_networks_that_see_the_same_share_the_reading(place, run, monkeypatch):
    read, load = [], segmenters.load_subject
    monkeypatch.setattr(segmenters, "load_subject", lambda *a, **k: read.append(a[2]) or load(*a, **k))
    _outcomes(place, run, "pair,same")
    assert read == [("t1ce", "flair")] * 3


def test_a_network_segments_as_if_it_were_alone(place, run):
    for outcome in _outcomes(place, run, "all"):
        if outcome.segmentation is not None:
            (alone,) = load_segmenters([run], outcome.network, "best", mirror=()).values()
            np.testing.assert_array_equal(outcome.segmentation.classes, segment_case(alone, outcome.case).classes)


def test_what_a_case_lacks_for_one_network_costs_the_others_nothing(place, run):
    outcomes = {(o.case.id, o.network): o for o in _outcomes(place, run, "all", labelled=True)}
    assert outcomes["BraTS2021_00002", "t2"].skipped == "no t2, which the t2 needs"
    assert outcomes["BraTS2021_00002", "teacher"].skipped == "no t1, t2, which the teacher needs"
    assert outcomes["BraTS2021_00002", "pair"].segmentation is not None
    assert (outcomes["BraTS2021_00002", "pair"].reference > 0).any()


def test_evaluate_compares_every_student_with_the_teacher_and_with_the_first(place, run, capsys):
    out = place / "out"
    assert run_command(evaluate.main, [str(run), "--network", "pair,same,teacher", "--output", str(out)]) == 0
    assert {f.name for f in out.iterdir()} == {"pair.csv", "same.csv", "teacher.csv", "summary.json", "cases.png"}
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["networks"]) == ["pair", "same", "teacher"]
    found = {d["definition"].split(",")[0]: d for d in summary["paired_differences"]}
    assert list(found) == ["pair - teacher", "same - teacher", "same - pair"]
    scores = {
        name: {row["case"]: float(row["WT_dice"]) for row in csv.DictReader((out / f"{name}.csv").open())}
        for name in ("pair", "same")
    }
    expected = np.mean([scores["same"][case] - scores["pair"][case] for case in scores["pair"]])
    assert found["same - pair"]["regions"]["WT"]["dice"]["mean"] == pytest.approx(expected, abs=1e-4)
    assert found["pair - teacher"]["cases"] == ["BraTS2021_00000", "BraTS2021_00001"]
    printed = capsys.readouterr()
    assert "same and pair on the same 3 cases" in printed.out and "[3/3] BraTS2021_00002" in printed.err


def test_several_students_are_chosen_by_name(place, run, capsys):
    data, out = str(place / "data" / "BraTS2021_00000"), str(place / "labels")
    assert run_command(predict.main, [str(run), data, "-o", out]) == 2
    assert "has 3 students; choose one with --network: pair, same, t2, teacher" in capsys.readouterr().err
    assert run_command(predict.main, [str(run), data, "-o", out, "--network", "t1"]) == 2
    assert "holds no t1, only pair, same, t2, teacher; choose --network pair" in capsys.readouterr().err
    assert run_command(predict.main, [str(run), data, "-o", out, "--network", "t2"]) == 0
    assert "t2 of" in capsys.readouterr().out
    assert run_command(postprocess.main, [str(run), "--network", "pair"]) == 0
    assert "pair" in json.loads((run / "postprocessing.json").read_text())


def test_a_file_that_cannot_be_used_is_a_problem_of_its_readers_alone(place, run, tmp_path):
    home = write_case(tmp_path / "data", rng=np.random.default_rng(5), number=7)
    (home / f"{home.name}_t2.nii.gz").write_bytes(b"")
    outcomes = {o.network: o for o in _outcomes(tmp_path, run, "t2,pair")}
    assert isinstance(outcomes["t2"].problem, InputError) and "zero bytes" in str(outcomes["t2"].problem)
    assert outcomes["pair"].segmentation is not None
