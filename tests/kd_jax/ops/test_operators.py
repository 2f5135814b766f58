import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.ops.conv_cpu import conv3d_by_columns, conv3d_by_slices
from kd_jax.ops.operators import (
    average_pool3d,
    conv3d,
    conv3d_plain,
    instance_norm,
    instance_norm_leaky_relu,
    instance_norm_plain,
    leaky_relu,
    up_conv3d,
)


def _values_and_gradients(form, *args):
    target = np.random.default_rng(9).standard_normal(jax.eval_shape(form, *args).shape).astype(np.float32)
    loss = lambda *a: jnp.sum(form(*a) * target)  # noqa: E731
    return form(*args), jax.grad(loss, argnums=tuple(range(len(args))))(*args)


def _assert_same(form, reference, *args):
    for ours, theirs in zip(
        jax.tree.leaves(_values_and_gradients(form, *args)),
        jax.tree.leaves(_values_and_gradients(reference, *args)),
        strict=True,
    ):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * scale, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride"),
    [
        ((6, 8, 10), (3, 3, 3), (1, 1, 1)),
        ((6, 8, 10), (3, 3, 3), (2, 2, 2)),
        ((7, 5, 9), (3, 3, 3), (2, 2, 2)),
        ((6, 8, 8), (1, 3, 3), (1, 2, 2)),
        ((8, 6, 6), (3, 1, 3), (2, 1, 1)),
        ((8, 7, 6), (5, 3, 1), (3, 2, 1)),
        ((4, 4, 4), (1, 1, 1), (1, 1, 1)),
        ((4, 6, 4), (1, 1, 1), (2, 2, 2)),
        ((1, 2, 1), (3, 3, 3), (1, 1, 1)),
        ((1, 1, 1), (3, 3, 3), (2, 2, 2)),
    ],
)
@pytest.mark.parametrize("channels", [3, 17])
def test_convolution_equals_the_plain_form(shape, kernel, stride, channels):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *shape, channels)).astype(np.float32)
    w = rng.standard_normal((*kernel, channels, 4)).astype(np.float32)
    for form in (conv3d, conv3d_by_slices, conv3d_by_columns):
        _assert_same(lambda x, w, f=form: f(x, w, stride), lambda x, w: conv3d_plain(x, w, stride), x, w)


def test_convolution_by_hand():
    x = np.zeros((1, 3, 3, 3, 1), np.float32)
    x[0, 1, 1, 1, 0] = 2.0
    w = np.arange(27, dtype=np.float32).reshape(3, 3, 3, 1, 1)
    # Cross-correlation: the voxel before the impulse along D sees it through the last depth tap.
    y = conv3d(x, w, (1, 1, 1))
    assert y[0, 0, 1, 1, 0] == 2 * w[2, 1, 1, 0, 0]
    assert y[0, 1, 1, 2, 0] == 2 * w[1, 1, 0, 0, 0]


