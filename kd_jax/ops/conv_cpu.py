"""3-D convolution from operators that XLA runs well on a CPU, where its own 3-D convolution is slow.

At stride 1 in large planes the gradient of the kernel takes most of the time, because XLA's convolutions compute it
many times slower than the rest. There the convolution is a matrix product per depth slice, with the taps laid out as
columns that stay in the cache. All other convolutions become 2-D convolutions of depth slices.

Arrays are [N, D, H, W, C], kernels [kd, kh, kw, C, O] with odd sizes; padding is half the kernel.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from data_pipeline.conventions import Shape3

COLUMNS_FROM = 256
"""Smallest plane, in voxels, at which columns are used (on two cores: three times as fast at 64², as fast at 16²)."""


def conv3d_on_cpu(
    x: Float[Array, "n d h w c"], kernel: Float[Array, "kd kh kw c o"], stride: Shape3
) -> Float[Array, "n p q r o"]:
    """3-D convolution in the form that suits its shape."""
    if x.shape[2] * x.shape[3] >= COLUMNS_FROM:
        return conv3d_by_columns(x, kernel, stride)
    return conv3d_by_slices(x, kernel, stride)


def conv3d_by_slices(
    x: Float[Array, "n d h w c"], kernel: Float[Array, "kd kh kw c o"], stride: Shape3
) -> Float[Array, "n p q r o"]:
    """2-D convolutions of (strided) depth slices, one per depth tap."""
    taps = kernel.shape[0]
    n, depth, height, width, _ = x.shape
    out_depth = (depth + 2 * (taps // 2) - taps) // stride[0] + 1
    padded = jnp.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0), (0, 0), (0, 0)))
    slices = [
        lax.slice_in_dim(padded, tap, tap + (out_depth - 1) * stride[0] + 1, stride[0], axis=1).reshape(
            -1, height, width, x.shape[-1]
        )
        for tap in range(taps)
    ]
    out = functools.reduce(jnp.add, (_conv2d(part, kernel[tap], stride[1:]) for tap, part in enumerate(slices)))
    return out.reshape(n, out_depth, *out.shape[1:])


def _conv2d(
    x: Float[Array, "m h w c"], kernel: Float[Array, "kh kw c o"], stride: tuple[int, int]
) -> Float[Array, "m q r o"]:
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3d_by_columns(
    x: Float[Array, "n d h w c"], kernel: Float[Array, "kd kh kw c o"], stride: Shape3
) -> Float[Array, "n p q r o"]:
    """The kernel's gradient, and at stride 1 everything, as matrix products of one depth slice after the other."""
    return _one_slice_after_the_other(x, kernel) if stride == (1, 1, 1) else conv3d_by_slices(x, kernel, stride)


def _forward(x: Array, kernel: Array, stride: Shape3) -> tuple[Array, tuple[Array, Array]]:
    return conv3d_by_columns(x, kernel, stride), (x, kernel)


def _backward(stride: Shape3, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    if stride == (1, 1, 1):
        to_x = _one_slice_after_the_other(gradient, jnp.flip(kernel, (0, 1, 2)).swapaxes(3, 4))
    else:
        to_x = jax.vjp(lambda x: conv3d_by_slices(x, kernel, stride), x)[1](gradient)[0]
    return to_x, _kernel_gradient(x, gradient, kernel.shape, stride).astype(kernel.dtype)


conv3d_by_columns.defvjp(_forward, _backward)


def _one_slice_after_the_other(
    x: Float[Array, "n d h w c"], kernel: Float[Array, "kd kh kw c o"]
) -> Float[Array, "n d h w o"]:
    """Stride 1: (D, W) taps as columns, a product to kh·O, shifted sums over H."""
    kd, kh, kw, channels, features = kernel.shape
    height = x.shape[2]
    padded = _padded(x, (kd, kh, kw))
    matrix = jnp.transpose(kernel, (0, 2, 3, 1, 4)).reshape(kd * kw * channels, kh * features)

    def one_slice(depth: Array) -> Array:
        columns = _columns(padded, depth, (kd, 1, kw), (1, 1, 1))  # [N, H+kh-1, W, kd kw C]
        product = jnp.matmul(columns, matrix, preferred_element_type=jnp.float32)
        product = product.reshape(*columns.shape[:3], kh, features)
        return functools.reduce(jnp.add, (product[:, j : j + height, :, j] for j in range(kh))).astype(x.dtype)

    return jnp.moveaxis(lax.map(one_slice, jnp.arange(x.shape[1])), 0, 1)


def _kernel_gradient(
    x: Float[Array, "n d h w c"], gradient: Float[Array, "n p q r o"], shape: tuple[int, ...], stride: Shape3
) -> Float[Array, "kd kh kw c o"]:
    """Sum over voxels of input times output gradient.

    The H taps are columns of the gradient where its rows are as dense as the input's, for products as square as
    possible; all other taps are columns of the input.
    """
    kd, kh, kw, channels, features = shape
    shifts = kh if stride[1] == 1 else 1
    taps = (kd, kh // shifts, kw)
    padded = _padded(x, (kd, kh, kw))

    def add_slice(total: Array, depth: Array) -> tuple[Array, None]:
        columns = _columns(padded, depth, taps, stride).reshape(-1, total.shape[0])
        part = lax.dynamic_slice_in_dim(gradient, depth, 1, 1)[:, 0]
        shifted = [jnp.pad(part, ((0, 0), (j, shifts - 1 - j), (0, 0), (0, 0))) for j in range(shifts)]
        rows = jnp.concatenate(shifted, -1).reshape(-1, total.shape[1])
        return total + jnp.matmul(columns.T, rows, preferred_element_type=jnp.float32), None

    zero = jnp.zeros((math.prod(taps) * channels, shifts * features), jnp.float32)
    total = lax.scan(add_slice, zero, jnp.arange(gradient.shape[1]))[0]
    total = total.reshape(kd, taps[1], kw, channels, shifts, features)
    return jnp.transpose(total, (0, 1, 4, 2, 3, 5)).reshape(shape)


def _padded(x: Float[Array, "n d h w c"], size: Shape3) -> Float[Array, "n d2 h2 w2 c"]:
    return jnp.pad(x, ((0, 0), *((taps // 2, taps // 2) for taps in size), (0, 0)))


def _columns(
    padded: Float[Array, "n d2 h2 w2 c"], depth: Array, taps: Shape3, stride: Shape3
) -> Float[Array, "n q r columns"]:
    """The input voxels under the taps of the output slice `depth`, ordered (D, H, W, C)."""
    slab = lax.dynamic_slice_in_dim(padded, depth * stride[0], taps[0], 1)
    ends = [size - count + 1 for size, count in zip(padded.shape[2:4], taps[1:], strict=True)]
    return jnp.concatenate(
        [
            slab[:, i, j : j + ends[0] : stride[1], k : k + ends[1] : stride[2]]
            for i, j, k in itertools.product(*map(range, taps))
        ],
        -1,
    )
