"""One teacher and several students in one step: each student ends as if it had been trained alone."""

import jax
import numpy as np
import pytest

from kd_jax.config.load import parse_config
from kd_jax.objective.joint import build_objective, joint_objective
from kd_jax.training.devices import AXIS, map_over_devices, replicate, shard
from kd_jax.training.state import init_state
from kd_jax.training.step import make_train_step, make_validation_step
from tests.kd_jax.tiny import tiny_batch, tiny_config, tiny_state

STUDENTS = {
    "t2": {"modalities": ["t2"], "features": [4, 6]},
    "small": {"features": [2, 3], "seed": 3, "distillation": {"weight": 1.0, "projector": [6, 5]}},
    "control": {"features": [4, 6], "distillation": {"weight": 0.0}},
}
STEPS = 3


def _config(students, **overrides):
    tiny = tiny_config()
    values = {"seed": tiny.seed, "data": {"patch": tiny.data.patch}, "teacher": {"features": [4, 6]}, **overrides}
    return parse_config({**values, **students}, "test")


def _alone(name, **overrides):
    """The run of one of the students, in the short form."""
    return _config({"student": STUDENTS[name]}, **overrides)


def _train(config, steps=STEPS):
    objective = build_objective(config, AXIS)
    state = replicate(init_state(objective))
    step = map_over_devices(make_train_step(objective), donate=True)
    for number in range(steps):
        state, measurements = step(state, shard(tiny_batch(number, 2, 1)))
    return jax.device_get((state, measurements))


@pytest.fixture(scope="module")
def together():
    return _train(_config({"students": STUDENTS}))


@pytest.mark.parametrize("name", STUDENTS)
def test_each_student_ends_bitwise_as_if_it_had_been_trained_alone(together, name):
    (many, measured), (one, measured_alone) = together, _train(_alone(name))
    for ours, theirs in ((many.students[name], one.students["student"]), (many.teacher, one.teacher)):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(a, b)
    for key, value in measured_alone.items():
        assert measured[key.replace("student/", f"{name}/")] == value, key


def test_students_of_one_seed_and_architecture_start_equal_and_others_do_not():
    students = {name: {"features": [4, 6]} for name in ("a", "b")} | {"other": {"features": [4, 6], "seed": 7}}
    state = init_state(build_objective(_config({"students": students}), None))
    a, b, other = (jax.tree.leaves(state.students[name].params) for name in students)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(a, other, strict=True))


@pytest.mark.slow
def test_the_teacher_is_pulled_by_every_student_where_gradients_are_not_stopped():
    def teacher(students):
        free = {"stop_gradient": False, "weight": 1.0}
        config = _config({"students": {name: {"features": [4, 6]} for name in students}}, distillation=free)
        objective = build_objective(config, None)
        state, batch = tiny_state(objective), tiny_batch(0, 2)
        params = state.teacher.params, {name: student.params for name, student in state.students.items()}
        return jax.jit(jax.grad(lambda p: joint_objective(objective, p, batch, 0)[0]))(params)[0]

    one, two = (jax.tree.leaves(teacher(students)) for students in (["a"], ["a", "b"]))
    assert any(not np.array_equal(x, y) for x, y in zip(one, two, strict=True))


@pytest.mark.slow
def test_validation_counts_every_network_in_the_order_of_the_configuration(together):
    config = _config({"students": STUDENTS})
    objective = build_objective(config, None)
    state = together[0]
    batch = {name: value[:, 0] for name, value in tiny_batch(5, 2, 1).items()}
    counts = jax.jit(make_validation_step(objective))(state, batch)["counts"]
    assert counts.shape == (4, 3, 3)
    tumour = (batch["label"] > 0).sum()
    assert (counts[:, 0, 0] + counts[:, 0, 2] == tumour).all()
    alone = _alone("t2")
    single = jax.jit(make_validation_step(build_objective(alone, None)))
    side = tiny_state(build_objective(alone, None))
    side.students["student"].params["network"] = state.students["t2"].params["network"]
    np.testing.assert_array_equal(counts[1], single(side, batch)["counts"][1])
