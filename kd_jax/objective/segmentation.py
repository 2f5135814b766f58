"""Losses as pure functions: arrays in, scalars out. Sums are float32.

Logits are [N, D, H, W, K], labels [N, D, H, W] integer classes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Integer, Shaped

from kd_jax.objective.collectives import sum_over

DICE_SMOOTHING = 1e-5
"""nnU-Net's smoothing of numerator and denominator."""


def cross_entropy(logits: Float[Array, "n d h w k"], labels: Integer[Array, "n d h w"]) -> Float[Array, ""]:
    """Mean over all voxels of −log softmax(logits)[label].

    Examples:
      >>> import jax.numpy as jnp, kd_jax
      >>> labels = jnp.zeros((1, 8, 8, 8), int)
      >>> print(f"{kd_jax.cross_entropy(jnp.zeros((1, 8, 8, 8, 4)), labels):.4f}")  # log 4: every class is as likely
      1.3863
    """
    logits = logits.astype(jnp.float32)
    picked = jnp.sum(logits * jax.nn.one_hot(labels, logits.shape[-1]), axis=-1)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked)


def binary_cross_entropy(logits: Float[Array, "n d h w k"], truth: Bool[Array, "n d h w k"]) -> Float[Array, ""]:
    """Mean over all voxels and channels of the cross-entropy of sigmoid(logits) (PyTorch `BCEWithLogitsLoss`)."""
    logits = logits.astype(jnp.float32)
    return jnp.mean(jax.nn.softplus(logits) - logits * truth)


def soft_dice_loss(
    probabilities: Float[Array, "n d h w k"],
    truth: Shaped[Array, "n d h w k"],
    *,
    batch_dice: bool = False,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """One minus the soft Dice, averaged over cases and channels, or over channels alone with `batch_dice`.

    nnU-Net's `MemoryEfficientSoftDiceLoss`; it returns the negative Dice, which differs by the constant 1.

    Args:
      probabilities: channels that count: classes without the background, or regions.
      truth: 0 or 1 (False or True) for each channel.
      batch_dice: the whole batch is one volume, over all devices of `axis_name`.
      axis_name: mapped axis the batch is spread over, or None.

    Examples:
      >>> import jax.numpy as jnp, kd_jax
      >>> truth = jnp.zeros((1, 8, 8, 8, 1)).at[:, :4].set(1)
      >>> everywhere = jnp.ones((1, 8, 8, 8, 1))
      >>> print(f"{kd_jax.soft_dice_loss(everywhere, truth):.4f}")  # 1 - 2/3
      0.3333
    """
    probabilities, truth = probabilities.astype(jnp.float32), truth.astype(jnp.float32)
    axes = (1, 2, 3)
    overlap = jnp.sum(probabilities * truth, axes)
    size = jnp.sum(probabilities, axes) + jnp.sum(truth, axes)
    if batch_dice:
        overlap, size = sum_over(overlap.sum(0), axis_name), sum_over(size.sum(0), axis_name)
    return 1 - jnp.mean((2 * overlap + DICE_SMOOTHING) / (size + DICE_SMOOTHING))


def deep_supervision_weights(levels: int) -> tuple[float, ...]:
    """nnU-Net's weights, finest level first: 1/2^i, the coarsest 0, sum 1. A single level has the weight 1."""
    raw = [0.5**i for i in range(levels)]
    if levels > 1:
        raw[-1] = 0.0
    return tuple(w / sum(raw) for w in raw)


def labels_at(labels: Integer[Array | np.ndarray, "n d h w"], shape: Sequence[int]) -> Integer[Array, "n p q r"]:
    """Labels on the grid of a coarser level of `shape` (P, Q, R): the voxel nearest to each cell's centre.

    Same choice as PyTorch's `nearest-exact`, which nnU-Net's deep supervision uses.
    """
    at_level = jnp.asarray(labels)
    for axis, size in enumerate(shape, start=1):
        stride = labels.shape[axis] // size
        at_level = lax.slice_in_dim(at_level, stride // 2, None, stride, axis)
    return at_level
