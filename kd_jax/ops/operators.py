"""3-D operators that are fast on every backend; the only place that chooses by platform.

XLA's 3-D convolutions suit GPU and TPU. On a CPU the same sums are several times faster slice by slice
(`kd_jax.ops.conv_cpu`), and faster still compiled for the processor (`kd_jax.native`, if it was built). The form is
chosen when the program is lowered for a platform, so ahead-of-time compilation for another platform takes the right
one. Every form is tested against the plain one, values and gradients.

Arrays are [N, D, H, W, C], kernels [kd, kh, kw, C, O].
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from data_pipeline.conventions import Shape3
from kd_jax.native import library
from kd_jax.native import operators as native
from kd_jax.ops.conv_cpu import conv3d_on_cpu

NORM_EPSILON = 1e-5
"""Added to the variance, as in nnU-Net's InstanceNorm."""
NEGATIVE_SLOPE = 0.01
"""Slope of LeakyReLU, as in nnU-Net."""


def conv3d_plain(
    x: Float[Array, "n d h w c"], kernel: Float[Array, "kd kh kw c o"], stride: Shape3
) -> Float[Array, "n p q r o"]:
    """XLA's 3-D convolution, padded by half the (odd) kernel on every side as in PyTorch."""
    padding = [(size // 2, size // 2) for size in kernel.shape[:3]]
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


def conv3d(
    x: Float[Array, "n d h w c"], kernel: Float[Array, "kd kh kw c o"], stride: Shape3
) -> Float[Array, "n p q r o"]:
    """3-D convolution in the form that suits the platform; padding is half the kernel, without bias."""
    if kernel.shape[:3] == (1, 1, 1) and stride == (1, 1, 1):
        return x @ kernel[0, 0, 0]
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _fastest_on_cpu(x, kernel, stride),
        default=lambda x, kernel: conv3d_plain(x, kernel, stride),
    )


def _fastest_on_cpu(
    x: Float[Array, "n d h w c"], kernel: Float[Array, "kd kh kw c o"], stride: Shape3
) -> Float[Array, "n p q r o"]:
    if _compiled(x, kernel.shape[-1]):
        return native.conv3d(x, kernel, stride)
    return conv3d_on_cpu(x, kernel, stride)


def _compiled(x: Float[Array, "n d h w c"], channels: int) -> bool:
    """Whether the compiled operators are built and support this many channels, on a CPU."""
    return x.dtype == jnp.float32 and library.available() and channels % library.lanes() == 0


def up_conv3d(x: Float[Array, "n d h w c"], kernel: Float[Array, "kd kh kw c o"]) -> Float[Array, "n p q r o"]:
    """Transposed convolution whose stride equals its kernel, without bias: output [N, kd D, kh H, kw W, O].

    Such windows do not overlap, so it is one matrix product and an interleaving; XLA's own transposed
    convolution is slow on CPU and GPU alike. `kernel[i, j, k]` makes the output voxels at offset (i, j, k).
    """
    n, d, h, w, _ = x.shape
    kd, kh, kw, _, features = kernel.shape
    y = jnp.einsum("ndhwc,xyzco->ndxhywzo", x, kernel)
    return y.reshape(n, d * kd, h * kh, w * kw, features)


def average_pool3d(x: Float[Array, "n d h w c"], stride: Shape3) -> Float[Array, "n p q r c"]:
    """Mean over windows whose size is their stride; sizes of `x` are multiples of it. Sums are float32."""
    n, d, h, w, c = x.shape
    windows = x.reshape(n, d // stride[0], stride[0], h // stride[1], stride[1], w // stride[2], stride[2], c)
    return windows.mean((2, 4, 6), dtype=jnp.float32).astype(x.dtype)


def leaky_relu(x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    """LeakyReLU as in PyTorch: at zero the gradient is that of the negative side."""
    return jnp.where(x > 0, x, NEGATIVE_SLOPE * x)


def instance_norm_plain(
    x: Float[Array, "n d h w c"], scale: Float[Array, " c"], bias: Float[Array, " c"]
) -> Float[Array, "n d h w c"]:
    """InstanceNorm over voxels by definition, in float32."""
    x32 = x.astype(jnp.float32)
    mean = x32.mean((1, 2, 3), keepdims=True)
    variance = jnp.square(x32 - mean).mean((1, 2, 3), keepdims=True)
    return ((x32 - mean) * lax.rsqrt(variance + NORM_EPSILON) * scale + bias).astype(x.dtype)


def instance_norm(
    x: Float[Array, "n d h w c"], scale: Float[Array, " c"], bias: Float[Array, " c"]
) -> Float[Array, "n d h w c"]:
    """InstanceNorm over voxels. Statistics and arithmetic are float32 whatever the precision of `x`."""
    return _norm(x, scale, bias, activate=False)


def instance_norm_leaky_relu(
    x: Float[Array, "n d h w c"], scale: Float[Array, " c"], bias: Float[Array, " c"]
) -> Float[Array, "n d h w c"]:
    """InstanceNorm, then LeakyReLU, in float32 up to the end."""
    return _norm(x, scale, bias, activate=True)


def _norm(
    x: Float[Array, "n d h w c"], scale: Float[Array, " c"], bias: Float[Array, " c"], *, activate: bool
) -> Float[Array, "n d h w c"]:
    def by_xla(x: Array, scale: Array, bias: Array) -> Array:
        y = _normalise(x, scale, bias)
        return (leaky_relu(y) if activate else y).astype(x.dtype)

    if not _compiled(x, x.shape[-1]):
        return by_xla(x, scale, bias)
    slope = NEGATIVE_SLOPE if activate else 1.0
    return lax.platform_dependent(
        x,
        scale,
        bias,
        cpu=lambda x, scale, bias: native.instance_norm(x, scale, bias, NORM_EPSILON, slope),
        default=by_xla,
    )


def _normalise(
    x: Float[Array, "n d h w c"], scale: Float[Array, " c"], bias: Float[Array, " c"]
) -> Float[Array, "n d h w c"]:
    """Normalised and scaled, float32, with sums taken over (H, W), then D, which XLA vectorises on CPU.

    The variance is taken around the mean: the one-pass form E[x²] − E[x]² loses it to cancellation where a
    channel is nearly constant.
    """
    x32 = x.astype(jnp.float32)
    voxels = x.shape[1] * x.shape[2] * x.shape[3]
    mean = _spread(x32.sum((2, 3)).sum(1) / voxels)
    centred = x32 - mean
    variance = jnp.square(centred).sum((2, 3)).sum(1) / voxels
    return centred * _spread(lax.rsqrt(variance + NORM_EPSILON) * scale) + bias


def _spread(x: Float[Array, "n c"]) -> Float[Array, "n 1 1 1 c"]:
    return x[:, None, None, None, :]
