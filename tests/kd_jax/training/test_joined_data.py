"""Several data sets at once, a given layout, and the resection cavity on the way to scores and decisions."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.command_line import run_command
from data_pipeline.conventions import CAVITY
from data_pipeline.errors import InputError
from kd_jax import evaluate, plan, postprocess
from kd_jax.config.load import dump_config, load_config, parse_config
from kd_jax.config.schema import Config, DataConfig
from kd_jax.train import parse
from kd_jax.training.cases import gather_cases
from tests.data_pipeline.cases import file_of, rewrite, tiny_classes, write_case
from tests.kd_jax.fake_run import write_run, write_split


@pytest.fixture
def roots(tmp_path):
    """A set of 2021 and a post-treatment one, whose oedema is a cavity instead."""
    rng = np.random.default_rng(0)
    for number in range(2):
        write_case(tmp_path / "old", rng=rng, number=number)
    home = write_case(tmp_path / "new", rng=rng, layout="2023", case="BraTS-GLI-00007-101")
    rewrite(file_of(home, home.name, "seg", "2023"), lambda labels: np.where(labels == 2, CAVITY, labels))
    return [tmp_path / "old", tmp_path / "new"]


@pytest.mark.parametrize("written", ["/a", ["/a"]])
def test_a_configuration_with_one_folder_is_read_in_both_forms(tmp_path, written):
    (tmp_path / "config.json").write_text(json.dumps({"data": {"root": written}}))
    config = load_config(tmp_path / "config.json", {})
    assert config.data.root == (Path("/a"),)
    (tmp_path / "config.json").write_text(dump_config(config))
    assert load_config(tmp_path / "config.json", {}) == config


@pytest.mark.parametrize("given", [["/a,/b"], ["/a", "/b"]])
def test_folders_are_given_with_commas_or_spaces(given):
    _, settings = parse(["--data.root", *given])
    assert load_config(None, settings).data.root == (Path("/a"), Path("/b"))


def test_no_folder_at_all_is_an_error():
    with pytest.raises(InputError, match=r"data\.root: is empty; allowed: a folder"):
        parse_config({"data": {"root": []}}, "settings")


def test_training_joins_sets_and_says_what_it_takes_them_for(tmp_path, roots, capsys):
    data = DataConfig(root=tuple(roots), cache=tmp_path / "cache", spacing=(1.0, 1.0, 1.0), folds=3)
    split = gather_cases(Config(data=data))
    assert {case.id for case in (*split.train, *split.validation)} == {
        "BraTS2021_00000",
        "BraTS2021_00001",
        "BraTS-GLI-00007-101",
    }
    assert split.record.data_root == [str(root) for root in roots]
    said = capsys.readouterr().err
    assert "2 cases as in BraTS 2018-2021" in said and "1 case as in BraTS 2024" in said and "4 cavity" in said


def test_joined_sets_are_scored_and_the_cavity_is_no_tumour(tmp_path, roots, capsys):
    run = write_run(tmp_path / "run", student="ET")
    write_split(run, roots[0], train=[], validation=["BraTS2021_00000"])
    assert run_command(evaluate.main, [str(run), "--data", *map(str, roots)]) == 0
    folder = run / "evaluation" / "old+new"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["data"]["paths"] == [str(root) for root in roots]
    lines = (folder / "student.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    volume = {row["case"]: float(row["WT_reference_volume_ml"]) for row in rows}
    classes = tiny_classes((14, 16, 12))
    assert volume["BraTS2021_00000"] == pytest.approx((classes > 0).sum() / 1000, abs=1e-6)
    assert volume["BraTS-GLI-00007-101"] == pytest.approx(np.isin(classes, (1, 3)).sum() / 1000, abs=1e-6)
    assert "1 case as in BraTS 2024" in capsys.readouterr().err


def test_a_decision_is_made_with_a_cavity_in_the_reference(tmp_path, roots):
    run = write_run(tmp_path / "run", student="ET")
    write_split(run, roots[1], train=[], validation=["BraTS-GLI-00007-101"])
    assert run_command(postprocess.main, [str(run)]) == 0


def test_a_layout_that_does_not_fit_is_an_error(tmp_path, roots, capsys):
    assert run_command(plan.main, [str(roots[0]), "--layout", "bids", "-o", str(tmp_path / "plan.json")]) == 2
    assert "no cases in the layout bids" in capsys.readouterr().err


def test_the_plan_of_joined_sets_says_how_to_train_on_them(tmp_path, roots, capsys):
    assert run_command(plan.main, [*map(str, roots), "-o", str(tmp_path / "plan.json"), "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert f"--data.root {roots[0]} {roots[1]}" in said
    assert "1 case as in BraTS 2024" in said
