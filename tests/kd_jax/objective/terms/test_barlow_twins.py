"""The cross-correlation against its definition, and what bounds it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.objective.terms.barlow_twins import MIN_SAMPLES, barlow_twins


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
    with pytest.raises(ValueError, match=r"got 3 samples.*at least 4.*samples = voxels"):
        barlow_twins(z, z)


def test_two_samples_carry_no_information(monkeypatch):
    """Why few samples are refused: with two, every entry of C is ±1 whatever the features are."""
    monkeypatch.setattr("kd_jax.objective.terms.barlow_twins.MIN_SAMPLES", 2)
    features = 30
    for seed in range(3):
        a, b = 100 * np.random.default_rng(seed).standard_normal((2, 2, features)).astype(np.float32)
        on, off, correlation = barlow_twins(a, b)
        assert off == pytest.approx(features * (features - 1), rel=1e-3)
        opposite = np.sum(np.sign(a[0] - a[1]) != np.sign(b[0] - b[1]))
        assert on == pytest.approx(4 * opposite, rel=1e-3)
        assert correlation == pytest.approx(1 - 2 * opposite / features, abs=1e-3)
