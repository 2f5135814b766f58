"""The deep-supervised segmentation loss of one network, and the targets of its levels.

Source: nnU-Net's `DeepSupervisionWrapper` and `MultipleOutputLoss2`, around its compound losses.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Shaped

from data_pipeline.conventions import Shape3
from kd_jax.config.schema import LossConfig
from kd_jax.models.outputs import region_truth
from kd_jax.objective.segmentation import (
    binary_cross_entropy,
    cross_entropy,
    deep_supervision_weights,
    labels_at,
    soft_dice_loss,
)

Measurements = dict[str, Float[Array, ""]]
Targets = Mapping[tuple[int, ...], Shaped[Array, "n _d _h _w *k"]]
"""Target of each level by its shape (D, H, W): classes, or membership of each region."""


def make_targets(
    labels: Integer[Array | np.ndarray, "n d h w"], strides: Iterable[Shape3], config: LossConfig
) -> Targets:
    """Targets for all networks of a run, made once per batch.

    Args:
      labels: internal classes at full resolution.
      strides: strides of every level of every network (`Network.level_strides`).
      config: with `deep_supervision` off, only full resolution is needed.
    """
    shapes = {tuple(size // s for size, s in zip(labels.shape[1:], stride, strict=True)) for stride in strides}
    return _targets_at(labels, shapes if config.deep_supervision else {labels.shape[1:]}, config)


def _targets_at(
    labels: Integer[Array | np.ndarray, "n d h w"], shapes: Iterable[tuple[int, ...]], config: LossConfig
) -> Targets:
    prepare = region_truth if config.segmentation == "dice_bce" else lambda at_level: at_level
    return {shape: prepare(labels_at(labels, shape)) for shape in sorted(shapes)}


def segmentation_loss(
    logits: Sequence[Float[Array, "n _d _h _w k"]],
    labels: Integer[Array | np.ndarray, "n d h w"],
    config: LossConfig,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Measurements]:
    """The deep-supervised segmentation loss of one network against labels, as nnU-Net weights its levels.

    Args:
      logits: of every decoder level, finest first (`NetworkOutput.logits`); sizes divide those of the labels.
      labels: internal classes at full resolution: 0 background, 1 NCR, 2 ED, 3 ET.
      config: kind of loss, `kd_jax.Config().loss`.
      axis_name: mapped axis that the batch is spread over, or None; only `batch_dice` uses it.

    Returns:
      The loss; and by name, the loss and its parts ("ce", "dice", "bce").

    Examples:
      >>> import jax.numpy as jnp, kd_jax
      >>> logits = [jnp.zeros((2, 16, 16, 16, 4)), jnp.zeros((2, 8, 8, 8, 4))]
      >>> loss, parts = kd_jax.segmentation_loss(logits, jnp.ones((2, 16, 16, 16), int), kd_jax.Config().loss)
      >>> sorted(parts)
      ['ce', 'dice', 'loss']
    """
    targets = _targets_at(labels, {level.shape[1:4] for level in logits}, config)
    return supervised_loss(logits, targets, config, axis_name)


def supervised_loss(
    logits: Sequence[Float[Array, "n _d _h _w k"]], targets: Targets, config: LossConfig, axis_name: str | None
) -> tuple[Float[Array, ""], Measurements]:
    """Weighted sum over decoder levels, finest first, and its terms.

    `axis_name` is the mapped axis that the batch is spread over; only `batch_dice` uses it.
    """
    levels = logits if config.deep_supervision else logits[:1]
    weights = deep_supervision_weights(len(levels))
    measurements = {name: jnp.zeros(()) for name in config.segmentation.split("_")}
    for weight, level in zip(weights, levels, strict=True):
        if weight > 0:
            for name, value in _terms(level, targets[level.shape[1:4]], config, axis_name).items():
                measurements[name] += weight * value
    total = sum(measurements.values(), jnp.zeros(()))
    return total, {**measurements, "loss": total}


def _terms(
    logits: Float[Array, "n d h w k"], target: Shaped[Array, "n d h w *k"], config: LossConfig, axis_name: str | None
) -> Measurements:
    """The terms of one decoder level; Dice leaves out the background, which regions do not have."""
    if config.segmentation == "ce":
        return {"ce": cross_entropy(logits, target)}
    dice = partial(soft_dice_loss, batch_dice=config.batch_dice, axis_name=axis_name)
    if config.segmentation == "dice_bce":
        return {"dice": dice(jax.nn.sigmoid(logits), target), "bce": binary_cross_entropy(logits, target)}
    one_hot = jax.nn.one_hot(target, logits.shape[-1])
    return {"dice": dice(jax.nn.softmax(logits)[..., 1:], one_hot[..., 1:]), "ce": cross_entropy(logits, target)}
