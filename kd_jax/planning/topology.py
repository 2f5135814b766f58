"""Strides and kernels of a U-Net from spacing and patch, and the size of its feature maps: nnU-Net v2's rules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.conventions import Shape3
from kd_jax.config.network import NetworkConfig

MIN_EDGE = 4
"""Edge of the bottleneck, in voxels, below which no axis is pooled (nnU-Net: UNet_featuremap_min_edge_length)."""


@dataclass(frozen=True)
class Topology:
    """How a patch is pooled.

    Attributes:
      patch: voxels per axis, a multiple of the total stride.
      strides: into each stage.
      kernels: of each stage.
    """

    patch: Shape3
    strides: tuple[Shape3, ...]
    kernels: tuple[Shape3, ...]

    @property
    def total_stride(self) -> Shape3:
        """Voxels of the patch per voxel of the bottleneck, per axis."""
        x, y, z = (math.prod(stride[axis] for stride in self.strides) for axis in range(3))
        return x, y, z


def pool(spacing: Sequence[float], size: Sequence[float]) -> Topology:
    """Halve axes until none is long enough; finely sampled axes first (nnU-Net's network_topology.py).

    A kernel is 1 along an axis more than twice as coarse as the finest one, 3 otherwise, and 3 in the bottleneck.

    Args:
      spacing: mm per axis.
      size: wanted patch, in voxels; a median of shapes may lie between two integers. Rounded up to what is pooled.
    """
    spacing, edges = list(spacing), list(size)
    kernel, strides, kernels = [1, 1, 1], [(1, 1, 1)], []
    while axes := _axes_to_pool(spacing, edges):
        kernel = [3 if k == 3 or s / min(spacing) < 2 else 1 for k, s in zip(kernel, spacing, strict=True)]
        kernels.append(_triple(kernel))
        strides.append(_triple([2 if axis in axes else 1 for axis in range(3)]))
        for axis in axes:
            spacing[axis] *= 2
            edges[axis] = math.ceil(edges[axis] / 2)
    kernels.append((3, 3, 3))
    pooled = Topology((1, 1, 1), tuple(strides), tuple(kernels))
    patch = [math.ceil(n / total) * total for n, total in zip(size, pooled.total_stride, strict=True)]
    return Topology(_triple(patch), pooled.strides, pooled.kernels)


def _axes_to_pool(spacing: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Axes long enough to be halved and less than twice as coarse as the finest of these; one alone must be longer."""
    long = [axis for axis in range(3) if edges[axis] >= 2 * MIN_EDGE]
    fine = [axis for axis in long if spacing[axis] / min(spacing[a] for a in long) < 2]
    return [] if len(fine) == 1 and edges[fine[0]] < 3 * MIN_EDGE else fine


def _triple(values: Sequence[int]) -> Shape3:
    x, y, z = values
    return x, y, z


def feature_map_size(network: NetworkConfig, patch: Shape3, outputs: int) -> int:
    """Values in all feature maps that the convolutions of a network write for one patch.

    nnU-Net's measure of memory: compute_conv_feature_map_size of dynamic-network-architectures' PlainConvUNet and
    ResidualEncoderUNet, built without deep supervision, as nnU-Net does for planning.

    Args:
      network: the network.
      patch: voxels per axis, a multiple of its total stride.
      outputs: channels of the logits.
    """
    maps, voxels = [], math.prod(patch)  # values in one feature map of every channel, by stage
    for features, stride in zip(network.features, network.stage_strides, strict=True):
        voxels //= math.prod(stride)
        maps.append(features * voxels)
    # Every decoder stage also has a transposed convolution.
    decoder = sum((count + 1) * size for count, size in zip(network.stage_convs_decoder, maps[:-1], strict=True))
    logits = outputs * math.prod(patch)
    if network.encoder == "plain":
        encoder = sum(count * size for count, size in zip(network.stage_convs_encoder, maps, strict=True))
    else:
        # A stem; two convolutions per block, and one more where the skip path must change shape.
        changes = [
            features != before or set(stride) != {1}
            for before, features, stride in zip(
                (network.features[0], *network.features), network.features, network.stage_strides, strict=False
            )
        ]
        counts = [2 * blocks + change for blocks, change in zip(network.stage_convs_encoder, changes, strict=True)]
        encoder = maps[0] + sum(count * size for count, size in zip(counts, maps, strict=True))
    return encoder + decoder + logits
