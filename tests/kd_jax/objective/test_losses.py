import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from experiments.parity.check import GOLDEN
from experiments.parity.loss_draws import LEVELS, SCALES, channels_of, label_cases, logits_of, losses
from kd_jax.objective.joint import segmentation_loss
from kd_jax.objective.segmentation import (
    MIN_SAMPLES,
    barlow_twins,
    binary_cross_entropy,
    cross_entropy,
    deep_supervision_weights,
    labels_at,
    soft_dice_loss,
)

SHAPE = (2, 3, 4, 5)


def _case(seed: int, classes: int = 4):
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal((*SHAPE, classes)).astype(np.float32), rng.integers(0, classes, SHAPE)


def test_cross_entropy_equals_the_definition():
    logits, labels = _case(0)
    expected = -np.take_along_axis(log_softmax(logits.astype(np.float64), -1), labels[..., None], -1).mean()
    assert cross_entropy(logits, labels) == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_of_uniform_logits_is_log_classes_and_extremes_stay_finite():
    labels = np.zeros(SHAPE, int)
    assert cross_entropy(np.zeros((*SHAPE, 4), np.float32), labels) == pytest.approx(np.log(4), rel=1e-6)
    huge = np.full((*SHAPE, 4), -1e4, np.float32)
    huge[..., 1] = 1e4
    assert cross_entropy(huge, labels) == pytest.approx(2e4)
    assert np.isfinite(jax.grad(cross_entropy)(huge, labels)).all()


def test_soft_dice_equals_the_definition_with_an_absent_class():
    logits, labels = _case(1)
    labels[0][labels[0] == 3] = 0
    p, y = softmax(logits.astype(np.float64), -1), np.eye(4)[labels]
    overlap, size = (p * y).sum((1, 2, 3)), (p + y).sum((1, 2, 3))
    expected = 1 - ((2 * overlap + 1e-5) / (size + 1e-5))[:, 1:].mean()
    ours = soft_dice_loss(jax.nn.softmax(logits)[..., 1:], np.eye(4)[labels][..., 1:])
    assert ours == pytest.approx(expected, rel=1e-6)


def test_soft_dice_of_a_perfect_prediction_is_zero_also_where_a_class_is_empty():
    labels = np.zeros(SHAPE, int)
    labels[:, 0] = 2
    truth = np.eye(4, dtype=np.float32)[labels]
    assert soft_dice_loss(truth, truth) == pytest.approx(0, abs=1e-6)


def test_deep_supervision_weights_of_nnunet():
    assert deep_supervision_weights(5) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15, 0))
    assert deep_supervision_weights(1) == (1.0,)


def test_labels_at_takes_the_voxel_nearest_to_the_centre():
    # torch.nn.functional.interpolate(mode="nearest-exact") of 0..7 to 4 gives 1 3 5 7, of 0..8 to 3 gives 1 4 7.
    labels = np.broadcast_to(np.arange(8)[None, :, None, None], (1, 8, 9, 4))
    assert labels_at(labels, (4, 9, 4))[0, :, 0, 0].tolist() == [1, 3, 5, 7]
    labels = np.broadcast_to(np.arange(9)[None, None, :, None], (1, 8, 9, 4))
    coarse = labels_at(labels, (8, 3, 1))
    assert coarse[0, 0, :, 0].tolist() == [1, 4, 7]
    assert coarse.shape == (1, 8, 3, 1)


def _barlow_float64(a, b):
    """Equations 1 and 2 of Zbontar et al. on BatchNorm'd latents, in float64."""
    a, b = (z.astype(np.float64) for z in (a, b))
    a, b = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (a, b))
    c = a.T @ b / len(a)
    off = c[~np.eye(len(c), dtype=bool)]
    return ((np.diag(c) - 1) ** 2).sum(), (off**2).sum(), np.diag(c).mean()


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([(8, 5), (64, 32), (128, 320)]), st.floats(0.01, 100), st.floats(-50, 50))
def test_barlow_twins_equals_float64_numpy(seed, shape, scale, shift):
    rng = np.random.default_rng(seed)
    a = (shift + scale * rng.standard_normal(shape)).astype(np.float32)
    b = (0.5 * a + scale * rng.standard_normal(shape)).astype(np.float32)
    np.testing.assert_allclose(barlow_twins(a, b), _barlow_float64(a, b), rtol=2e-4, atol=1e-5)


