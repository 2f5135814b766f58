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
from tests.kd_jax.ops.forms import assert_agree, draw


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
    x, weights = draw((2, 3, 4, width, 2), (*kernel, 2, 3))
    folded = lambda x, w: refold(  # noqa: E731
        conv3d_folded(refold(x, 1, fold), w, stride, fold, out_fold), out_fold, 1
    )
    assert_agree([folded], lambda x, w: conv3d_plain(x, w, stride), x, weights)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_form_for_a_tpu(stride):
    x, weights = draw((2, 4, 4, 6, 2), (3, 3, 3, 2, 3))
    padding = [(1, 1), (1, 1), (1, 2 - stride)]
    whole = lambda x, w: _convolve_whole(x, w, (stride,) * 3, padding)  # noqa: E731
    assert_agree([whole], lambda x, w: conv3d_plain(x, w, (stride,) * 3), x, weights)


@pytest.mark.parametrize(("stride", "folds"), [((2, 2, 2), (1, 2)), ((2, 2, 2), (2, 4)), ((1, 2, 2), (4, 2))])
def test_up_convolutions(stride, folds):
    fold, out_fold = folds
    x, weights = draw((2, 2, 3, 8, 3), (*stride, 3, 2))
    folded = lambda x, w: refold(up_conv3d_folded(refold(x, 1, fold), w, fold, out_fold), out_fold, 1)  # noqa: E731
    assert_agree([folded], up_conv3d, x, weights)


@pytest.mark.parametrize("fold", [1, 4])
def test_two_arrays_side_by_side(fold):
    arrays = draw((2, 2, 3, 8, 2), (2, 2, 3, 8, 4), (3, 3, 3, 6, 2))
    folded = lambda a, b, w: refold(conv3d_of_two(refold(a, 1, fold), refold(b, 1, fold), w, fold), fold, 1)  # noqa: E731
    plain = lambda a, b, w: conv3d_plain(jnp.concatenate([a, b], -1), w, (1, 1, 1))  # noqa: E731
    assert_agree([folded], plain, *arrays)


def test_heads():
    arrays = draw((2, 2, 3, 8, 5), (5, 4))
    assert_agree([lambda x, w: head_folded(refold(x, 1, 4), w, 4)], jnp.matmul, *arrays)


@pytest.mark.parametrize("fold", [1, 4])
@pytest.mark.parametrize("activate", [True, False])
def test_norms_with_a_backward_pass_of_their_own(fold, activate):
    y, scale, bias = draw((2, 3, 4, 8, 5), 5, 5)
    y = 3 + jnp.linspace(0.1, 2, 5) * y
    lean = lambda y, s, b: refold(lean_norm(refold(y, 1, fold), s, b, fold, activate), fold, 1)  # noqa: E731

    def plain(y, s, b):
        z = instance_norm_plain(y, s, b)
        return leaky_relu(z) if activate else z

    assert_agree([lean], plain, y, scale, bias)


@pytest.mark.parametrize(("mean", "dtype"), [(1000, "float32"), (16, "bfloat16")])
def test_the_variance_of_a_nearly_constant_channel_survives(mean, dtype):
    (noise,) = draw((1, 8, 8, 8, 3))
    y = jnp.asarray(mean + noise, dtype)
    exact = np.asarray(y, np.float64)
    exact = (exact - exact.mean((1, 2, 3))) / np.sqrt(exact.var((1, 2, 3)) + 1e-5)
    ones, zeros = jnp.ones(3), jnp.zeros(3)
    found = np.asarray(lean_norm(y, ones, zeros, 1, False), np.float64)
    np.testing.assert_allclose(found, exact, atol={"float32": 1e-3, "bfloat16": 0.02}[dtype])


def test_a_constant_channel_stays_finite():
    y = jnp.full((1, 4, 4, 4, 2), 100, jnp.bfloat16)
    ones = jnp.ones(2)
    value, gradient = jax.value_and_grad(lambda y: lean_norm(y, ones, 0 * ones, 1, True).astype("float32").sum())(y)
    assert np.isfinite(value) and np.isfinite(gradient.astype("float32")).all()


def test_folds_fill_the_lanes_where_widths_allow():
    strides = ((1, 1, 1), *((2, 2, 2),) * 5)
    features = (32, 64, 128, 256, 320, 320)
    assert choose_folds(features, strides, 128, 4) == (4, 2, 1, 1, 1, 1)
    assert choose_folds(features, strides, 128, 1) == (1,) * 6
    assert choose_folds((8, 16), strides[:2], 128, 4) == (4, 4)
    assert choose_folds((32, 64), strides[:2], 6, 4) == (2, 1)
