"""The joint training step that both sides take: its configuration and its batch, without JAX or PyTorch."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from data_pipeline.conventions import CLASSES, MODALITIES, Shape3
from kd_jax.config.schema import Config, DataConfig, OptimiserConfig, StudentConfig, TeacherConfig


@dataclass(frozen=True)
class Size:
    """Networks and batch of the step; both networks have the same stages.

    Attributes:
      features: channels of each stage.
      patch: voxels.
      batch: patches on a device; each network sees all of them.
    """

    features: tuple[int, ...]
    patch: Shape3
    batch: int

    def __str__(self) -> str:
        return f"{len(self.features)} stages, {self.patch[0]}³, batch {self.batch}"


SIZES = {
    "small": Size((4, 6, 8), (16, 16, 16), 1),
    "cpu": Size((32, 64, 128, 256, 320), (64, 64, 64), 1),
    "accelerator": Size((32, 64, 128, 256, 320, 320), (128, 128, 128), 2),
}
"""The last is nnU-Net's plan for BraTS; a CPU gets one stage less and patches of an eighth the volume."""


def make_config(size: str, precision: str, seed: int) -> Config:
    """nnU-Net's networks, losses and optimiser, and the Barlow Twins term over bottleneck voxels.

    Args:
      size: one of `SIZES`.
      precision: float32 or bfloat16, of activations.
      seed: of the first weights.
    """
    chosen = SIZES[size]
    network: dict[str, Any] = {"features": chosen.features, "convs_encoder": (2,), "convs_decoder": (2,)}
    config = Config(
        seed=seed,
        data=DataConfig(patch=chosen.patch),
        teacher=TeacherConfig(**network),
        student=StudentConfig(**network),
        optimiser=OptimiserConfig(learning_rate=0.01, momentum=0.99),
    )
    return replace(config, train=replace(config.train, batch=chosen.batch, precision=precision))  # type: ignore[arg-type]


def draw_batch(config: Config, seed: int) -> tuple[Float32[np.ndarray, "n d h w 4"], UInt8[np.ndarray, "n d h w"]]:
    """A batch whose labels are in blocks, so that every class is on every decoder level."""
    rng = np.random.default_rng(seed)
    shape = config.train.batch, *config.data.patch
    image = rng.standard_normal((*shape, len(MODALITIES)), np.float32)
    blocks = rng.integers(0, len(CLASSES), (shape[0], *(size // 8 for size in shape[1:])), np.uint8)
    return image, blocks.repeat(8, 1).repeat(8, 2).repeat(8, 3)
