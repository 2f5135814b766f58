"""The compiled operators as functions with gradients. Float32, on a CPU, where `library.available()`.

Arrays are [N, D, H, W, C], kernels [kd, kh, kw, C, O]. Channels and features are multiples of `library.lanes()`, but
for the input of a convolution, which may have any number.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_pipeline.conventions import Shape3
from kd_jax.native import library


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv3d(
    x: Float[Array, "n d h w c"], kernel: Float[Array, "kd kh kw c o"], stride: Shape3, winograd: bool = True
) -> Float[Array, "n p q r o"]:
    """3-D convolution padded by half the (odd) kernel, as in PyTorch.

    With `winograd`, 3×3 taps in the plane at stride 1 go through Winograd's F(4×4, 3×3), 4 times fewer products; its
    rounding is some ten times that of the plain sum.
    """
    size = (x.shape[0], *((n - 1) // s + 1 for n, s in zip(x.shape[1:4], stride, strict=True)), kernel.shape[-1])
    return _call("kd_convolution", size, x, kernel, **_convolution(stride, winograd))


def _conv3d_forward(x: Array, kernel: Array, stride: Shape3, winograd: bool) -> tuple[Array, tuple[Array, Array]]:
    return conv3d(x, kernel, stride, winograd), (x, kernel)


def _conv3d_backward(stride: Shape3, winograd: bool, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    settings = _convolution(stride, winograd)
    padded = kernel
    if spare := -x.shape[-1] % library.lanes():
        padded = jnp.pad(kernel, [(0, 0)] * 3 + [(0, spare), (0, 0)])
    dx = _call("kd_input_gradient", (*x.shape[:4], padded.shape[3]), dy, padded, **settings)[..., : x.shape[-1]]
    return dx, _call("kd_kernel_gradient", kernel.shape, x, dy, **settings)


conv3d.defvjp(_conv3d_forward, _conv3d_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def instance_norm(
    x: Float[Array, "n d h w c"], scale: Float[Array, " c"], bias: Float[Array, " c"], epsilon: float, slope: float
) -> Float[Array, "n d h w c"]:
    """InstanceNorm over voxels, then LeakyReLU of `slope`; 1 leaves it out."""
    return _norm(x, scale, bias, epsilon, slope)[0]


def _norm(x: Array, scale: Array, bias: Array, epsilon: float, slope: float) -> tuple[Array, ...]:
    moments = jax.ShapeDtypeStruct((x.shape[0], x.shape[-1]), jnp.float32)
    shapes = [jax.ShapeDtypeStruct(x.shape, jnp.float32), moments, moments]
    call = jax.ffi.ffi_call("kd_norm", shapes)
    return tuple(call(x, scale, bias, epsilon=np.float32(epsilon), slope=np.float32(slope)))


def _norm_forward(x: Array, scale: Array, bias: Array, epsilon: float, slope: float) -> tuple[Array, tuple[Array, ...]]:
    y, mean, inverse = _norm(x, scale, bias, epsilon, slope)
    return y, (x, scale, bias, mean, inverse)


def _norm_backward(epsilon: float, slope: float, saved: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    shapes = [jax.ShapeDtypeStruct(saved[i].shape, jnp.float32) for i in range(3)]
    return tuple(jax.ffi.ffi_call("kd_norm_gradient", shapes)(*saved, dy, slope=np.float32(slope)))


instance_norm.defvjp(_norm_forward, _norm_backward)


def _call(target: str, shape: tuple[int, ...], *arrays: Array, **settings: Any) -> Array:
    return jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, jnp.float32))(*arrays, **settings)


def _convolution(stride: Shape3, winograd: bool) -> dict[str, Any]:
    return {"stride": np.array(stride, np.int64), "winograd": winograd}
