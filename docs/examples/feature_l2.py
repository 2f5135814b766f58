"""A distillation term of one's own: the squared difference of L2-normalised features of teacher and student.

One line of configuration adds it to Barlow Twins:

    [distillation]
    "docs/examples/feature_l2.py" = {weight = 0.5}
"""

from typing import Annotated

import jax.numpy as jnp
from jax import ShapeDtypeStruct, lax
from jaxtyping import Array, Float
from pydantic import Field
from pydantic.dataclasses import dataclass

from kd_jax import InputError
from kd_jax.config.data import STRICT
from kd_jax.config.schema import TrainConfig
from kd_jax.models.protocol import NetworkOutput
from kd_jax.objective.supervised import Measurements
from kd_jax.objective.terms.base import TermContext, TermSettings


@dataclass(frozen=True, config=STRICT)
class Settings(TermSettings):
    """Keys of the term's table, besides the weight and the schedule that every term has."""

    stage: Annotated[
        int | None, Field(ge=0, description="encoder stage that is compared, finest first; none is the bottleneck")
    ] = None


def select(settings: Settings, output: NetworkOutput) -> Float[Array, "n d h w f"]:
    """The features of one encoder stage."""
    if settings.stage is None:
        return output.bottleneck
    if settings.stage >= len(output.encoder):
        raise InputError(f"distillation.feature_l2.stage {settings.stage}: allowed: 0 to {len(output.encoder) - 1}")
    return output.encoder[settings.stage]


def check(settings: Settings, teacher: ShapeDtypeStruct, student: ShapeDtypeStruct, train: TrainConfig) -> None:
    """Refuses features that have no counterpart. Called once, before the run starts."""
    if teacher.shape != student.shape:
        raise ValueError(f"features of shapes {teacher.shape} and {student.shape}: choose a stage where they agree")


def loss(
    settings: Settings,
    teacher: Float[Array, "n d h w f"],
    student: Float[Array, "n d h w f"],
    context: TermContext,
) -> tuple[Float[Array, ""], Measurements]:
    """Mean of (t / |t| - s / |s|)² over all entries; the norm |.| of a voxel's feature vector."""
    return jnp.mean(jnp.square(_normalised(teacher) - _normalised(student))), {}


def _normalised(features: Float[Array, "n d h w f"]) -> Float[Array, "n d h w f"]:
    features = features.astype(jnp.float32)  # activations may be bfloat16
    return features * lax.rsqrt(jnp.sum(jnp.square(features), -1, keepdims=True) + 1e-12)
