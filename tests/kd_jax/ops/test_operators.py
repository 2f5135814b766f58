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
from tests.kd_jax.ops.forms import assert_agree, draw, lowered, shapes


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
def test_convolution_equals_the_plain_form(shape, kernel, stride):
    x, w = draw((2, *shape, 3), (*kernel, 3, 4))
    forms = [lambda x, w, f=f: f(x, w, stride) for f in (conv3d_by_slices, conv3d_by_columns)]
    assert_agree(forms, lambda x, w: conv3d_plain(x, w, stride), x, w)


@pytest.mark.parametrize("shape", [(4, 16, 16, 17), (2, 3, 3, 17)])  # one for each form that a CPU chooses between
def test_the_chosen_form_equals_the_plain_one(shape):
    x, w = draw((1, *shape), (3, 3, 3, 17, 2))
    assert_agree([lambda x, w: conv3d(x, w, (1, 1, 1))], lambda x, w: conv3d_plain(x, w, (1, 1, 1)), x, w)


def test_convolution_by_hand():
    x = jnp.zeros((1, 3, 3, 3, 1)).at[0, 1, 1, 1, 0].set(2.0)
    w = jnp.arange(27, dtype=jnp.float32).reshape(3, 3, 3, 1, 1)
    # Cross-correlation: the voxel before the impulse along D sees it through the last depth tap.
    y = conv3d(x, w, (1, 1, 1))
    assert y[0, 0, 1, 1, 0] == 2 * w[2, 1, 1, 0, 0]
    assert y[0, 1, 1, 2, 0] == 2 * w[1, 1, 0, 0, 0]


def test_convolution_takes_the_form_that_suits_the_platform():
    def axes(size, stride, platform):
        arrays = shapes((1, 8, size, size, 4), (3, 3, 3, 4, 2))
        operations = lowered(lambda x, w: conv3d(x, w, stride), *arrays, platform=platform)
        return [op.axes for op in operations if op.name == "stablehlo.convolution"]

    assert axes(8, (1, 1, 1), "cpu") == axes(16, (2, 2, 2), "cpu") == [4] * 3  # in 2-D, for each depth tap
    assert axes(16, (1, 1, 1), "cpu") == []  # matrix products
    assert axes(16, (1, 1, 1), "tpu") == axes(16, (1, 1, 1), "cuda") == [5]


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (3, 1, 2)])
def test_up_convolution_is_the_transpose_of_a_strided_convolution(stride):
    x, w = draw((2, 3, 4, 2, 5), (*stride, 5, 3))

    def transposed(x, w):
        # The gradient of y ↦ conv(y, w) with kernel = stride and no padding, which defines a transposed convolution.
        full = (2, 3 * stride[0], 4 * stride[1], 2 * stride[2], 3)
        forward = lambda y: jax.lax.conv_general_dilated(  # noqa: E731
            y, jnp.swapaxes(w, 3, 4), stride, "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
        return jax.vjp(forward, jnp.zeros(full))[1](x)[0]

    assert_agree([up_conv3d], transposed, x, w)


def test_instance_norm_equals_the_plain_form_and_normalises():
    x, scale, bias = draw((2, 4, 6, 5, 3), 3, 3)
    x = 5 + 3 * x
    assert_agree([instance_norm], instance_norm_plain, x, scale, bias)
    assert_agree([instance_norm_leaky_relu], lambda *args: leaky_relu(instance_norm_plain(*args)), x, scale, bias)
    y = np.asarray(instance_norm_leaky_relu(x, jnp.ones(3), jnp.full(3, 100.0)), np.float64) - 100
    np.testing.assert_allclose(y.mean((1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(y.var((1, 2, 3)), 1, atol=1e-3)


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (3, 1, 2)])
def test_average_pool_is_a_convolution_with_equal_weights(stride):
    (x,) = draw((2, 6, 4, 8, 3))
    weights = np.broadcast_to(np.eye(3, dtype=np.float32) / np.prod(stride), (*stride, 3, 3))
    reference = lambda x: jax.lax.conv_general_dilated(  # noqa: E731
        x, weights, stride, "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    assert_agree([lambda x: average_pool3d(x, stride)], reference, x)
    # bfloat16 would add 256 ones to 256 and stay there.
    ones = jnp.ones((1, 8, 8, 8, 1), jnp.bfloat16)
    assert average_pool3d(ones, (8, 8, 8)) == 1 and average_pool3d(ones, (8, 8, 8)).dtype == jnp.bfloat16


def test_leaky_relu_by_hand():
    value, pull_back = jax.vjp(leaky_relu, jnp.array([-2.0, 0.0, 3.0]))
    np.testing.assert_allclose(value, [-0.02, 0, 3])
    np.testing.assert_allclose(pull_back(jnp.ones(3))[0], [0.01, 0.01, 1])  # PyTorch's choice at zero


def test_instance_norm_of_one_voxel_is_its_bias():
    scale, bias = jnp.array([2.0, -1.0]), jnp.array([0.5, -0.25])
    (x,) = draw((2, 1, 1, 1, 2))
    np.testing.assert_array_equal(instance_norm(x, scale, bias), np.broadcast_to(bias, x.shape))


def test_instance_norm_of_a_nearly_constant_channel_does_not_cancel():
    x = (1000 + np.random.default_rng(3).uniform(-0.5, 0.5, (1, 8, 8, 8, 1))).astype(np.float32)
    y = np.asarray(instance_norm_leaky_relu(jnp.asarray(x), jnp.ones(1), jnp.zeros(1)))
    x64 = x.astype(np.float64)
    expected = (x64 - x64.mean()) / np.sqrt(x64.var() + 1e-5)
    np.testing.assert_allclose(y, np.where(expected > 0, expected, 0.01 * expected), atol=2e-3)


def test_instance_norm_keeps_the_precision_of_its_input():
    x = jnp.ones((1, 2, 2, 2, 1), jnp.bfloat16)
    for form in (instance_norm, instance_norm_leaky_relu):
        assert form(x, jnp.ones(1), jnp.zeros(1)).dtype == jnp.bfloat16
