"""A run of several students through the command: checkpoints, stopping and resuming, scoring by name."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from data_pipeline.command_line import run_command
from kd_jax import evaluate
from kd_jax.config.load import load_config
from kd_jax.objective.joint import build_objective
from kd_jax.runs.restore import restore_network
from kd_jax.runs.store import networks_of
from kd_jax.train import main
from kd_jax.training import loop
from kd_jax.training.checkpoints import restore_state
from kd_jax.training.journal import read_log
from tests.data_pipeline.cases import write_case
from tests.kd_jax.tiny import tiny_state

SETTINGS = """
[data]
root = "{folder}/cases"
cache = "{folder}/cache"
patch = [16, 16, 16]
spacing = [1, 1, 1]
folds = 2

[teacher]
features = [4, 6]

[students.t2]
modalities = ["t2"]
features = [4, 6]

[students.pair]
features = [4, 6]
distillation = {{ weight = 0.0 }}

[train]
epochs = 2
iterations = 2
validation_iterations = 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("students")
    rng = np.random.default_rng(0)
    for number in range(4):
        write_case(folder / "cases", rng=rng, number=number, shape=(20, 22, 18))
    (folder / "run.toml").write_text(SETTINGS.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def whole(place):
    run = place / "whole"
    assert run_command(main, ["--config", str(place / "run.toml"), "--run", str(run)]) == 0
    return run


def _state(run):
    config = load_config(run / "config.json", {})
    return jax.device_get(restore_state(run, tiny_state(build_objective(config, None)))[0])


def test_every_network_has_a_best_checkpoint_of_its_own(whole):
    kinds = {"latest": {"t2", "pair", "teacher", "optimiser"}, "best-t2": {"t2"}, "best-pair": {"pair"}}
    for kind, items in {**kinds, "best-teacher": {"teacher"}}.items():
        (step,) = (whole / "checkpoints" / kind).iterdir()
        assert {item.name for item in step.iterdir() if item.is_dir()} == items | {"position", "config"}
    assert networks_of(whole, "best") == networks_of(whole, "latest") == ("pair", "t2", "teacher")
    assert restore_network(whole, "t2").modalities == ("t2",)


def test_the_log_names_each_student_and_the_control_has_no_term(whole):
    last = read_log(whole)[-1]
    assert {"teacher/loss", "t2/loss", "pair/loss", "t2/barlow_twins/loss", "pair/pseudo_dice/WT"} <= last.keys()
    assert "pair/barlow_twins/loss" not in last
    config = json.loads((whole / "config.json").read_text())
    assert config["students"]["pair"]["distillation"]["weight"] == 0
    assert config["distillation"]["terms"]["barlow_twins"]["off_diagonal"] == 0.0051


@pytest.mark.slow
def test_stopping_and_resuming_changes_nothing(whole, place, monkeypatch):
    run, validate = place / "stopped", loop._validate

    def validate_and_signal(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return validate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_validate", validate_and_signal)
        status = run_command(main, ["--config", str(place / "run.toml"), "--run", str(run)])
    assert status == 128 + signal.SIGINT
    assert run_command(main, ["--run", str(run), "--resume"]) == 0
    ours, theirs = _state(run), _state(whole)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_all_networks_are_scored_on_the_held_out_cases(whole):
    assert run_command(evaluate.main, [str(whole), "--network", "all"]) == 0
    summary = json.loads((whole / "evaluation" / "validation" / "summary.json").read_text())
    assert list(summary["networks"]) == ["pair", "t2", "teacher"]
    assert summary["networks"]["t2"]["members"][0]["modalities"] == ["t2"]
