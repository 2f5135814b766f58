import shutil

import jax
import numpy as np
import pytest

from data_pipeline.errors import InputError
from kd_jax.objective.joint import build_objective
from kd_jax.runs.restore import default_network, restore_network
from kd_jax.runs.store import Checkpoints, has_checkpoint, save_teacher
from kd_jax.training.checkpoints import restore_state, save_best, save_latest
from kd_jax.training.devices import replicate
from tests.kd_jax.tiny import tiny_config, tiny_state


@pytest.fixture(scope="module")
def config():
    return tiny_config(student={"features": (4, 6, 10)}, distillation={"projector": (6, 5)})


@pytest.fixture(scope="module")
def state(config):
    return tiny_state(build_objective(config, None))


@pytest.fixture(scope="module")
def run(tmp_path_factory, config, state):
    run = tmp_path_factory.mktemp("run")
    with Checkpoints(run) as checkpoints:
        for step in (3, 5):
            save_latest(checkpoints, replicate(state), {"step": step, "note": [1.5, None]}, config)
        save_best(checkpoints, replicate(state), {"step": 3}, config, frozenset({"student", "teacher"}))
    return run


def _assert_equal(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_whole_state_comes_back_with_its_position(run, config, state):
    restored, position = restore_state(run, state)
    _assert_equal(restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert position == {"step": 5, "note": [1.5, None]}


def test_only_the_newest_of_a_kind_is_kept_and_items_are_separate(run):
    assert [p.name for p in (run / "checkpoints" / "latest").iterdir()] == ["5"]
    items = {p.name for p in (run / "checkpoints" / "latest" / "5").iterdir() if p.is_dir()}
    assert items == {"student", "teacher", "terms", "optimiser", "position", "config"}


def test_the_student_is_restored_without_the_teacher(run, config, state, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for item in ("teacher", "optimiser", "terms"):
        shutil.rmtree(copy / "checkpoints" / "best" / "3" / item)
    restored = restore_network(copy, "student", "best")
    _assert_equal(restored.params, state.students["student"].params["network"])
    assert restored.config == config and restored.step == 3
    assert restored.modalities == ("t1ce", "flair")
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(restored.params))
    assert default_network(copy, "best") == "student"
    with pytest.raises(InputError, match="holds no teacher, only student; choose --network student"):
        restore_network(copy, "teacher", "best")


def test_a_teacher_saved_alone_is_the_network_to_apply(tmp_path, config, state):
    save_teacher(tmp_path, jax.tree.map(np.asarray, state.teacher.params["network"]), {"step": 0}, config)
    items = {p.name for p in (tmp_path / "checkpoints" / "best" / "0").iterdir() if p.is_dir()}
    assert items == {"teacher", "position", "config"}
    assert default_network(tmp_path, "best") == "teacher"
    restored = restore_network(tmp_path, "teacher", "best")
    _assert_equal(restored.params, state.teacher.params["network"])
    assert restored.config == config and restored.step == 0
    with pytest.raises(InputError, match="holds no student, only teacher; choose --network teacher"):
        restore_network(tmp_path, "student", "best")


def test_a_whole_run_is_applied_through_its_student(run, tmp_path):
    assert default_network(run, "best") == default_network(run, "latest") == "student"
    with pytest.raises(InputError, match="no such run folder"):
        default_network(tmp_path / "nothing", "best")


def test_a_teacher_that_finds_no_room_leaves_no_checkpoint(tmp_path, config, state, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"cannot be written \(0.0 MB free, .* MB needed\); nothing was kept"):
        save_teacher(tmp_path, state.teacher.params["network"], {"step": 0}, config)
    assert not has_checkpoint(tmp_path, "best")


def test_what_is_no_run_is_refused_and_left_alone(tmp_path, run):
    with pytest.raises(InputError, match="no such run folder; give the folder that"):
        restore_network(tmp_path / "nothing", "student")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(InputError, match=r"not a run folder \(no checkpoints/ in it\)"):
        restore_network(tmp_path, "student")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_kind_names_the_other(tmp_path, run):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "best")
    with pytest.raises(InputError, match="has no best checkpoint; --checkpoint latest is there"):
        restore_network(copy, "student", "best")


def test_an_unfinished_save_is_no_checkpoint(tmp_path, run):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    folder = copy / "checkpoints" / "latest"
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    (folder / "9").mkdir()
    assert has_checkpoint(copy, "latest")
    assert restore_network(copy, "student", "latest").step == 5


def test_a_damaged_checkpoint_is_named(tmp_path, run, state):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for file in (copy / "checkpoints" / "latest" / "5" / "student").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"")
    with pytest.raises(InputError, match=r"latest/5: student cannot be restored.*the checkpoint is damaged") as error:
        restore_network(copy, "student", "latest")
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_configuration_is_refused(run):
    other = tiny_config()
    with pytest.raises(InputError, match="made with another configuration"):
        restore_state(run, tiny_state(build_objective(other, None)))
