"""Topologies, weights and inputs of networks drawn from seeds, the same for the originals and for ordinary tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from data_pipeline.conventions import CLASSES
from kd_jax.config.network import NetworkConfig

_ONE, _TWO, _THREE = (1, 1, 1), (2, 2, 2), (3, 3, 3)


@dataclass(frozen=True)
class Topology:
    """A network and the batch it is tried on."""

    network: NetworkConfig
    patch: tuple[int, int, int]
    batch: int = 2


PLAIN = Topology(
    NetworkConfig(
        features=(4, 6, 8),
        kernels=((1, 3, 3), _THREE, _THREE),
        strides=(_ONE, (1, 2, 2), _TWO),
        convs_encoder=(1, 2, 3),
        convs_decoder=(2, 1),
    ),
    patch=(4, 12, 16),
)
"""Anisotropic, with a number of convolutions for each stage."""
RESIDUAL = Topology(
    NetworkConfig(
        modalities=("flair",),
        encoder="residual",
        features=(4, 4, 6, 8),
        kernels=(_THREE, _THREE, (1, 3, 3), _THREE),
        strides=(_ONE, _TWO, _ONE, (1, 2, 2)),
        convs_encoder=(1, 2, 2, 1),
    ),
    patch=(4, 8, 12),
)
"""Stages that change nothing, size alone, channels alone, and both."""


def draw_state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Float32[np.ndarray, "..."]]:
    """Tensors of a PyTorch network by name, biases and norms random too, so that none goes unnoticed."""
    rng = np.random.default_rng(seed)
    return {name: _draw(rng, name, shape).astype(np.float32) for name, shape in shapes.items()}


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) > 1:
        return rng.normal(0, (shape[0] / np.prod(shape)) ** 0.5, shape)
    if name.endswith("weight"):
        return rng.uniform(0.5, 1.5, shape) * rng.choice((-1, 1), shape)
    return rng.normal(0, 0.3, shape)


def draw_image(topology: Topology, seed: int) -> Float32[np.ndarray, "n d h w c"]:
    """A batch for the network."""
    shape = (topology.batch, *topology.patch, len(topology.network.modalities))
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def draw_labels(topology: Topology, seed: int) -> UInt8[np.ndarray, "n d h w"]:
    """Classes of a batch, independent from voxel to voxel."""
    shape = (topology.batch, *topology.patch)
    return np.random.default_rng(seed).integers(0, len(CLASSES), shape).astype(np.uint8)


def summarise(tree: Mapping[str, Any]) -> Float32[np.ndarray, "tensors 2"]:
    """Norm, and product with a random direction, of every array in a tree of parameters, keys sorted."""
    rows: list[Any] = []
    for _, value in sorted(tree.items()):
        if isinstance(value, Mapping):
            rows.extend(summarise(value))
        else:
            direction = np.random.default_rng(0).standard_normal(value.shape)
            rows.append([np.linalg.norm(value), np.sum(direction * value) / direction.size**0.5])
    return np.array(rows, np.float32)
