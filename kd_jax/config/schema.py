"""Everything a run depends on, as frozen dataclasses that refuse unknown keys and impossible values.

One table per part of the run; `kd_jax.config.load` reads them from TOML and the command line.
The defaults train a small pair on the embedded phantom on a CPU in minutes, and differ for that from the
paper and nnU-Net (sizes, schedule, Dice beside cross-entropy); `experiments/configs/paper.toml` holds
the published setting.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from data_pipeline.conventions import CLASSES, MODALITIES, REGION_CLASSES, Modality
from kd_jax.config.data import STRICT, DataConfig, PositiveFloat, PositiveInt, Triple

MIN_SAMPLES = 4
"""Fewer samples give a cross-correlation without information: with two, every entry is ±1."""

Axis = Literal["x", "y", "z"]
AXES: tuple[Axis, ...] = ("x", "y", "z")
"""Axes of every volume, in order: towards right, anterior, superior."""
Outputs = Literal["classes", "regions"]
Remat = Literal["none", "norms", "blocks"]


def _one_or_each(value: object) -> object:
    return (value,) if isinstance(value, int) else value


PerStage = Annotated[tuple[PositiveInt, ...], BeforeValidator(_one_or_each)]
"""One number for all stages, or one for each."""


@dataclass(frozen=True, config=STRICT)
class NetworkConfig:
    """A 3-D U-Net as nnU-Net's plain or residual-encoder one, by stage."""

    modalities: Annotated[tuple[Modality, ...], Field(min_length=1, description="what the network sees")] = MODALITIES
    features: Annotated[tuple[PositiveInt, ...], Field(min_length=2, description="channels of each stage")] = (
        8,
        16,
        32,
        64,
    )
    kernels: Annotated[
        tuple[Triple, ...] | None, Field(description="kernel size of each stage; none is 3 3 3 everywhere")
    ] = None
    strides: Annotated[
        tuple[Triple, ...] | None,
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
        Field(description="axes along which the network sees volumes reversed; importing a nnU-Net sets x y"),
    ] = ()

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
    def stage_kernels(self) -> tuple[Triple, ...]:
        """Kernel size per stage, defaults filled in."""
        return self.kernels or ((3, 3, 3),) * len(self.features)

    @property
    def stage_strides(self) -> tuple[Triple, ...]:
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
    def total_stride(self) -> Triple:
        """Voxels of the input per voxel of the bottleneck, per axis."""
        x, y, z = (math.prod(s[axis] for s in self.stage_strides) for axis in range(3))
        return x, y, z


def _for_each(values: tuple[int, ...], stages: int) -> tuple[int, ...]:
    return values * stages if len(values) == 1 else values


@dataclass(frozen=True, config=STRICT)
class TeacherConfig(NetworkConfig):
    """The network that sees every modality."""


@dataclass(frozen=True, config=STRICT)
class StudentConfig(NetworkConfig):
    """The network that sees what the clinic has."""

    modalities: Annotated[tuple[Modality, ...], Field(min_length=1, description="what the network sees")] = (
        "flair",
        "t1ce",
    )


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    """Deep-supervised segmentation loss of both networks."""

    segmentation: Annotated[
        Literal["ce", "dice_ce", "dice_bce"],
        Field(
            description="ce is the paper's cross-entropy, dice_ce nnU-Net's sum of it and soft Dice; dice_bce is "
            "nnU-Net's loss of overlapping regions: a sigmoid each for WT, TC and ET"
        ),
    ] = "dice_ce"
    batch_dice: Annotated[
        bool, Field(description="soft Dice over the whole batch, all devices, as if it were one volume")
    ] = False
    deep_supervision: Annotated[bool, Field(description="supervise every decoder level but the coarsest")] = True


@dataclass(frozen=True, config=STRICT)
class DistillationConfig:
    """The Barlow Twins term between the bottlenecks; each choice the paper leaves open is a setting."""

    weight: Annotated[
        float, Field(ge=0, description="weight of the term; 0 is the control: the same student without distillation")
    ] = 0.1
    off_diagonal: Annotated[float, Field(ge=0, description="lambda of Barlow Twins (Zbontar et al.: 0.0051)")] = 0.0051
    samples: Annotated[
        Literal["voxels", "cases"],
        Field(description="voxels: every bottleneck voxel is a sample; cases: one pooled vector per case"),
    ] = "voxels"
    normalise: Annotated[
        Literal["features", "none"], Field(description="features: divide the term by the number of features")
    ] = "features"
    projector: Annotated[
        tuple[PositiveInt, ...], Field(description="widths of the projector's layers; empty is none, as in the default")
    ] = ()
    stop_gradient: Annotated[bool, Field(description="the term does not move the teacher")] = True
    update: Annotated[
        Literal["joint", "alternating", "student"],
        Field(
            description="joint: both networks at once; alternating: the teacher first, then the student against it; "
            "student: the student alone, against a teacher from --teacher-from that is held still"
        ),
    ] = "joint"

    @model_validator(mode="after")
    def _held_still_means_stopped(self) -> Self:
        if self.update != "joint" and not self.stop_gradient:
            raise ValueError(f"update = {self.update} holds the teacher still: allowed only with stop_gradient = true")
        return self


