"""Compares every loss with nnU-Net's own class, empty classes and extreme logits included."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float, Float32
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss

from data_pipeline.conventions import REGION_CLASSES
from experiments.parity.check import GOLDEN, Check
from experiments.parity.loss_draws import LEVELS, SCALES, Labels, Logits, channels_of, label_cases, logits_of, losses
from kd_jax.config.schema import LossConfig
from kd_jax.objective.segmentation import deep_supervision_weights, labels_at
from kd_jax.objective.supervised import segmentation_loss

FILE = GOLDEN / "losses.npz"
BOUND = 1e-5


def checks() -> Iterator[Check]:
    """Values and gradients of all losses, one level and deeply supervised."""
    golden: dict[str, Any] = {}
    for name, config in losses().items():
        worst = slope = 0.0
        for case, labels in label_cases().items():
            for scale in SCALES:
                value, gradient = _theirs([logits_of(channels_of(config), scale)], labels, config)
                ours, ours_gradient = _ours([logits_of(channels_of(config), scale)], labels, config)
                golden[f"{name}/{case}/{scale:g}"] = value
                worst = max(worst, abs(ours - value) / max(1, abs(value)))
                slope = max(slope, _largest_difference(ours_gradient, gradient))
        yield Check(f"{name}: value", worst, BOUND, "abs difference, relative above 1")
        yield Check(f"{name}: gradient", slope, BOUND, "difference, relative to the largest entry")
        levels = [logits_of(channels_of(config), 1.0, shape) for shape in LEVELS]
        value, gradient = _theirs(levels, label_cases()["all classes"], config)
        ours, ours_gradient = _ours(levels, label_cases()["all classes"], config)
        golden[f"{name}/deep"] = value
        yield Check(f"{name}: deep supervision, value", abs(ours - value), BOUND)
        yield Check(
            f"{name}: deep supervision, gradient",
            _largest_difference(ours_gradient, gradient),
            BOUND,
            "difference, relative to the largest entry",
        )
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **golden)


def _ours(
    levels: list[Logits], labels: Labels, config: LossConfig
) -> tuple[float, list[Float32[np.ndarray, "n _d _h _w k"]]]:
    def loss(levels: list[Float[Array, "n _d _h _w k"]]) -> Float[Array, ""]:
        return segmentation_loss(levels, jnp.asarray(labels), config)[0]

    value, gradient = jax.value_and_grad(loss)([jnp.asarray(level) for level in levels])
    return float(value), [np.asarray(g) for g in gradient]


def _theirs(
    levels: list[Logits], labels: Labels, config: LossConfig
) -> tuple[float, list[Float32[np.ndarray, "n _d _h _w k"]]]:
    """nnU-Net's value plus 1 (its Dice is returned negative), and its gradient."""
    logits = [torch.from_numpy(np.moveaxis(level, -1, 1).copy()).requires_grad_() for level in levels]
    targets = [_target(np.asarray(labels_at(jnp.asarray(labels), level.shape[1:4])), config) for level in levels]
    value = DeepSupervisionWrapper(_loss(config), deep_supervision_weights(len(levels)))(logits, targets)
    value.backward()
    gradients = [
        np.zeros_like(level) if tensor.grad is None else np.moveaxis(tensor.grad.numpy(), 1, -1)
        for level, tensor in zip(levels, logits, strict=True)
    ]
    return value.item() + ("dice" in config.segmentation), gradients


def _loss(config: LossConfig) -> Any:
    """As `nnUNetTrainer._build_loss` makes it, on one device."""
    dice = {"batch_dice": config.batch_dice, "smooth": 1e-5, "ddp": False}
    if config.segmentation == "dice_bce":
        return DC_and_BCE_loss({}, {**dice, "do_bg": True}, dice_class=MemoryEfficientSoftDiceLoss)
    if config.segmentation == "dice_ce":
        return DC_and_CE_loss({**dice, "do_bg": False}, {}, dice_class=MemoryEfficientSoftDiceLoss)
    return RobustCrossEntropyLoss()


def _target(labels: Labels, config: LossConfig) -> torch.Tensor:
    if config.segmentation == "dice_bce":
        regions = [np.isin(labels, classes) for classes in REGION_CLASSES.values()]
        return torch.from_numpy(np.stack(regions, axis=1))
    return torch.from_numpy(labels[:, None].astype(np.int64))


def _largest_difference(ours: list[Logits], theirs: list[Logits]) -> float:
    scale = max(float(np.abs(g).max()) for g in theirs)
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)) / max(scale, 1e-12)