def test_convolution_is_lowered_for_each_platform_in_its_own_form():
    def operations(size, stride, platform):
        x = jax.ShapeDtypeStruct((1, 8, size, size, 4), jnp.float32)
        w = jax.ShapeDtypeStruct((3, 3, 3, 4, 2), jnp.float32)
        text = jax.jit(lambda x, w: conv3d(x, w, stride)).trace(x, w).lower(lowering_platforms=(platform,)).as_text()
        return re.findall(r"stablehlo\.(?:convolution|dot_general).*-> tensor<([\dx]+)xf32>", text)

    assert operations(8, (1, 1, 1), "cpu") == ["8x8x8x2"] * 3  # a 2-D convolution over 8 slices for each depth tap
    assert operations(16, (2, 2, 2), "cpu") == ["4x8x8x2"] * 3
    assert operations(16, (1, 1, 1), "cpu") == ["1x18x16x6"]  # one slice's columns times the kernel, kh taps to add up
    assert operations(16, (1, 1, 1), "tpu") == ["1x8x16x16x2"]


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (3, 1, 2)])
def test_up_convolution_is_the_transpose_of_a_strided_convolution(stride):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 3, 4, 2, 5)).astype(np.float32)
    w = rng.standard_normal((*stride, 5, 3)).astype(np.float32)

    def transposed(x, w):
        # The gradient of y ↦ conv(y, w) with kernel = stride and no padding, which defines a transposed convolution.
        full = (2, 3 * stride[0], 4 * stride[1], 2 * stride[2], 3)
        forward = lambda y: jax.lax.conv_general_dilated(  # noqa: E731
            y, jnp.swapaxes(w, 3, 4), stride, "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
        return jax.vjp(forward, jnp.zeros(full))[1](x)[0]

    _assert_same(up_conv3d, transposed, x, w)


def test_instance_norm_equals_the_plain_form_and_normalises():
    rng = np.random.default_rng(2)
    x = (5 + 3 * rng.standard_normal((2, 4, 6, 5, 3))).astype(np.float32)
    scale, bias = rng.standard_normal((2, 3)).astype(np.float32)
    _assert_same(instance_norm, instance_norm_plain, x, scale, bias)
    _assert_same(instance_norm_leaky_relu, lambda *args: leaky_relu(instance_norm_plain(*args)), x, scale, bias)
    y = np.asarray(instance_norm_leaky_relu(x, np.ones(3, np.float32), np.full(3, 100, np.float32)), np.float64) - 100
    np.testing.assert_allclose(y.mean((1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(y.var((1, 2, 3)), 1, atol=1e-3)


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (3, 1, 2)])
def test_average_pool_is_a_convolution_with_equal_weights(stride):
    x = np.random.default_rng(4).standard_normal((2, 6, 4, 8, 3)).astype(np.float32)
    weights = np.broadcast_to(np.eye(3, dtype=np.float32) / np.prod(stride), (*stride, 3, 3))
    reference = lambda x: jax.lax.conv_general_dilated(  # noqa: E731
        x, weights, stride, "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    _assert_same(lambda x: average_pool3d(x, stride), reference, x)
    # bfloat16 would add 256 ones to 256 and stay there.
    ones = jnp.ones((1, 8, 8, 8, 1), jnp.bfloat16)
    assert average_pool3d(ones, (8, 8, 8)) == 1 and average_pool3d(ones, (8, 8, 8)).dtype == jnp.bfloat16


def test_leaky_relu_by_hand():
    value, slope = jax.vmap(jax.value_and_grad(leaky_relu))(jnp.array([-2.0, 0.0, 3.0]))
    np.testing.assert_allclose(value, [-0.02, 0, 3])
    np.testing.assert_allclose(slope, [0.01, 0.01, 1])  # PyTorch's choice at zero


def test_instance_norm_of_one_voxel_is_its_bias():
    scale, bias = np.array([2.0, -1.0], np.float32), np.array([0.5, -0.25], np.float32)
    x = np.random.default_rng(5).standard_normal((2, 1, 1, 1, 2)).astype(np.float32)
    np.testing.assert_array_equal(instance_norm(x, scale, bias), np.broadcast_to(bias, x.shape))


def test_instance_norm_of_a_nearly_constant_channel_does_not_cancel():
    x = (1000 + np.random.default_rng(3).uniform(-0.5, 0.5, (1, 8, 8, 8, 1))).astype(np.float32)
    ones, zeros = np.ones(1, np.float32), np.zeros(1, np.float32)
    y = np.asarray(instance_norm_leaky_relu(x, ones, zeros))
    x64 = x.astype(np.float64)
    expected = (x64 - x64.mean()) / np.sqrt(x64.var() + 1e-5)
    np.testing.assert_allclose(y, np.where(expected > 0, expected, 0.01 * expected), atol=2e-3)


def test_instance_norm_keeps_the_precision_of_its_input():
    x = jnp.ones((1, 2, 2, 2, 1), jnp.bfloat16)
    for form in (instance_norm, instance_norm_leaky_relu):
        assert form(x, jnp.ones(1), jnp.zeros(1)).dtype == jnp.bfloat16