@dataclass(frozen=True, config=STRICT)
class OptimiserConfig:
    """nnU-Net's SGD and schedule; one optimiser state per network."""

    learning_rate: Annotated[PositiveFloat, Field(description="at the first step (nnU-Net: 0.01)")] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="Nesterov momentum (nnU-Net: 0.99)")] = 0.9
    weight_decay: Annotated[float, Field(ge=0, description="on all parameters")] = 3e-5
    clip_norm: Annotated[PositiveFloat, Field(description="gradient norm each network is clipped at")] = 12.0
    power: Annotated[PositiveFloat, Field(description="of the polynomial decay per epoch")] = 0.9


def _remat_by_name(value: object) -> object:
    """Runs of version 0.2 and before say false or true."""
    return {"false": "none", "true": "blocks"}.get(str(value).lower(), value)


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """How long, how large, in which precision."""

    epochs: Annotated[PositiveInt, Field(description="number of epochs (nnU-Net: 1000)")] = 8
    iterations: Annotated[PositiveInt, Field(description="training steps per epoch (nnU-Net: 250)")] = 50
    validation_iterations: Annotated[PositiveInt, Field(description="validation batches per epoch (nnU-Net: 50)")] = 8
    batch: Annotated[PositiveInt, Field(description="patches per step over all devices and hosts")] = 2
    precision: Annotated[
        Literal["float32", "bfloat16"], Field(description="of activations; parameters stay float32")
    ] = "float32"
    remat: Annotated[
        Literal["auto", "none", "norms", "blocks"],
        BeforeValidator(_remat_by_name),
        Field(
            description="what the backward pass computes again instead of keeping it: none; norms: norms and "
            "activations, which costs next to nothing on a TPU; blocks: convolutions too, for the least memory; auto "
            "is norms on a TPU, none elsewhere"
        ),
    ] = "auto"
    fold: Annotated[
        PositiveInt | Literal["auto"],
        Field(
            description="most neighbouring voxels that fine stages lay side by side as channels, to fill the 128 lanes "
            "of a TPU; changes neither numbers nor checkpoints; 1 is none; auto is 4 on a TPU, 1 elsewhere"
        ),
    ] = "auto"
    save_every: Annotated[PositiveInt, Field(description="epochs between checkpoints")] = 1


@dataclass(frozen=True, config=STRICT)
class Config:
    """One run."""

    seed: Annotated[int, Field(ge=0, lt=2**32 - 1, description="of initialisation, shuffling and augmentation")] = 0
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    loss: LossConfig = LossConfig()
    distillation: DistillationConfig = DistillationConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, network in (("teacher", self.teacher), ("student", self.student)):
            stride = network.total_stride
            if any(size % s or size // s < 2 for size, s in zip(self.data.patch, stride, strict=True)):
                raise ValueError(
                    f"data.patch {self.data.patch} does not fit the {name}: each size must be a multiple, "
                    f"at least 2 x, of its total stride {stride}"
                )
        self._bottlenecks_agree()
        return self

    @property
    def outputs(self) -> Outputs:
        """What the channels of the logits stand for: exclusive classes (softmax) or overlapping regions (sigmoid)."""
        return "regions" if self.loss.segmentation == "dice_bce" else "classes"

    @property
    def output_channels(self) -> int:
        """Channels of the logits."""
        return len(REGION_CLASSES) if self.outputs == "regions" else len(CLASSES)

    def _bottlenecks_agree(self) -> None:
        if self.distillation.weight == 0:
            return
        teacher, student = self.teacher, self.student
        if self.distillation.samples == "cases" and self.train.batch < MIN_SAMPLES:
            raise ValueError(
                f"distillation.samples = cases gives one sample per case, and train.batch is {self.train.batch}: "
                f"allowed from {MIN_SAMPLES} on (fewer carry no information); use samples = voxels, or a larger batch"
            )
        if self.distillation.samples == "voxels" and teacher.total_stride != student.total_stride:
            raise ValueError(
                f"teacher and student bottlenecks differ in shape (strides {teacher.total_stride} and "
                f"{student.total_stride}): with distillation.samples = voxels they must agree; change the strides, "
                "or use samples = cases"
            )
        if teacher.features[-1] != student.features[-1] and not self.distillation.projector:
            raise ValueError(
                f"teacher and student bottlenecks have {teacher.features[-1]} and {student.features[-1]} features: "
                "give distillation.projector, or the same last number of features"
            )
