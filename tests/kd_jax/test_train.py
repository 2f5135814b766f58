"""Training through the command: the run folder, stopping, resuming, several devices and processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import kd_jax
from data_pipeline.command_line import run_command
from kd_jax.config.load import load_config
from kd_jax.objective.joint import build_objective
from kd_jax.runs.restore import restore_network
from kd_jax.train import main
from kd_jax.training import loop as train_module
from kd_jax.training.checkpoints import restore_state
from kd_jax.training.journal import read_log
from kd_jax.training.state import init_state
from tests.data_pipeline.cases import write_case

ROOT = Path(__file__).resolve().parents[2]
_TINY = """
    --data.patch 16 16 16 --data.folds 2 --data.spacing 1 1 1
    --train.epochs 2 --train.iterations 3 --train.validation_iterations 1 --optimiser.momentum 0.9
    --teacher.features 4 6 8 --teacher.convs_encoder 1 --teacher.convs_decoder 1
    --student.features 4 6 8 --student.convs_encoder 1 --student.convs_decoder 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(0)
    for number in range(4):
        write_case(folder / "cases", rng=rng, number=number, shape=(20, 22, 18))
    return folder


@pytest.fixture(scope="module")
def settings(place):
    return ["--data.root", str(place / "cases"), "--data.cache", str(place / "cache"), *_TINY.split()]


@pytest.fixture(scope="module")
def whole(place, settings):
    """A run from start to end on two devices."""
    run = place / "whole"
    assert run_command(main, ["--run", str(run), *settings]) == 0
    return run


def _state(run: Path):
    config = load_config(run / "config.json", {})
    return jax.device_get(restore_state(run, init_state(build_objective(config, None)))[0])


def _assert_bitwise(ours: Path, theirs: Path):
    for a, b in zip(jax.tree.leaves(_state(ours)), jax.tree.leaves(_state(theirs)), strict=True):
        np.testing.assert_array_equal(a, b)


def _assert_close(ours: Path, theirs: Path):
    a, b = _state(ours), _state(theirs)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(b.students["student"].params))
    for side in ("teacher", "student"):
        pairs = zip(*(jax.tree.leaves(state.networks[side].params) for state in (a, b)), strict=True)
        for x, y in pairs:
            np.testing.assert_allclose(x, y, atol=2e-5 * scale)


def _timeless(run: Path):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_log(run)]


