"""Losses as pure functions: arrays in, scalars out. Sums are float32.

Logits are [N, D, H, W, K], labels [N, D, H, W] integer classes, latents [samples, features].
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer, Shaped

from kd_jax.config.schema import MIN_SAMPLES

BARLOW_EPSILON = 1e-5
"""Added to the variance: BatchNorm's default in facebookresearch/barlowtwins `main.py`."""
DICE_SMOOTHING = 1e-5
"""nnU-Net's smoothing of numerator and denominator."""


def cross_entropy(logits: Float[Array, "n d h w k"], labels: Integer[Array, "n d h w"]) -> Float[Array, ""]:
    """Mean over all voxels of −log softmax(logits)[label]."""
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
      probabilities: of the channels that count: without background where there is one.
      truth: 0 or 1 (False or True) of each channel.
      batch_dice: the whole batch is one volume, over all devices of `axis_name`.
      axis_name: mapped axis the batch is spread over, or None.
    """
    probabilities, truth = probabilities.astype(jnp.float32), truth.astype(jnp.float32)
    axes = (1, 2, 3)
    overlap = jnp.sum(probabilities * truth, axes)
    size = jnp.sum(probabilities, axes) + jnp.sum(truth, axes)
    if batch_dice:
        overlap, size = _sum_over(overlap.sum(0), axis_name), _sum_over(size.sum(0), axis_name)
    return 1 - jnp.mean((2 * overlap + DICE_SMOOTHING) / (size + DICE_SMOOTHING))


def deep_supervision_weights(levels: int) -> tuple[float, ...]:
    """nnU-Net's weights, finest level first: 1/2^i, the coarsest 0, sum 1. One level alone weighs 1."""
    raw = [0.5**i for i in range(levels)]
    if levels > 1:
        raw[-1] = 0.0
    return tuple(w / sum(raw) for w in raw)


def labels_at(labels: Integer[Array, "n d h w"], shape: Sequence[int]) -> Integer[Array, "n p q r"]:
    """Labels on the grid of a coarser level of `shape` (P, Q, R): the voxel nearest to each cell's centre.

    Same choice as PyTorch's `nearest-exact`, which nnU-Net's deep supervision uses.
    """
    for axis, size in enumerate(shape, start=1):
        stride = labels.shape[axis] // size
        labels = lax.slice_in_dim(labels, stride // 2, None, stride, axis)
    return labels


def barlow_twins(
    teacher: Float[Array, "n f"], student: Float[Array, "n f"], axis_name: str | None = None
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Cross-correlation of two latents and its distance from the identity.

    Features are standardised over all samples of all devices (population variance), C = z_tᵀ z_s / N.
    Source: Zbontar et al. 2021, equations 1 and 2; `main.py` of facebookresearch/barlowtwins. Moments
    are summed over `axis_name`, so value and gradient do not depend on the number of devices.

    Args:
      teacher: [samples, features] on this device.
      student: the same samples and number of features.
      axis_name: mapped axis that samples are spread over, or None.

    Returns:
      Σ_i (C_ii − 1)²; Σ_{i≠j} C_ij² (to be weighted by λ); and the mean of the diagonal.

    Raises:
      ValueError: fewer than `MIN_SAMPLES` samples over all devices.
    """
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    samples = teacher.shape[0] * devices
    if samples < MIN_SAMPLES:
        raise ValueError(
            f"Barlow Twins got {samples} samples per step, needs at least {MIN_SAMPLES}: use "
            "distillation.samples = voxels, a larger train.batch or a larger data.patch"
        )
    z_t = _standardise(teacher, samples, axis_name)
    z_s = _standardise(student, samples, axis_name)
    correlation = _sum_over(jnp.matmul(z_t.T, z_s, precision=lax.Precision.HIGHEST), axis_name) / samples
    diagonal = jnp.diagonal(correlation)
    off_diagonal = jnp.sum(jnp.square(correlation - jnp.diag(diagonal)))
    return jnp.sum(jnp.square(diagonal - 1)), off_diagonal, jnp.mean(diagonal)


def _standardise(z: Float[Array, "n f"], samples: int, axis_name: str | None) -> Float[Array, "n f"]:
    z = z.astype(jnp.float32)
    centred = z - _sum_over(z.sum(0), axis_name) / samples
    variance = _sum_over(jnp.square(centred).sum(0), axis_name) / samples
    return centred * lax.rsqrt(variance + BARLOW_EPSILON)


def _sum_over(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else lax.psum(x, axis_name)
