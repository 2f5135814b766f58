"""The folded operators against the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.ops.folding import (
    _convolve_whole,
    choose_folds,
    conv3d_folded,
    conv3d_of_two,
    head_folded,
    refold,
    up_conv3d_folded,
)
from kd_jax.ops.lean import lean_norm
from kd_jax.ops.operators import conv3d_plain, instance_norm_plain, leaky_relu, up_conv3d


def _draw(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def _assert_same(ours, plain, arrays):
    """Values, and gradients of a random direction, with respect to every array."""
    expected = plain(*arrays)
    direction = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)

    def project(f):
        indices = tuple(range(len(arrays)))
        return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(f(*a) * direction), argnums=indices))(*arrays)

    assert ours(*arrays).shape == expected.shape
    for a, b in zip(jax.tree.leaves(project(ours)), jax.tree.leaves(project(plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    ("kernel", "stride", "folds"),
    [
        ((3, 3, 3), (1, 1, 1), (4, 4)),
        ((3, 3, 3), (2, 2, 2), (4, 2)),
        ((3, 3, 3), (2, 2, 2), (2, 2)),
        ((3, 3, 3), (2, 2, 2), (2, 1)),
        ((3, 3, 3), (2, 2, 1), (4, 2)),  # blocks do not line up: four neighbours become two
        ((1, 3, 5), (1, 1, 1), (2, 4)),
        ((1, 1, 7), (1, 1, 3), (4, 1)),
        ((1, 1, 1), (1, 1, 1), (8, 8)),
    ],
)
def test_convolutions(kernel, stride, folds):
    fold, out_fold = folds
    width = 24
    x, weights = _draw((2, 3, 4, width, 2), (*kernel, 2, 3))
    folded = lambda x, w: refold(  # noqa: E731
        conv3d_folded(refold(x, 1, fold), w, stride, fold, out_fold), out_fold, 1
    )
    _assert_same(folded, lambda x, w: conv3d_plain(x, w, stride), (x, weights))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_form_for_a_tpu(stride):
    x, weights = _draw((2, 4, 4, 6, 2), (3, 3, 3, 2, 3))
    padding = [(1, 1), (1, 1), (1, 2 - stride)]
    whole = lambda x, w: _convolve_whole(x, w, (stride,) * 3, padding)  # noqa: E731
    _assert_same(whole, lambda x, w: conv3d_plain(x, w, (stride,) * 3), (x, weights))


@pytest.mark.parametrize(("stride", "folds"), [((2, 2, 2), (1, 2)), ((2, 2, 2), (2, 4)), ((1, 2, 2), (4, 2))])
def test_up_convolutions(stride, folds):
    fold, out_fold = folds
    x, weights = _draw((2, 2, 3, 8, 3), (*stride, 3, 2))
    folded = lambda x, w: refold(up_conv3d_folded(refold(x, 1, fold), w, fold, out_fold), out_fold, 1)  # noqa: E731
    _assert_same(folded, up_conv3d, (x, weights))


@pytest.mark.parametrize("fold", [1, 4])
def test_two_arrays_side_by_side(fold):
    arrays = _draw((2, 2, 3, 8, 2), (2, 2, 3, 8, 4), (3, 3, 3, 6, 2))
    folded = lambda a, b, w: refold(conv3d_of_two(refold(a, 1, fold), refold(b, 1, fold), w, fold), fold, 1)  # noqa: E731
    plain = lambda a, b, w: conv3d_plain(jnp.concatenate([a, b], -1), w, (1, 1, 1))  # noqa: E731
    _assert_same(folded, plain, arrays)


def test_heads():
    arrays = _draw((2, 2, 3, 8, 5), (5, 4))
    _assert_same(lambda x, w: head_folded(refold(x, 1, 4), w, 4), jnp.matmul, arrays)


@pytest.mark.parametrize("fold", [1, 4])
@pytest.mark.parametrize("activate", [True, False])
def test_norms_with_a_backward_pass_of_their_own(fold, activate):
    y, scale, bias = _draw((2, 3, 4, 8, 5), 5, 5)
    y = 3 + np.linspace(0.1, 2, 5, dtype=np.float32) * y
    lean = lambda y, s, b: refold(lean_norm(refold(y, 1, fold), s, b, fold, activate), fold, 1)  # noqa: E731

    def plain(y, s, b):
        z = instance_norm_plain(y, s, b)
        return leaky_relu(z) if activate else z

    _assert_same(lean, plain, (y, scale, bias))


@pytest.mark.parametrize(("mean", "dtype"), [(1000, "float32"), (16, "bfloat16")])
def test_the_variance_of_a_nearly_constant_channel_survives(mean, dtype):
    (noise,) = _draw((1, 8, 8, 8, 3))
    y = jnp.asarray(mean + noise, dtype)
    exact = np.asarray(y, np.float64)
    exact = (exact - exact.mean((1, 2, 3))) / np.sqrt(exact.var((1, 2, 3)) + 1e-5)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    found = np.asarray(lean_norm(y, ones, zeros, 1, False), np.float64)
    np.testing.assert_allclose(found, exact, atol={"float32": 1e-3, "bfloat16": 0.02}[dtype])


def test_a_constant_channel_stays_finite():
    y = jnp.full((1, 4, 4, 4, 2), 100, jnp.bfloat16)
    ones = np.ones(2, np.float32)
    value, gradient = jax.value_and_grad(lambda y: lean_norm(y, ones, 0 * ones, 1, True).astype("float32").sum())(y)
    assert np.isfinite(value) and np.isfinite(gradient.astype("float32")).all()


def test_folds_fill_the_lanes_where_widths_allow():
    strides = ((1, 1, 1), *((2, 2, 2),) * 5)
    features = (32, 64, 128, 256, 320, 320)
    assert choose_folds(features, strides, 128, 4) == (4, 2, 1, 1, 1, 1)
    assert choose_folds(features, strides, 128, 1) == (1,) * 6
    assert choose_folds((8, 16), strides[:2], 128, 4) == (4, 4)
    assert choose_folds((32, 64), strides[:2], 6, 4) == (2, 1)
