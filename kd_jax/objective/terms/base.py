"""Parts that all distillation terms share: a weight, its schedule, and the context of a loss."""

import math
from typing import Annotated, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from pydantic import Field
from pydantic.dataclasses import dataclass

from kd_jax.config.data import STRICT, PositiveInt
from kd_jax.config.schema import TrainConfig
from kd_jax.models.protocol import Params
from kd_jax.objective.supervised import Targets


@dataclass(frozen=True, config=STRICT)
class TermSettings:
    """Base of every term's `Settings`.

    A ramp keeps a term away from a teacher that knows nothing yet, as in mean-teacher training (Tarvainen & Valpola
    2017).
    """

    weight: Annotated[
        float, Field(ge=0, description="weight of this term; distillation.weight multiplies all terms")
    ] = 1.0
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Field(description="how the weight reaches its value: at once, along a line, or along half a cosine"),
    ] = "constant"
    ramp_epochs: Annotated[
        PositiveInt | None,
        Field(description="epochs over which a linear or cosine schedule rises; none is the whole run"),
    ] = None


def weight_at(
    settings: TermSettings, step: Int[Array | np.ndarray, ""] | int, train: TrainConfig
) -> float | Float[Array, ""]:
    """Weight of a term at a step of a run; a Python number if it is constant.

    Linear: w·t; cosine: w·(1 − cos πt)/2, with t the share of the ramp that is done, at most 1.
    """
    if settings.schedule == "constant":
        return settings.weight
    done = jnp.minimum(step / ((settings.ramp_epochs or train.epochs) * train.iterations), 1.0)
    rise = done if settings.schedule == "linear" else (1 - jnp.cos(math.pi * done)) / 2
    return settings.weight * rise


class TermContext(NamedTuple):
    """Everything a term may need besides the networks' outputs.

    Attributes:
      targets: target of each level of logits, by the level's shape (D, H, W).
      params: parameters of the term itself, as its `init` made them; empty for a term without `init`.
      axis_name: mapped axis that the batch is spread over, or None.
    """

    targets: Targets
    params: Params
    axis_name: str | None
