"""The joint step: what moves what, one device against two, determinism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import InputError
from kd_jax.models.outputs import region_truth
from kd_jax.objective.joint import (
    build_networks,
    distillation_loss,
    joint_loss,
    make_targets,
    segment,
    segmentation_loss,
)
from kd_jax.objective.segmentation import barlow_twins
from kd_jax.training.devices import AXIS, map_over_devices, replicate, shard
from kd_jax.training.step import (
    descend,
    init_state,
    make_optimiser,
    make_schedule,
    make_train_step,
    make_validation_step,
    region_counts,
)
from tests.kd_jax.tiny import tiny_batch, tiny_config


def _gradients(config, state, batch, loss=joint_loss):
    networks = build_networks(config, None)
    params = state.teacher.params, state.student.params
    return jax.jit(jax.grad(lambda p: loss(p, networks, config, batch, None)[0]))(params)


def _assert_trees(ours, theirs, relative):
    """Largest difference over a tree, relative to the largest entry of the tree."""
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=relative * scale, rtol=0)


def _equal(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))


@pytest.fixture(scope="module")
def config():
    return tiny_config()


@pytest.fixture(scope="module")
def state(config):
    return init_state(build_networks(config, None), config)


@pytest.fixture(scope="module")
def batch():
    return tiny_batch(0, 2)


@pytest.fixture(scope="module")
def two_devices(config):
    return map_over_devices(make_train_step(build_networks(config, AXIS), config, AXIS), donate=True)


@pytest.fixture(scope="module")
def one_device(config):
    return jax.jit(make_train_step(build_networks(config, None), config, None))


def test_stop_gradient_leaves_exactly_no_barlow_gradient_in_the_teacher(config, state, batch):
    networks = build_networks(config, None)
    targets = make_targets(batch["label"], config)

    def barlow(params):
        bottlenecks = [
            segment(module, side, settings, config.loss, batch, targets, None).bottleneck
            for module, side, settings in zip(networks[:2], params, (config.teacher, config.student), strict=True)
        ]
        return distillation_loss(networks, params[1], config, *bottlenecks, None)[0]

    teacher, student = jax.jit(jax.grad(barlow))((state.teacher.params, state.student.params))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(teacher))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(student))


def test_without_stop_gradient_the_term_moves_the_teacher(state, batch):
    def barlow_only(params, networks, config, batch, axis):
        full, _ = joint_loss(params, networks, config, batch, axis)
        base, _ = joint_loss(params, networks, tiny_config(distillation={"weight": 0.0}), batch, axis)
        return full - base, None

    def teacher_encoder(stop):
        settings = tiny_config(distillation={"stop_gradient": stop, "weight": 1.0})
        return np.abs(_gradients(settings, state, batch, barlow_only)[0]["network"]["encoder_0_0"]["kernel"]).max()

    assert teacher_encoder(True) == 0
    assert teacher_encoder(False) > 1e-4


def test_the_total_is_the_sum_of_its_terms(config, state, batch):
    networks = build_networks(config, None)
    params = state.teacher.params, state.student.params
    total, parts = jax.jit(lambda p: joint_loss(p, networks, config, batch, None))(params)
    settings = config.distillation
    features = config.student.features[-1]
    barlow = (parts["barlow_twins/on_diagonal"] + settings.off_diagonal * parts["barlow_twins/off_diagonal"]) / features
    assert parts["barlow_twins/loss"] == pytest.approx(float(barlow), rel=1e-6)
    expected = parts["teacher/loss"] + parts["student/loss"] + settings.weight * barlow
    assert total == pytest.approx(float(expected), rel=1e-6)


def test_the_student_never_sees_the_other_modalities(config, state, batch):
    networks = build_networks(config, None)
    params = state.teacher.params, state.student.params
    measure = jax.jit(lambda image: joint_loss(params, networks, config, {**batch, "image": image}, None)[1])
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


def test_one_alternating_update_with_projectors_on_two_devices_equals_one_device(batch):
    config = tiny_config(distillation={"update": "alternating", "projector": (16, 12)})
    state = init_state(build_networks(config, None), config)
    one = jax.jit(make_train_step(build_networks(config, None), config, None))
    two = map_over_devices(make_train_step(build_networks(config, AXIS), config, AXIS), donate=True)
    _compare_one_update(state, batch, one, two)


def test_regions_batch_dice_and_a_teacher_held_still_on_two_devices_equal_one_device(batch):
    # One compilation for the three: each changes what is summed over devices, or what moves.
    config = tiny_config(
        loss={"segmentation": "dice_bce", "batch_dice": True}, distillation={"update": "student", "weight": 1.0}
    )
    state = init_state(build_networks(config, None), config)
    one = jax.jit(make_train_step(build_networks(config, None), config, None))
    two = map_over_devices(make_train_step(build_networks(config, AXIS), config, AXIS), donate=True)
    _compare_one_update(state, batch, one, two)
    after, measured = one(state, batch)
    assert _equal(after.teacher, state.teacher) and not _equal(after.student.params, state.student.params)
    assert state.student.params["network"]["head_0"]["kernel"].shape[-1] == 3
    for network in ("teacher", "student"):
        assert measured[f"{network}/loss"] == pytest.approx(
            float(measured[f"{network}/dice"] + measured[f"{network}/bce"]), rel=1e-6
        )


def test_bfloat16_trains_like_float32_on_float32_parameters(state, batch, one_device):
    config = tiny_config(train={"precision": "bfloat16"})
    after, measured = jax.jit(make_train_step(build_networks(config, None), config, None))(state, batch)
    expected = one_device(state, batch)[1]
    assert all(np.isfinite(value) for value in measured.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    for name in ("teacher/loss", "student/loss", "barlow_twins/loss"):
        assert measured[name] == pytest.approx(float(expected[name]), rel=0.05)
        assert measured[name] != expected[name]
    assert {leaf.dtype for leaf in jax.tree.leaves((after.teacher, after.student)) if leaf.ndim} == {
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
    grads = _gradients(config, state, batch)
    optimiser = make_optimiser(config.optimiser, make_schedule(config))
    for name, gradient in zip(("teacher", "student"), grads, strict=True):
        expected, norm = jax.jit(lambda side, g: descend(side, g, optimiser))(getattr(state, name), gradient)
        _assert_trees(getattr(after, name).params, expected.params, 1e-6)
        assert measured[f"{name}/gradient_norm"] == pytest.approx(float(norm), rel=1e-5)


def test_layout_and_rematerialisation_change_neither_the_step_nor_the_state(state, batch, one_device):
    config = tiny_config(train={"remat": "norms", "fold": 4})
    networks = build_networks(config, None)
    assert networks.teacher.fold == 4 and networks.student.remat == "norms"
    after, measured = jax.jit(make_train_step(networks, config, None))(state, batch)
    expected, as_measured = one_device(state, batch)
    _assert_trees(after, expected, 1e-5)
    for name, value in as_measured.items():
        np.testing.assert_allclose(measured[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_targets_are_made_once_per_shape_for_both_networks(batch):
    config = tiny_config()
    targets = make_targets(batch["label"], config)
    assert sorted(targets) == [(8, 8, 8), (16, 16, 16)]
    np.testing.assert_array_equal(targets[8, 8, 8], batch["label"][:, 1::2, 1::2, 1::2])
    regions = make_targets(batch["label"], tiny_config(loss={"segmentation": "dice_bce", "deep_supervision": False}))
    assert list(regions) == [(16, 16, 16)]
    np.testing.assert_array_equal(regions[16, 16, 16], region_truth(batch["label"]))


@pytest.mark.parametrize(("old", "remat"), [(False, "none"), (True, "blocks"), ("true", "blocks"), ("norms", "norms")])
def test_rematerialisation_of_older_runs_is_understood(old, remat):
    assert tiny_config(train={"remat": old}).train.remat == remat


def test_automatic_settings_are_plain_off_a_tpu():
    network = build_networks(tiny_config(), None).student
    assert (network.remat, network.fold) == ("none", 1)


def test_the_same_seed_gives_bitwise_the_same_run(config, state, batch, one_device):
    again = init_state(build_networks(config, None), config)
    assert _equal(state, again)
    assert _equal(one_device(state, batch), one_device(again, batch))
    other = init_state(build_networks(config, None), tiny_config(seed=1))
    assert not _equal(state.student.params, other.student.params)


def test_alternating_update_moves_the_teacher_first():
    joint = tiny_config()
    alternating = tiny_config(distillation={"update": "alternating"})
    state = init_state(build_networks(joint, None), joint)
    batch = tiny_batch(3, 2)
    results = [
        jax.jit(make_train_step(build_networks(c, None), c, None))(state, batch)[0] for c in (joint, alternating)
    ]
    # With the gradient stopped the teacher's own update is the same; the student follows another latent.
    _assert_trees(results[1].teacher.params, results[0].teacher.params, 1e-6)
    moved = max(np.abs(a - b).max() for a, b in zip(*(jax.tree.leaves(r.student.params) for r in results), strict=True))
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
    with pytest.raises(ValueError, match=r"8 and 6 features.*distillation.projector"):
        tiny_config(student={"features": (2, 4, 6)})
    config = tiny_config(student={"features": (2, 4, 6)}, distillation={"projector": (16, 12)})
    networks = build_networks(config, None)
    state = init_state(networks, config)
    after, measured = jax.jit(make_train_step(networks, config, None))(state, tiny_batch(0, 2))
    assert np.isfinite(measured["barlow_twins/loss"])
    for name in ("teacher", "student"):
        before = state.student.params["projectors"][name]["dense_0"]["kernel"]
        assert not np.array_equal(before, after.student.params["projectors"][name]["dense_0"]["kernel"])


def test_one_pooled_vector_per_case_is_refused_for_small_batches():
    with pytest.raises(
        InputError, match=r"samples = cases gives one sample per case, and train\.batch is 2: allowed from 4"
    ):
        tiny_config(distillation={"samples": "cases"})
    config = tiny_config(distillation={"samples": "cases"}, train={"batch": 4})
    networks = build_networks(config, None)
    shapes = jax.eval_shape(lambda: init_state(networks, config))
    step = make_train_step(networks, config, None)
    measured = jax.eval_shape(step, shapes, tiny_batch(0, 4))[1]
    assert "barlow_twins/loss" in measured


def test_segmentation_loss_terms():
    rng = np.random.default_rng(0)
    logits = [rng.standard_normal((1, s, s, s, 4)).astype(np.float32) for s in (8, 4, 2)]
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
    step = map_over_devices(make_validation_step(build_networks(config, AXIS), config, AXIS), donate=False)
    counts = np.asarray(step(replicate(state), shard(batch))["counts"])
    assert counts.shape == (2, 3, 3)
    whole = (batch["label"] > 0).sum()
    assert (counts[:, 0, 0] + counts[:, 0, 2] == whole).all()
    flat = {name: value[:, 0] for name, value in batch.items()}
    alone = jax.jit(make_validation_step(build_networks(config, None), config, None))(state, flat)["counts"]
    np.testing.assert_array_equal(counts, alone)
