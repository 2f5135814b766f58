"""Fine stages laid out for the lanes of a TPU: neighbours along the last spatial axis become channels.

A TPU computes on 128 channels at a time and pads fewer channels to 128, also in memory; the finest stages of a U-Net
have 32 and 64. Folded by f, an array [N, D, H, W, C] is [N, D, H, W/f, f·C], position before channel, which is the same
sequence of numbers. A kernel is folded to match: between the positions of two neighbouring blocks it holds the taps of
the original, and zeros where the original does not reach. Except for the zeros, sums are those of the plain operators
in `operators`. Parameters stay as they are.
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from data_pipeline.conventions import Shape3
from kd_jax.ops.operators import conv3d, up_conv3d

LANES = 128
"""Channels that a TPU computes at a time."""


def choose_folds(features: Sequence[int], strides: Sequence[Shape3], width: int, most: int) -> tuple[int, ...]:
    """How many neighbours each stage folds: a power of two that fills the lanes, divides its width, is at most `most`.

    Args:
      features: channels of each stage.
      strides: stride into each stage.
      width: voxels along the last axis, at full resolution.
      most: 1 folds nowhere.
    """
    folds = []
    for channels, stride in zip(features, strides, strict=True):
        width //= stride[2]
        fold = 1
        while 2 * fold <= most and 2 * fold * channels <= LANES and width % (2 * fold) == 0:
            fold *= 2
        folds.append(fold)
    return tuple(folds)


def refold(x: Float[Array, "n d h _w _c"], old: int, new: int) -> Float[Array, "n d h _v _b"]:
    """The same array, folded by `new` instead of `old`; 1 is the plain layout."""
    n, d, h, w, c = x.shape
    return x if old == new else x.reshape(n, d, h, w * old // new, c * new // old)


def conv3d_folded(
    x: Float[Array, "n d h _w _c"], kernel: Float[Array, "kd kh kw c o"], stride: Shape3, fold: int, out_fold: int
) -> Float[Array, "n p q _r _o"]:
    """`conv3d` of an array folded by `fold`, to one folded by `out_fold`; its width is a multiple of both strides."""
    step = stride[2] * out_fold  # voxels between blocks of the output
    x, fold = refold(x, fold, math.gcd(fold, step)), math.gcd(fold, step)  # so that a block of ours begins at each
    reach = kernel.shape[2] // 2
    first, last = -(-reach // fold), (stride[2] * (out_fold - 1) + reach) // fold
    folded = _fold_kernel(kernel, stride[2], fold, out_fold, first, first + last + 1)
    strides = (*stride[:2], step // fold)
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]] + [(first, last - step // fold + 1)]

    def elsewhere(x: Array, folded: Array) -> Array:
        if fold == out_fold == 1:
            return conv3d(x, folded, stride)
        return lax.conv_general_dilated(x, folded, strides, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))

    on_tpu = functools.partial(_convolve_whole, strides=strides, padding=padding)
    return lax.platform_dependent(x, folded, tpu=on_tpu, default=elsewhere)


def _convolve_whole(
    x: Float[Array, "n d h w c"],
    kernel: Float[Array, "kd kh kw c o"],
    strides: Shape3,
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "n p q r o"]:
    """XLA's convolution with a fourth spatial axis of one voxel after the three.

    For a small batch, XLA's TPU compiler cuts the last spatial axis into eight pieces and treats them as cases
    (`SpaceToBatchConverter`). The copies of their overlaps cost a 3-D network more than ten times its traffic. The
    compiler does not cut an axis of one voxel.
    """
    y = lax.conv_general_dilated(
        x[..., None, :],
        kernel[..., None, :, :],
        (*strides, 1),
        [*padding, (0, 0)],
        dimension_numbers=("NDHWXC", "DHWXIO", "NDHWXC"),
    )
    return y[..., 0, :]


def _fold_kernel(
    kernel: Float[Array, "kd kh kw c o"], stride: int, fold: int, out_fold: int, first: int, blocks: int
) -> Float[Array, "kd kh b _c _o"]:
    """The kernel between blocks: `first` of its `blocks` lie before the output's own."""
    kd, kh, kw, channels, features = kernel.shape
    placed = []
    for position in range(out_fold):
        before = fold * first + stride * position - kw // 2
        after = fold * blocks - before - kw
        placed.append(jnp.pad(kernel, ((0, 0), (0, 0), (before, after), (0, 0), (0, 0))))
    return jnp.stack(placed, axis=-2).reshape(kd, kh, blocks, fold * channels, out_fold * features)


def up_conv3d_folded(
    x: Float[Array, "n d h _w _c"], kernel: Float[Array, "kd kh kw c o"], fold: int, out_fold: int
) -> Float[Array, "n p q _r _o"]:
    """`up_conv3d` of an array folded by `fold`, to one folded by `out_fold`."""
    if fold == out_fold == 1:
        return up_conv3d(x, kernel)
    n, d, h, w, _ = x.shape
    kd, kh, kw, channels, features = kernel.shape
    natural = fold * kw  # each block becomes one block
    # [fold, c] to [kd, kh, fold, kw, o], a position to its own ones.
    own = jnp.eye(fold, dtype=kernel.dtype)[:, None, None, None, :, None, None]
    spread = own * jnp.transpose(kernel, (3, 0, 1, 2, 4))[None, :, :, :, None, :, :]
    spread = spread.reshape(fold * channels, kd, kh, natural * features)
    y = jnp.einsum("ndhwc,cxyo->ndxhywo", x, spread).reshape(n, d * kd, h * kh, w, natural * features)
    return refold(y, natural, out_fold)


def head_folded(x: Float[Array, "n d h _w _c"], kernel: Float[Array, "c k"], fold: int) -> Float[Array, "n d h w k"]:
    """A 1×1×1 convolution of a folded array to a plain one, float32."""
    folded = kernel if fold == 1 else jnp.kron(jnp.eye(fold, dtype=kernel.dtype), kernel)
    return refold(jnp.matmul(x, folded, preferred_element_type=jnp.float32), fold, 1)


def conv3d_of_two(
    first: Float[Array, "n d h _w _c"],
    second: Float[Array, "n d h _w _b"],
    kernel: Float[Array, "kd kh kw c o"],
    fold: int,
) -> Float[Array, "n d h _w _o"]:
    """`conv3d` of two arrays side by side in channels, stride 1.

    Folded, channels of the two would alternate by position; the sum of two convolutions needs no such copy.
    """
    if fold == 1:
        return conv3d_folded(jnp.concatenate([first, second], axis=-1), kernel, (1, 1, 1), 1, 1)
    split = first.shape[-1] // fold
    parts = (first, kernel[..., :split, :]), (second, kernel[..., split:, :])
    a, b = (conv3d_folded(x, part, (1, 1, 1), fold, fold) for x, part in parts)
    return a + b
