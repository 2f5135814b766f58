"""The joint step: what moves what, one device against two, determinism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import InputError
from kd_jax.models.outputs import region_truth
from kd_jax.objective.joint import build_objective, joint_objective, prepare_config, targets_of
from kd_jax.objective.supervised import segmentation_loss
from kd_jax.objective.terms.barlow_twins import barlow_twins
from kd_jax.training.devices import AXIS, map_over_devices, replicate, shard
from kd_jax.training.optimiser import make_optimiser, make_schedule
from kd_jax.training.state import init_state
from kd_jax.training.step import descend, make_train_step, make_validation_step, region_counts
from tests.kd_jax.tiny import tiny_batch, tiny_config, tiny_state


def _shallow(**overrides):
    """Networks of two stages, for what does not depend on their depth: they compile in two thirds of the time."""
    return tiny_config(teacher={"features": (4, 6)}, student={"features": (4, 6)}, **overrides)


def _objective(config, axis=None):
    return build_objective(config, axis)


def _one_device(config):
    return jax.jit(make_train_step(_objective(config)))


def _two_devices(config):
    return map_over_devices(make_train_step(_objective(config, AXIS)), donate=True)


def _params(state):
    return state.teacher.params, {name: student.params for name, student in state.students.items()}


def _gradients(config, state, batch):
    """Of the joint objective as it is written, by network."""
    objective = _objective(config)
    teacher, students = jax.jit(jax.grad(lambda p: joint_objective(objective, p, batch, 0)[0]))(_params(state))
    return {"teacher": teacher, **students}


def _assert_trees(ours, theirs, relative):
    """Largest difference over a tree, relative to the largest entry of the tree."""
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=relative * scale, rtol=0)


def _student(state):
    return state.students["student"].params


def _equal(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))


@pytest.fixture(scope="module")
def config():
    return tiny_config()


@pytest.fixture(scope="module")
def state(config):
    return tiny_state(_objective(config))


@pytest.fixture(scope="module")
def batch():
    return tiny_batch(0, 2)


@pytest.fixture(scope="module")
def two_devices(config):
    return _two_devices(config)


@pytest.fixture(scope="module")
def one_device(config):
    return _one_device(config)


def test_the_stopped_term_leaves_exactly_nothing_in_the_teacher_and_the_free_one_moves_it(batch):
    state = tiny_state(_objective(_shallow()))

    def gradients(**distillation):
        found = _gradients(_shallow(distillation=distillation), state, batch)
        return {name: jax.tree.leaves(gradient) for name, gradient in found.items()}

    control, stopped = gradients(weight=0.0), gradients(weight=1.0)
    free = gradients(weight=1.0, stop_gradient=False)
    assert _equal(stopped["teacher"], control["teacher"]) and not _equal(stopped["student"], control["student"])
    assert max(np.abs(a - b).max() for a, b in zip(free["teacher"], control["teacher"], strict=True)) > 1e-4


def test_the_total_is_the_sum_of_its_terms(config, state, batch):
    total, parts = jax.jit(lambda p: joint_objective(_objective(config), p, batch, 0))(_params(state))
    features = config.student.features[-1]
    on, off = parts["student/barlow_twins/on_diagonal"], parts["student/barlow_twins/off_diagonal"]
    barlow = (on + 0.0051 * off) / features
    assert parts["student/barlow_twins/loss"] == pytest.approx(float(barlow), rel=1e-6)
    expected = parts["teacher/loss"] + parts["student/loss"] + config.distillation.weight * barlow
    assert total == pytest.approx(float(expected), rel=1e-6)


def test_the_student_never_sees_the_other_modalities(config, state, batch):
    objective = _objective(config)
    measure = jax.jit(lambda image: joint_objective(objective, _params(state), {**batch, "image": image}, 0)[1])
    changed = batch["image"].copy()
    changed[..., [0, 2]] += 7  # t1 and t2
    before, after = measure(batch["image"]), measure(changed)
    assert before["student/loss"] == after["student/loss"]
    assert before["teacher/loss"] != after["teacher/loss"]


def _compare_one_update(state, batch, one_device, two_devices):
    """One step of the whole batch on one device, and of its halves on two."""
    alone, measured_alone = one_device(state, batch)
    halves = shard({name: np.stack([value[:1], value[1:]]) for name, value in batch.items()})
    both, measured_both = two_devices(replicate(jax.tree.map(jnp.copy, state)), halves)
    _assert_trees(jax.device_get(both), jax.device_get(alone), 1e-6)
    assert sorted(measured_alone) == sorted(measured_both)
    for name, value in measured_alone.items():
        np.testing.assert_allclose(measured_both[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_one_update_on_two_devices_equals_one_device(state, batch, one_device, two_devices):
    _compare_one_update(state, batch, one_device, two_devices)


@pytest.mark.slow
def test_one_alternating_update_with_projectors_on_two_devices_equals_one_device(batch):
    config = _shallow(distillation={"update": "alternating", "projector": (16, 12)})
    state = tiny_state(_objective(config))
    one = _one_device(config)
    two = _two_devices(config)
    _compare_one_update(state, batch, one, two)


@pytest.mark.slow
def test_regions_batch_dice_and_a_teacher_held_still_on_two_devices_equal_one_device(batch):
    # One compilation for the three: each changes what is summed over devices, or what moves.
    config = _shallow(
        loss={"segmentation": "dice_bce", "batch_dice": True}, distillation={"update": "student", "weight": 1.0}
    )
    state = tiny_state(_objective(config))
    one = _one_device(config)
    two = _two_devices(config)
    _compare_one_update(state, batch, one, two)
    after, measured = one(state, batch)
    assert _equal(after.teacher, state.teacher) and not _equal(_student(after), _student(state))
    assert _student(state)["network"]["head_0"]["kernel"].shape[-1] == 3
    for network in ("teacher", "student"):
        assert measured[f"{network}/loss"] == pytest.approx(
            float(measured[f"{network}/dice"] + measured[f"{network}/bce"]), rel=1e-6
        )


def test_bfloat16_trains_like_float32_on_float32_parameters(state, batch, one_device):
    config = tiny_config(train={"precision": "bfloat16"})
    after, measured = _one_device(config)(state, batch)
    expected = one_device(state, batch)[1]
    assert all(np.isfinite(value) for value in measured.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    for name in ("teacher/loss", "student/loss", "student/barlow_twins/loss"):
        assert measured[name] == pytest.approx(float(expected[name]), rel=0.05)
        assert measured[name] != expected[name]
    assert {leaf.dtype for leaf in jax.tree.leaves((after.teacher, after.students)) if leaf.ndim} == {
        jnp.dtype("float32")
    }


def test_barlow_value_and_gradient_on_two_devices_equal_one_device():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((64, 12)).astype(np.float32)
    b = (0.7 * a + rng.standard_normal((64, 12))).astype(np.float32)

    def loss(a, b, axis=None):
        on, off, _ = barlow_twins(a, b, axis)
        return on + 0.0051 * off

    value, grads = jax.value_and_grad(loss, argnums=(0, 1))(a, b)
    mapped = jax.pmap(lambda a, b: jax.value_and_grad(loss, argnums=(0, 1))(a, b, AXIS), axis_name=AXIS)
    values, shares = mapped(a.reshape(2, 32, 12), b.reshape(2, 32, 12))
    np.testing.assert_allclose(values, value, rtol=1e-6)
    # Each device differentiates its own copy of the loss; the mean over devices is the gradient (see mean_over).
    for share, whole in zip(shares, grads, strict=True):
        np.testing.assert_allclose(share.reshape(64, 12) / 2, whole, atol=1e-6 * np.abs(whole).max())


def test_one_network_after_the_other_moves_both_by_the_gradient_of_the_joint_loss(config, state, batch, one_device):
    after, measured = one_device(state, batch)
    optimiser = make_optimiser(config.optimiser, make_schedule(config))
    for name, gradient in _gradients(config, state, batch).items():
        moved, norm = descend(_objective(config), optimiser, name, state.networks[name], gradient)
        _assert_trees(after.networks[name].params, moved.params, 1e-6)
        assert measured[f"{name}/gradient_norm"] == pytest.approx(float(norm[f"{name}/gradient_norm"]), rel=1e-5)


@pytest.mark.slow
def test_layout_and_rematerialisation_change_neither_the_step_nor_the_state(state, batch, one_device):
    config = tiny_config(train={"remat": "norms", "fold": 4})
    objective = _objective(config)
    assert objective.teacher.fold == 4 and objective.students["student"].remat == "norms"
    after, measured = _one_device(config)(state, batch)
    expected, as_measured = one_device(state, batch)
    _assert_trees(after, expected, 1e-5)
    for name, value in as_measured.items():
        np.testing.assert_allclose(measured[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_targets_are_made_once_per_shape_for_both_networks(batch):
    targets = targets_of(_objective(tiny_config()), batch)
    assert sorted(targets) == [(8, 8, 8), (16, 16, 16)]
    np.testing.assert_array_equal(targets[8, 8, 8], batch["label"][:, 1::2, 1::2, 1::2])
    loss = {"segmentation": "dice_bce", "deep_supervision": False}
    regions = targets_of(_objective(tiny_config(loss=loss)), batch)
    assert list(regions) == [(16, 16, 16)]
    np.testing.assert_array_equal(regions[16, 16, 16], region_truth(batch["label"]))


def test_automatic_settings_are_plain_off_a_tpu():
    network = _objective(tiny_config()).students["student"]
    assert (network.remat, network.fold) == ("none", 1)


def test_the_same_seed_gives_bitwise_the_same_run(config, state, batch, one_device):
    drawn, again, other = (init_state(_objective(tiny_config(seed=seed))) for seed in (0, 0, 1))
    assert _equal(drawn, again)
    assert _equal(one_device(drawn, batch), one_device(again, batch))
    assert not _equal(_student(drawn), _student(other))


@pytest.mark.slow
def test_alternating_update_moves_the_teacher_first():
    joint = _shallow()
    alternating = _shallow(distillation={"update": "alternating"})
    state = tiny_state(_objective(joint))
    batch = tiny_batch(3, 2)
    results = [_one_device(c)(state, batch)[0] for c in (joint, alternating)]
    # With the gradient stopped the teacher's own update is the same; the student follows another latent.
    _assert_trees(results[1].teacher.params, results[0].teacher.params, 1e-6)
    moved = max(np.abs(a - b).max() for a, b in zip(*(jax.tree.leaves(_student(r)) for r in results), strict=True))
    assert 0 < moved < 1e-2


def test_optimiser_equals_two_steps_of_pytorch_sgd_by_hand():
    config = tiny_config(optimiser={"momentum": 0.9, "weight_decay": 0.1, "clip_norm": 1.0, "learning_rate": 0.5})
    optimiser = make_optimiser(config.optimiser, lambda step: 0.5)
    weight, buffer = np.array([2.0, -1.0]), np.zeros(2)
    ours = jnp.array(weight, jnp.float32)
    opt_state = optimiser.init(ours)
    for gradient in (np.array([3.0, 4.0]), np.array([0.3, -0.4])):
        updates, opt_state = optimiser.update(jnp.array(gradient, jnp.float32), opt_state, ours)
        ours = ours + updates
        clipped = gradient * min(1, 1.0 / np.linalg.norm(gradient)) + 0.1 * weight
        buffer = 0.9 * buffer + clipped
        weight = weight - 0.5 * (clipped + 0.9 * buffer)
    np.testing.assert_allclose(ours, weight, rtol=1e-6)


def test_schedule_is_nnunets_polynomial_held_within_an_epoch():
    config = tiny_config(train={"epochs": 10, "iterations": 4}, optimiser={"learning_rate": 0.01})
    schedule = make_schedule(config)
    assert [float(schedule(step)) for step in (0, 3)] == pytest.approx([0.01, 0.01])
    assert float(schedule(4)) == pytest.approx(0.01 * 0.9**0.9)
    assert float(schedule(39)) == pytest.approx(0.01 * 0.1**0.9)


def test_networks_of_different_size_need_a_projector_and_train_with_one():
    with pytest.raises(InputError, match=r"distillation.barlow_twins, student: .*8 and 6 features: give projector"):
        prepare_config(tiny_config(teacher={"features": (4, 8)}, student={"features": (2, 6)}))
    networks = {"teacher": {"features": (4, 8)}, "student": {"features": (2, 6)}}
    config = prepare_config(tiny_config(**networks, distillation={"projector": (16, 12)}))
    state = tiny_state(_objective(config))
    after, measured = _one_device(config)(state, tiny_batch(0, 2))
    assert np.isfinite(measured["student/barlow_twins/loss"])
    for name in ("teacher", "student"):
        before, moved = (_student(s)["terms"]["barlow_twins"][name]["dense_0"]["kernel"] for s in (state, after))
        assert not np.array_equal(before, moved)


def test_one_pooled_vector_per_case_is_refused_for_small_batches():
    with pytest.raises(
        InputError, match=r"samples = cases gives one sample per case, and train\.batch is 2: allowed from 4"
    ):
        prepare_config(_shallow(distillation={"samples": "cases"}))
    config = prepare_config(_shallow(distillation={"samples": "cases"}, train={"batch": 4}))
    objective = _objective(config)
    shapes = jax.eval_shape(lambda: init_state(objective))
    measured = jax.eval_shape(make_train_step(objective), shapes, tiny_batch(0, 4))[1]
    assert "student/barlow_twins/loss" in measured


def test_segmentation_loss_terms():
    rng = np.random.default_rng(0)
    logits = [jnp.asarray(rng.standard_normal((1, s, s, s, 4)), jnp.float32) for s in (8, 4, 2)]
    labels = rng.integers(0, 4, (1, 8, 8, 8))
    config = tiny_config(loss={"segmentation": "dice_ce"}).loss
    total, parts = segmentation_loss(logits, labels, config)
    assert total == pytest.approx(float(parts["ce"] + parts["dice"]), rel=1e-6)
    finest, _ = segmentation_loss(logits[:1], labels, config)
    second, _ = segmentation_loss(logits[1:2], labels[:, 1::2, 1::2, 1::2], config)
    assert total == pytest.approx(float(2 * finest + second) / 3, rel=1e-6)
    alone, _ = segmentation_loss(logits, labels, tiny_config(loss={"deep_supervision": False}).loss)
    assert alone == pytest.approx(float(segmentation_loss(logits[:1], labels, tiny_config().loss)[0]), rel=1e-6)


def test_region_counts_by_hand():
    truth = np.zeros((1, 2, 2, 2), int)
    found = np.zeros_like(truth)
    truth[0, 0, 0] = [1, 3]
    found[0, 0, 0] = [2, 3]
    found[0, 1, 1] = [1, 0]
    counts = np.asarray(region_counts(region_truth(found), region_truth(truth)))
    assert counts.tolist() == [[2, 1, 0], [1, 1, 1], [1, 0, 0]]


def test_validation_counts_every_voxel_once_over_two_devices(config, state):
    batch = tiny_batch(5, 2, 1)
    step = map_over_devices(make_validation_step(_objective(config, AXIS)), donate=False)
    counts = np.asarray(step(replicate(state), shard(batch))["counts"])
    assert counts.shape == (2, 3, 3)
    whole = (batch["label"] > 0).sum()
    assert (counts[:, 0, 0] + counts[:, 0, 2] == whole).all()
    flat = {name: value[:, 0] for name, value in batch.items()}
    alone = jax.jit(make_validation_step(_objective(config)))(state, flat)["counts"]
    np.testing.assert_array_equal(counts, alone)