def test_barlow_twins_gradient_equals_finite_differences_of_float64():
    rng = np.random.default_rng(0)
    a, b, direction = rng.standard_normal((3, 16, 6)).astype(np.float32)
    loss = lambda b: (lambda on, off, _: on + 0.0051 * off)(*barlow_twins(a, b))  # noqa: E731
    slope = np.sum(np.asarray(jax.grad(loss)(b), np.float64) * direction)

    def exact(step):
        on, off, _ = _barlow_float64(a, b.astype(np.float64) + step * direction)
        return on + 0.0051 * off

    assert slope == pytest.approx((exact(1e-5) - exact(-1e-5)) / 2e-5, rel=1e-4)


def test_barlow_twins_of_whitened_latents_is_zero_and_of_copies_only_on_the_diagonal():
    rng = np.random.default_rng(0)
    white = np.linalg.qr(rng.standard_normal((200, 9)))[0]
    white = np.linalg.qr(white - white.mean(0))[0] * np.sqrt(200)
    on, off, correlation = barlow_twins(white.astype(np.float32), white.astype(np.float32))
    assert on == pytest.approx(0, abs=1e-6) and off == pytest.approx(0, abs=1e-6)
    assert correlation == pytest.approx(1, abs=1e-4)
    copies = np.repeat(white[:, :1], 9, axis=1).astype(np.float32)
    on, off, _ = barlow_twins(copies, copies)
    assert on == pytest.approx(0, abs=1e-6) and off == pytest.approx(72, rel=1e-3)


def test_barlow_twins_floor_of_few_samples():
    # Rank ≤ N − 1 bounds the off-diagonal from below: D²/(N−1) − D for a perfect diagonal (method.md's arithmetic).
    n, d = 16, 40
    rng = np.random.default_rng(0)
    z = rng.standard_normal((n, d)).astype(np.float32)
    _, off, _ = barlow_twins(z, z)
    assert off >= d**2 / (n - 1) - d


def test_too_few_samples_are_refused():
    z = jnp.ones((MIN_SAMPLES - 1, 8))
    with pytest.raises(ValueError, match=r"got 3 samples.*at least 4.*distillation.samples"):
        barlow_twins(z, z)


def test_two_samples_carry_no_information(monkeypatch):
    """Why few samples are refused: with two, every entry of C is ±1 whatever the features are."""
    monkeypatch.setattr("kd_jax.objective.segmentation.MIN_SAMPLES", 2)
    features = 30
    for seed in range(3):
        a, b = 100 * np.random.default_rng(seed).standard_normal((2, 2, features)).astype(np.float32)
        on, off, correlation = barlow_twins(a, b)
        assert off == pytest.approx(features * (features - 1), rel=1e-3)
        opposite = np.sum(np.sign(a[0] - a[1]) != np.sign(b[0] - b[1]))
        assert on == pytest.approx(4 * opposite, rel=1e-3)
        assert correlation == pytest.approx(1 - 2 * opposite / features, abs=1e-3)


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
    p, y = rng.random((2, 4, 3, 5, 3)).astype(np.float32), rng.integers(0, 2, (2, 4, 3, 5, 3))
    one_volume = [np.concatenate(list(x))[None] for x in (p, y)]
    assert soft_dice_loss(p, y, batch_dice=True) == pytest.approx(float(soft_dice_loss(*one_volume)), rel=1e-6)
    assert soft_dice_loss(p, y, batch_dice=True) != pytest.approx(float(soft_dice_loss(p, y)), rel=1e-4)


def test_binary_cross_entropy_by_hand_and_at_extremes():
    truth = np.array([1, 0], bool).reshape(1, 1, 1, 2, 1)
    logits = np.array([2.0, -1.0], np.float32).reshape(truth.shape)
    expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))) / 2
    assert binary_cross_entropy(logits, truth) == pytest.approx(expected, rel=1e-6)
    assert binary_cross_entropy(np.float32(-1e4) * (2 * truth - 1), truth) == pytest.approx(1e4)