def test_the_run_folder_is_complete(whole, place):
    log = read_log(whole)
    assert [record["epoch"] for record in log if record["kind"] == "epoch"] == [0, 1]
    last = log[-1]
    assert last["step"] == 6
    for network in ("teacher", "student"):
        assert last[f"{network}/loss"] == pytest.approx(last[f"{network}/ce"] + last[f"{network}/dice"])
        assert 0 <= last[f"{network}/pseudo_dice/mean"] <= 1
    assert {
        "student/barlow_twins/on_diagonal",
        "student/barlow_twins/off_diagonal",
        "learning_rate",
        "seconds",
    } <= last.keys()
    assert (whole / "progress.png").read_bytes().startswith(b"\x89PNG")
    assert any((whole / "tensorboard").iterdir())
    split = json.loads((whole / "split.json").read_text())
    assert len(split["train"]) == len(split["validation"]) == 2 and not set(split["train"]) & set(split["validation"])
    assert split["data_root"] == [str(place / "cases")]
    assert len(json.loads((whole / "splits_final.json").read_text())) == 2
    environment = json.loads((whole / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__ and len(environment["devices"]) == 2
    for which in ("best", "latest"):
        for network in ("student", "teacher"):
            restored = restore_network(whole, network, which)
            assert restored.step in (3, 6) and restored.modalities[-1] == "flair"


def test_the_same_command_gives_bitwise_the_same_parameters_and_log(whole, place, settings):
    again = place / "again"
    assert run_command(main, ["--run", str(again), *settings]) == 0
    _assert_bitwise(again, whole)
    assert _timeless(again) == _timeless(whole)


def test_stopping_in_an_epoch_and_resuming_changes_nothing(whole, place, settings, monkeypatch, capsys):
    run = place / "stopped"
    original, calls = train_module.shard, []

    def shard_and_signal(batch):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(batch)

    monkeypatch.setattr(train_module, "shard", shard_and_signal)
    assert run_command(main, ["--run", str(run), *settings]) == 128 + signal.SIGTERM
    assert f"stopped at step 2; go on with: kd-jax train --run {run} --resume" in capsys.readouterr().out
    monkeypatch.setattr(train_module, "shard", original)
    assert int(_state(run).step) == 2
    assert run_command(main, ["--run", str(run), "--resume"]) == 0
    _assert_bitwise(run, whole)
    assert _timeless(run) == _timeless(whole)


@pytest.mark.slow
def test_fit_trains_stops_and_resumes_as_the_command_does(whole, place, monkeypatch):
    config, run = load_config(whole / "config.json"), place / "fitted"
    original, calls = train_module.shard, []

    def shard_and_signal(batch):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(batch)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "shard", shard_and_signal)
        with pytest.raises(KeyboardInterrupt, match=f"{run}: stopped and saved; go on with kd_jax.fit"):
            kd_jax.fit(config, run)
    with pytest.raises(kd_jax.InputError, match="seed: cannot change when resuming"):
        kd_jax.fit(replace(config, seed=1), run, resume=True)
    with pytest.raises(kd_jax.InputError, match="give one of them"):
        kd_jax.fit(config, run, resume=True, overwrite=True)
    with pytest.raises(kd_jax.InputError, match="holds a run"):
        kd_jax.fit(config, run)
    assert kd_jax.fit(config, run, resume=True) == run
    _assert_bitwise(run, whole)
    assert _timeless(run) == _timeless(whole)


def _stop_after_the_first_epoch(run: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = train_module._validate

    def validate_and_signal(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "_validate", validate_and_signal)
        assert run_command(main, ["--run", str(run), *settings]) == 128 + signal.SIGINT


def test_stopping_after_an_epoch_and_resuming_changes_nothing(whole, place, settings, monkeypatch):
    run = place / "after-epoch"
    _stop_after_the_first_epoch(run, settings, monkeypatch)
    assert run_command(main, ["--run", str(run), "--resume"]) == 0
    _assert_bitwise(run, whole)
    assert _timeless(run) == _timeless(whole)


def test_a_finished_run_resumes_to_itself(whole, capsys):
    before = _timeless(whole)
    assert run_command(main, ["--run", str(whole), "--resume"]) == 0
    assert "trained" in capsys.readouterr().out
    assert _timeless(whole) == before


def _python(*arguments: str, devices: int, **options) -> subprocess.Popen:
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "NPROC": "4"}
    return subprocess.Popen(
        [sys.executable, "-m", "kd_jax.train", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def _finish(*processes: subprocess.Popen) -> None:
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)


@pytest.mark.slow
def test_a_run_of_two_devices_goes_on_on_one(whole, place, settings, monkeypatch):
    run = place / "moved"
    _stop_after_the_first_epoch(run, settings, monkeypatch)
    assert int(_state(run).step) == 3
    _finish(_python("--run", str(run), "--resume", devices=1))
    assert int(_state(run).step) == 6
    _assert_close(run, whole)


@pytest.mark.slow
def test_two_processes_on_loopback_equal_one(whole, place, settings):
    run = place / "processes"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    cluster = ["--coordinator", address, "--processes", "2"]
    _finish(
        *(_python("--run", str(run), *settings, *cluster, "--process", str(i), devices=1) for i in range(2)),
    )
    _assert_close(run, whole)
    assert [record["step"] for record in read_log(run) if record["kind"] == "epoch"] == [3, 6]


def test_a_folder_that_holds_a_run_is_not_overwritten_unasked(whole, settings, capsys):
    before = _timeless(whole)
    assert run_command(main, ["--run", str(whole), *settings]) == 2
    assert "holds a run; continue it with --resume" in capsys.readouterr().err
    assert _timeless(whole) == before


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (["--train.epochs", "9"], "train.epochs"),
        (["--distillation.barlow_twins.off_diagonal", "0.5"], "distillation.terms"),
        (["--student.distillation.weight", "0"], "student.distillation"),
    ],
)
def test_resuming_with_other_settings_is_refused(whole, capsys, given, key):
    assert run_command(main, ["--run", str(whole), "--resume", *given]) == 2
    assert f"{key}: cannot change when resuming" in capsys.readouterr().err


