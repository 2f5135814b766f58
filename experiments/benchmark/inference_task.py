"""The case that all sides segment, without JAX or PyTorch: its size, its network, its images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32

from data_pipeline.conventions import CLASSES, Modality, Shape3
from experiments.benchmark.workload import BRATS_SHAPE
from kd_jax.config.network import NetworkConfig

OUTPUTS = len(CLASSES)
WEIGHTS_FILE = "weights.npz"
EVERY = 4
"""One voxel in this many is compared along each axis: enough to see differences, and quick."""


@dataclass(frozen=True)
class Task:
    """A case and what is applied to it.

    Attributes:
      shape: voxels of the case.
      patch: of a window.
      modalities: what the network sees.
      features: of a U-Net with two convolutions per stage, as nnU-Net plans it; of one stage is a single convolution
        with norm, LeakyReLU and head; of none is a head alone, which leaves the work around a network.
      mirror: axes of test-time mirroring.
    """

    shape: Shape3
    patch: Shape3
    modalities: tuple[Modality, ...]
    features: tuple[int, ...] = ()
    mirror: tuple[int, ...] = ()

    @property
    def is_unet(self) -> bool:
        """Whether it has more than one stage."""
        return len(self.features) > 1

    @property
    def network(self) -> NetworkConfig:
        """The U-Net."""
        return NetworkConfig(self.modalities, self.features, convs_encoder=(2,), convs_decoder=(2,))


TEACHER: tuple[Modality, ...] = ("t1", "t1ce", "t2", "flair")
STUDENT: tuple[Modality, ...] = ("flair", "t1ce")
NNUNET = 32, 64, 128, 256, 320, 320
"""Features of nnU-Net's plan for BraTS."""
PATCH: Shape3 = (128, 128, 128)
HALF_PATCH: Shape3 = (64, 64, 64)

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "teacher": Task(BRATS_SHAPE, PATCH, TEACHER, NNUNET),
        "student": Task(BRATS_SHAPE, PATCH, STUDENT, NNUNET),
        "teacher, mirrored": Task((96, 96, 64), HALF_PATCH, TEACHER, NNUNET, (0, 1, 2)),
        "student, mirrored": Task((96, 96, 64), HALF_PATCH, STUDENT, NNUNET, (0, 1, 2)),
        "one convolution": Task(BRATS_SHAPE, PATCH, STUDENT, NNUNET[:1]),
        "head": Task(BRATS_SHAPE, PATCH, STUDENT),
        "head, mirrored": Task(BRATS_SHAPE, PATCH, STUDENT, (), (0, 1, 2)),
        "small": Task((20, 16, 16), (16, 16, 16), STUDENT, (4, 6), (0, 1, 2)),
        "small, one convolution": Task((20, 16, 16), (16, 16, 16), STUDENT, (4,)),
        "small, head": Task((20, 16, 16), (16, 16, 16), STUDENT),
    }
)
"""On a CPU a whole case takes minutes, so eight mirrorings are measured on four windows of an eighth the size."""


def draw_images(shape: Sequence[int], channels: int, seed: int) -> Float32[np.ndarray, "d h w c"]:
    """Noise, which costs what images cost."""
    return np.random.default_rng(seed).standard_normal((*shape, channels), np.float32)


def draw_layers(task: Task, seed: int) -> list[Float32[np.ndarray, "k k k c o"]]:
    """Kernels of a network that is no U-Net: of its convolution, where it has one, and of its head."""
    rng, channels, kernels = np.random.default_rng(seed), len(task.modalities), []
    for size, outputs in [*((3, features) for features in task.features), (1, OUTPUTS)]:
        shape = size, size, size, channels, outputs
        kernels.append(rng.standard_normal(shape, np.float32) / np.float32(size**3 * channels) ** 0.5)
        channels = outputs
    return kernels


def keep(folder: Path, side: str, logits: Float32[np.ndarray, "d h w k"]) -> float:
    """Writes down every few voxels of a side's logits, [D, H, W, K], and returns the mean size of what it wrote."""
    few = np.ascontiguousarray(logits[::EVERY, ::EVERY, ::EVERY], np.float32)
    np.save(folder / f"{side}.npy", few)
    return float(np.abs(few).mean())
