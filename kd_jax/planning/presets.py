"""nnU-Net's planners: the values in which they differ. Light, because the command's help lists them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Preset = Literal["plain", "M", "L", "XL"]
"""nnU-Net's own network, and its residual-encoder networks of three sizes (ResEncM, ResEncL, ResEncXL)."""


@dataclass(frozen=True)
class Rules:
    """The values in which nnU-Net's planners differ.

    Attributes:
      planner: nnU-Net's name of the planner.
      encoder: as `NetworkConfig.encoder`.
      convs_encoder: convolutions, or residual blocks, by stage, for the deepest network that can be planned.
      convs_decoder: convolutions of every decoder stage.
      memory: GB of accelerator memory planned for by default.
      feature_maps: `feature_map_size` that fills `memory` at batch 2.
      largest_share: most of the data set's voxels that a batch may hold, lest it overfit.
    """

    planner: str
    encoder: Literal["plain", "residual"]
    convs_encoder: tuple[int, ...]
    convs_decoder: int
    memory: float
    feature_maps: float
    largest_share: float


_RESIDUAL_BLOCKS = (1, 3, 4, *(6,) * 10)
PRESETS: Mapping[Preset, Rules] = MappingProxyType(
    {
        "plain": Rules("ExperimentPlanner", "plain", (2,) * 13, 2, 8, 560e6, 0.05),
        "M": Rules("nnUNetPlannerResEncM", "residual", _RESIDUAL_BLOCKS, 1, 8, 680e6, 1),
        "L": Rules("nnUNetPlannerResEncL", "residual", _RESIDUAL_BLOCKS, 1, 24, 2100e6, 1),
        "XL": Rules("nnUNetPlannerResEncXL", "residual", _RESIDUAL_BLOCKS, 1, 40, 3600e6, 1),
    }
)
NETWORKS = 2
"""Teacher and student."""


def default_memory(preset: Preset, networks: int = NETWORKS) -> float:
    """GB of accelerator memory that give every network as much as nnU-Net plans for by default."""
    return PRESETS[preset].memory * networks
