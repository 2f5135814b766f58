import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from experiments.parity.check import GOLDEN
from experiments.parity.loss_draws import LEVELS, SCALES, channels_of, label_cases, logits_of, losses
from kd_jax.objective.segmentation import (
    binary_cross_entropy,
    cross_entropy,
    deep_supervision_weights,
    labels_at,
    soft_dice_loss,
)
from kd_jax.objective.supervised import segmentation_loss

SHAPE = (2, 3, 4, 5)


def _case(seed: int, classes: int = 4):
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal((*SHAPE, classes)).astype(np.float32), rng.integers(0, classes, SHAPE)


def test_cross_entropy_equals_the_definition():
    logits, labels = _case(0)
    expected = -np.take_along_axis(log_softmax(logits.astype(np.float64), -1), labels[..., None], -1).mean()
    assert cross_entropy(jnp.asarray(logits), jnp.asarray(labels)) == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_of_uniform_logits_is_log_classes_and_extremes_stay_finite():
    labels = jnp.zeros(SHAPE, int)
    assert cross_entropy(jnp.zeros((*SHAPE, 4)), labels) == pytest.approx(np.log(4), rel=2e-6)
    huge = jnp.full((*SHAPE, 4), -1e4).at[..., 1].set(1e4)
    assert cross_entropy(huge, labels) == pytest.approx(2e4)
    assert np.isfinite(jax.grad(cross_entropy)(huge, labels)).all()


def test_soft_dice_equals_the_definition_with_an_absent_class():
    logits, labels = _case(1)
    labels[0][labels[0] == 3] = 0
    p, y = softmax(logits.astype(np.float64), -1), np.eye(4)[labels]
    overlap, size = (p * y).sum((1, 2, 3)), (p + y).sum((1, 2, 3))
    expected = 1 - ((2 * overlap + 1e-5) / (size + 1e-5))[:, 1:].mean()
    ours = soft_dice_loss(jax.nn.softmax(logits)[..., 1:], jnp.eye(4)[labels][..., 1:])
    assert ours == pytest.approx(expected, rel=1e-6)


def test_soft_dice_of_a_perfect_prediction_is_zero_also_where_a_class_is_empty():
    labels = np.zeros(SHAPE, int)
    labels[:, 0] = 2
    truth = jnp.eye(4)[labels]
    assert soft_dice_loss(truth, truth) == pytest.approx(0, abs=1e-6)


def test_deep_supervision_weights_of_nnunet():
    assert deep_supervision_weights(5) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15, 0))
    assert deep_supervision_weights(1) == (1.0,)


def test_labels_at_takes_the_voxel_nearest_to_the_centre():
    # torch.nn.functional.interpolate(mode="nearest-exact") of 0..7 to 4 gives 1 3 5 7, of 0..8 to 3 gives 1 4 7.
    labels = jnp.broadcast_to(jnp.arange(8)[None, :, None, None], (1, 8, 9, 4))
    assert labels_at(labels, (4, 9, 4))[0, :, 0, 0].tolist() == [1, 3, 5, 7]
    labels = jnp.broadcast_to(jnp.arange(9)[None, None, :, None], (1, 8, 9, 4))
    coarse = labels_at(labels, (8, 3, 1))
    assert coarse[0, 0, :, 0].tolist() == [1, 4, 7]
    assert coarse.shape == (1, 8, 3, 1)


@pytest.mark.parametrize(("name", "config"), losses().items())
def test_losses_are_those_of_nnunet_also_where_classes_are_empty(name, config):
    channels = channels_of(config)
    loss = jax.jit(lambda logits, labels: segmentation_loss(logits, labels, config)[0])
    with np.load(GOLDEN / "losses.npz") as theirs:
        for case, labels in label_cases().items():
            for scale in SCALES:
                ours = float(loss([logits_of(channels, scale)], labels))
                assert ours == pytest.approx(float(theirs[f"{name}/{case}/{scale:g}"]), rel=1e-5, abs=1e-5)
        levels = [logits_of(channels, 1.0, shape) for shape in LEVELS]
        deep = float(loss(levels, label_cases()["all classes"]))
        assert deep == pytest.approx(float(theirs[f"{name}/deep"]), abs=1e-5)


def test_batch_dice_is_the_dice_of_the_cases_laid_side_by_side():
    rng = np.random.default_rng(0)
    p, y = jnp.asarray(rng.random((2, 4, 3, 5, 3)), jnp.float32), jnp.asarray(rng.integers(0, 2, (2, 4, 3, 5, 3)))
    one_volume = [jnp.concatenate(list(x))[None] for x in (p, y)]
    assert soft_dice_loss(p, y, batch_dice=True) == pytest.approx(float(soft_dice_loss(*one_volume)), rel=1e-6)
    assert soft_dice_loss(p, y, batch_dice=True) != pytest.approx(float(soft_dice_loss(p, y)), rel=1e-4)


def test_binary_cross_entropy_by_hand_and_at_extremes():
    truth = jnp.array([1, 0], bool).reshape(1, 1, 1, 2, 1)
    logits = jnp.array([2.0, -1.0]).reshape(truth.shape)
    expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))) / 2
    assert binary_cross_entropy(logits, truth) == pytest.approx(expected, rel=1e-6)
    assert binary_cross_entropy(-1e4 * (2.0 * truth - 1), truth) == pytest.approx(1e4)
