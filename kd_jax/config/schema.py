"""All settings of a run, as frozen dataclasses that refuse unknown keys and impossible values.

There is one table per part of the run; `kd_jax.config.load` reads them from TOML and the command line. The defaults
train a small pair on the embedded phantom on a CPU in minutes. For that they differ from the paper and nnU-Net in
sizes, schedule and loss (Dice is added); the preset `paper` holds the published setting.
"""

import re
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from data_pipeline.conventions import CLASSES, REGION_CLASSES
from kd_jax.config.data import STRICT, DataConfig, PositiveFloat, PositiveInt
from kd_jax.config.distillation import DistillationConfig, StudentDistillation
from kd_jax.config.network import UNET, Modality, NetworkConfig

Outputs = Literal["classes", "regions"]
Remat = Literal["none", "norms", "blocks"]
Which = Literal["best", "latest"]
"""Checkpoint that a person asks for; which folder holds the best one depends on the network."""

TEACHER = "teacher"
STUDENT = "student"
"""Name of the only student of a run that has no `[students.NAME]` tables."""
_RESERVED = {TEACHER, "optimiser", "position", "config", "terms", "projectors", "both", "all"}
_STUDENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, config=STRICT)
class TeacherConfig(NetworkConfig):
    """The network that sees every modality."""


@dataclass(frozen=True, config=STRICT)
class StudentConfig(NetworkConfig):
    """A network that sees the modalities a clinic has."""

    modalities: Annotated[tuple[Modality, ...], Field(min_length=1, description="modalities that the network sees")] = (
        "flair",
        "t1ce",
    )
    seed: Annotated[
        int | None,
        Field(ge=0, lt=2**32 - 1, description="seed of this student's initial weights; none is the run's seed"),
    ] = None
    distillation: Annotated[
        StudentDistillation | None, Field(description="weight and terms of this student instead of those of the run")
    ] = None


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    """Deep-supervised segmentation loss of every network."""

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
class OptimiserConfig:
    """nnU-Net's SGD and schedule; one optimiser state per network."""

    learning_rate: Annotated[PositiveFloat, Field(description="learning rate of the first step (nnU-Net: 0.01)")] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="Nesterov momentum (nnU-Net: 0.99)")] = 0.9
    weight_decay: Annotated[float, Field(ge=0, description="weight decay of all parameters")] = 3e-5
    clip_norm: Annotated[PositiveFloat, Field(description="gradient norm at which each network is clipped")] = 12.0
    power: Annotated[PositiveFloat, Field(description="exponent of the polynomial decay per epoch")] = 0.9


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """How long, how large, in which precision."""

    epochs: Annotated[PositiveInt, Field(description="number of epochs (nnU-Net: 1000)")] = 8
    iterations: Annotated[PositiveInt, Field(description="training steps per epoch (nnU-Net: 250)")] = 50
    validation_iterations: Annotated[PositiveInt, Field(description="validation batches per epoch (nnU-Net: 50)")] = 8
    batch: Annotated[PositiveInt, Field(description="patches per step over all devices and hosts")] = 2
    precision: Annotated[
        Literal["float32", "bfloat16"], Field(description="precision of activations; parameters stay float32")
    ] = "float32"
    remat: Annotated[
        Literal["auto", "none", "norms", "blocks"],
        Field(
            description="values that the backward pass computes again instead of keeping them: none; norms: norms and "
            "activations, which costs next to nothing on a TPU; blocks: convolutions too, for the least memory; auto "
            "is norms on a TPU, none elsewhere"
        ),
    ] = "auto"
    fold: Annotated[
        PositiveInt | Literal["auto"],
        Field(
            description="most neighbouring voxels that fine stages lay side by side as channels, to fill the 128 lanes "
            "of a TPU; changes neither numbers nor checkpoints; 1 folds nothing; auto is 4 on a TPU, 1 elsewhere"
        ),
    ] = "auto"
    save_every: Annotated[PositiveInt, Field(description="epochs between checkpoints")] = 1


@dataclass(frozen=True, config=STRICT)
class Config:
    """All settings of one run; see the command line, or the documentation's page on settings, for their meaning.

    Examples:
      >>> import kd_jax
      >>> config = kd_jax.Config(train={"epochs": 100}, student={"modalities": ["flair"]})
      >>> config.train.epochs, config.train.batch
      (100, 2)
    """

    seed: Annotated[
        int, Field(ge=0, lt=2**32 - 1, description="seed of initialisation, shuffling and augmentation")
    ] = 0
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    students: Annotated[
        Mapping[str, StudentConfig],
        Field(description="several students of one teacher, each a table [students.NAME]; [student] is short for one"),
    ] = field(default_factory=dict, hash=False)
    loss: LossConfig = LossConfig()
    distillation: DistillationConfig = DistillationConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self._names_can_be_used()
        for name, network in self.networks.items():
            if network.architecture != UNET:
                continue  # the module itself knows its strides, and is asked when it is built
            stride = network.total_stride
            if any(size % s or size // s < 2 for size, s in zip(self.data.patch, stride, strict=True)):
                raise ValueError(
                    f"data.patch {self.data.patch} does not fit the {name}: each size must be a multiple, "
                    f"at least 2 x, of its total stride {stride}"
                )
        return self

    def _names_can_be_used(self) -> None:
        """Checks names of students, which become items of the checkpoint and values of --network."""
        if self.students and self.student != StudentConfig():
            raise ValueError(
                "[student] is short for a single student, but [students.NAME] is given as well: give one of them"
            )
        for name in self.students:
            if name in _RESERVED or not _STUDENT_NAME.fullmatch(name):
                raise ValueError(
                    f"students.{name}: cannot be the name of a student; use letters, digits, - and _, and none of "
                    f"{', '.join(sorted(_RESERVED))}"
                )

    @property
    def every_student(self) -> Mapping[str, StudentConfig]:
        """All students by name: those of `[students.NAME]`, or the one of `[student]`."""
        return self.students or {STUDENT: self.student}

    @property
    def networks(self) -> Mapping[str, NetworkConfig]:
        """Teacher and students by name, the teacher first."""
        return {TEACHER: self.teacher, **self.every_student}

    def distillation_of(self, student: str) -> StudentDistillation:
        """Weight and terms of one student: its own, or else those of the run."""
        return self.every_student[student].distillation or self.distillation

    @property
    def outputs(self) -> Outputs:
        """The meaning of the channels of the logits: exclusive classes (softmax) or overlapping regions (sigmoid)."""
        return "regions" if self.loss.segmentation == "dice_bce" else "classes"

    @property
    def output_channels(self) -> int:
        """Channels of the logits."""
        return len(REGION_CLASSES) if self.outputs == "regions" else len(CLASSES)
