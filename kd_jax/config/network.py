"""Settings of one network."""

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from data_pipeline.conventions import MODALITIES, Modality
from kd_jax.config.data import STRICT, PositiveInt, PositiveShape

Axis = Literal["x", "y", "z"]
AXES: tuple[Axis, ...] = ("x", "y", "z")
"""Axes of every volume, in order: towards right, anterior, superior."""


def _one_or_each(value: object) -> object:
    return (value,) if isinstance(value, int) else value


UNET = "unet"
"""Name of the default architecture."""

PerStage = Annotated[tuple[PositiveInt, ...], BeforeValidator(_one_or_each)]
"""One number for all stages, or one for each."""


@dataclass(frozen=True, config=STRICT)
class NetworkConfig:
    """One network: the modalities it sees, and its architecture.

    The settings per stage describe nnU-Net's plain or residual-encoder 3-D U-Net. Another architecture reads those that
    it shares, and finds its own in `options`.
    """

    modalities: Annotated[tuple[Modality, ...], Field(min_length=1, description="modalities that the network sees")] = (
        MODALITIES
    )
    features: Annotated[tuple[PositiveInt, ...], Field(min_length=2, description="channels of each stage")] = (
        8,
        16,
        32,
        64,
    )
    kernels: Annotated[
        tuple[PositiveShape, ...] | None, Field(description="kernel size of each stage; none is 3 3 3 in every stage")
    ] = None
    strides: Annotated[
        tuple[PositiveShape, ...] | None,
        Field(description="stride into each stage; none is 1 1 1 for the first and 2 2 2 for the others"),
    ] = None
    encoder: Annotated[
        Literal["plain", "residual"], Field(description="blocks of the encoder; residual is nnU-Net's ResEnc")
    ] = "plain"
    convs_encoder: Annotated[
        PerStage,
        Field(
            description="convolutions, or residual blocks, of each encoder stage; one number is for all "
            "(nnU-Net: 2, ResEnc: 1 3 4 6 6 6)"
        ),
    ] = (1,)
    convs_decoder: Annotated[
        PerStage,
        Field(
            description="convolutions of each decoder stage, finest first; one number is for all "
            "(nnU-Net: 2, ResEnc: 1)"
        ),
    ] = (1,)
    reversed_axes: Annotated[
        tuple[Axis, ...],
        Field(description="axes along which the network sees volumes reversed; import_nnunet sets x y"),
    ] = ()

    architecture: Annotated[
        str, Field(min_length=1, description="kind of network; unet is nnU-Net's (kd_jax.models.build lists all)")
    ] = UNET
    options: Annotated[
        Mapping[str, Any], Field(description="settings that only an architecture other than unet has")
    ] = field(default_factory=dict, hash=False)  # modules are hashed; what they read of it is not shared

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        if len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"modalities {list(self.modalities)} name one twice")
        for name in ("kernels", "strides"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.features):
                raise ValueError(f"{name} has {len(value)} stages, features has {len(self.features)}: give one each")
        for name, stages in (("convs_encoder", len(self.features)), ("convs_decoder", len(self.features) - 1)):
            if len(getattr(self, name)) not in (1, stages):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} numbers for {stages} stages: give one, or one each"
                )
        if self.strides and set(self.strides[0]) != {1}:
            raise ValueError(f"strides begin with {self.strides[0]}: allowed is 1 1 1, for logits at full resolution")
        for kernel in self.kernels or ():
            if any(k % 2 == 0 for k in kernel):
                raise ValueError(f"kernels hold {kernel}: sizes must be odd, so that a stage keeps its shape")
        return self

    @property
    def channels(self) -> tuple[int, ...]:
        """Indices of the modalities in `conventions.MODALITIES`, in that order."""
        return tuple(i for i, name in enumerate(MODALITIES) if name in self.modalities)

    @property
    def stage_kernels(self) -> tuple[PositiveShape, ...]:
        """Kernel size per stage, defaults filled in."""
        return self.kernels or ((3, 3, 3),) * len(self.features)

    @property
    def stage_strides(self) -> tuple[PositiveShape, ...]:
        """Stride into each stage, defaults filled in."""
        return self.strides or ((1, 1, 1), *((2, 2, 2),) * (len(self.features) - 1))

    @property
    def stage_convs_encoder(self) -> tuple[int, ...]:
        """Convolutions, or residual blocks, per encoder stage."""
        return _for_each(self.convs_encoder, len(self.features))

    @property
    def stage_convs_decoder(self) -> tuple[int, ...]:
        """Convolutions per decoder stage, finest first."""
        return _for_each(self.convs_decoder, len(self.features) - 1)

    @property
    def total_stride(self) -> PositiveShape:
        """Voxels of the input per voxel of the bottleneck, per axis."""
        x, y, z = (math.prod(s[axis] for s in self.stage_strides) for axis in range(3))
        return x, y, z


def _for_each(values: tuple[int, ...], stages: int) -> tuple[int, ...]:
    return values * stages if len(values) == 1 else values


@dataclass(frozen=True, config=STRICT)
class TeacherConfig(NetworkConfig):
    """The network that sees every modality."""