def test_resuming_on_other_cases_is_refused(whole, place, capsys):
    other = place / "other-cases"
    shutil.copytree(place / "cases", other)
    write_case(other, rng=np.random.default_rng(9), number=9, shape=(20, 22, 18))
    assert run_command(main, ["--run", str(whole), "--resume", "--data.root", str(other)]) == 2
    assert f"not the 4 cases that {whole} was started with, but 5" in capsys.readouterr().err


def test_a_batch_that_devices_cannot_share_is_refused(place, settings, capsys):
    arguments = ["--run", str(place / "odd"), *settings, "--train.batch", "3"]
    assert run_command(main, arguments) == 2
    assert "train.batch is 3, which 2 devices cannot share evenly" in capsys.readouterr().err
    assert not (place / "odd").exists()


def test_a_diverged_run_stops_and_keeps_its_checkpoint(place, settings, monkeypatch, capsys):
    run = place / "diverged"
    original, calls = train_module.shard, []

    def shard_and_poison(batch):
        calls.append(1)
        image = batch["image"] * (np.nan if len(calls) == 6 else 1)  # 3 steps, 1 validation batch, the second step
        return original({**batch, "image": image})

    monkeypatch.setattr(train_module, "shard", shard_and_poison)
    assert run_command(main, ["--run", str(run), *settings]) == 2
    assert "became NaN or infinite at step 5" in capsys.readouterr().err
    assert int(_state(run).step) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(_state(run)))


@pytest.mark.slow
def test_a_pair_that_sees_two_modalities_trains_on_cases_that_have_no_others(place, settings):
    cases = place / "two-modalities"
    for number in range(2):
        write_case(
            cases, rng=np.random.default_rng(number), number=number, shape=(20, 20, 20), modalities=("flair", "t1ce")
        )
    run = place / "pair"
    both = ["--data.root", str(cases), "--teacher.modalities", "flair", "t1ce", "--train.epochs", "1"]
    assert run_command(main, ["--run", str(run), *settings, *both]) == 0
    assert restore_network(run, "teacher", "latest").modalities == ("t1ce", "flair")


def test_a_student_follows_the_teacher_of_another_run_that_is_held_still(whole, place, settings):
    run = place / "followed"
    held = ["--teacher-from", str(whole), "--distillation.update", "student", "--train.epochs", "1", "--fold", "1"]
    assert run_command(main, ["--run", str(run), *_without_teacher(settings), *held]) == 0
    ours, theirs = (restore_network(r, "teacher", "best") for r in (run, whole))
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_array_equal(a, b)
    config = load_config(run / "config.json", {})
    assert config.data.fold == 1 and config.teacher == load_config(whole / "config.json", {}).teacher


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--distillation.update", "student", "--teacher.features", "4", "6", "8"],
            "so it needs a trained one: give its run with --teacher-from",
        ),
        (
            ["--teacher-from", "WHOLE", "--teacher.convs_decoder", "2"],
            "brings its own teacher.convs_decoder, (1,)",
        ),
        (["--teacher-from", "WHOLE", "--loss.segmentation", "dice_bce"], "use loss.segmentation = dice_ce"),
        (["--teacher-from", "WHOLE", "--data.spacing", "2", "2", "2"], "works at (1.0, 1.0, 1.0) mm"),
        (["--teacher-from", "nowhere"], "nowhere: no such run folder"),
        (["--resume", "--teacher-from", "WHOLE"], "--resume takes the run as --run RUN, and no --teacher-from"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_written(
    whole, place, settings, capsys, options, message
):
    run = place / "refused"
    given = [str(whole) if option == "WHOLE" else option for option in options]
    assert run_command(main, ["--run", str(run), *_without_teacher(settings), *given]) == 2
    assert message in capsys.readouterr().err and not run.exists()


def _without_teacher(settings):
    first = settings.index("--teacher.features")
    return settings[:first] + settings[settings.index("--student.features") :]
