"""Inputs for the comparison of losses, drawn from fixed seeds, so that tests draw the same without the originals."""

import numpy as np
from jaxtyping import Float32, UInt8

from data_pipeline.conventions import CLASSES, REGION_CLASSES
from kd_jax.config.schema import LossConfig

SCALES = 1.0, 30.0
"""Scales of the logits: undecided, and as certain as a trained network."""
SHAPE = (2, 8, 6, 10)
LEVELS = ((2, 8, 6, 10), (2, 4, 3, 5), (2, 2, 3, 5))
"""Shapes of the decoder levels of the deep-supervised case, the last stride anisotropic."""

Labels = UInt8[np.ndarray, "n d h w"]
Logits = Float32[np.ndarray, "n d h w k"]


def label_cases() -> dict[str, Labels]:
    """Labels with every class, with classes absent from one case or from both, and of one class alone."""
    rng = np.random.default_rng(0)
    every = rng.integers(0, len(CLASSES), SHAPE).astype(np.uint8)
    absent = every.copy()
    absent[0][absent[0] == 3] = 0
    absent[absent == 1] = 2
    return {
        "all classes": every,
        "absent classes": absent,
        "background alone": np.zeros_like(every),
        "enhancing tumour alone": np.full_like(every, 3),
    }


def logits_of(channels: int, scale: float, shape: tuple[int, ...] = SHAPE) -> Logits:
    """Logits drawn from a fixed seed."""
    return (scale * np.random.default_rng(channels).standard_normal((*shape, channels))).astype(np.float32)


def losses() -> dict[str, LossConfig]:
    """Every loss a run can have, by name."""
    return {
        "ce": LossConfig(segmentation="ce"),
        "dice_ce": LossConfig(segmentation="dice_ce"),
        "dice_ce, batch Dice": LossConfig(segmentation="dice_ce", batch_dice=True),
        "dice_bce": LossConfig(segmentation="dice_bce"),
        "dice_bce, batch Dice": LossConfig(segmentation="dice_bce", batch_dice=True),
    }


def channels_of(config: LossConfig) -> int:
    """Channels of the logits a loss takes."""
    return len(REGION_CLASSES) if config.segmentation == "dice_bce" else len(CLASSES)
