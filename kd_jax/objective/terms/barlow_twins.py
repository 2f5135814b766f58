"""Barlow Twins between the bottlenecks: the term of Choi et al. 2023.

Source of the loss: Zbontar et al. 2021, equations 1 and 2; `main.py` of facebookresearch/barlowtwins. Choices that Choi
et al. leave open are settings.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from kd_jax.config.data import STRICT, PositiveInt
from kd_jax.config.schema import TrainConfig
from kd_jax.models.protocol import NetworkOutput, Params
from kd_jax.objective.collectives import sum_over
from kd_jax.objective.projector import Projector
from kd_jax.objective.supervised import Measurements
from kd_jax.objective.terms.base import TermContext, TermSettings

MIN_SAMPLES = 4
"""Fewer samples give a cross-correlation without information: with two, every entry is ±1."""
EPSILON = 1e-5
"""Added to the variance: BatchNorm's default in facebookresearch/barlowtwins `main.py`."""


@dataclass(frozen=True, config=STRICT)
class Settings(TermSettings):
    """The choices that the paper leaves open."""

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


def select(settings: Settings, output: NetworkOutput) -> Float[Array | jax.ShapeDtypeStruct, "n p q r f"]:
    """The bottleneck."""
    return output.bottleneck


def init(settings: Settings, key: PRNGKeyArray, teacher: jax.ShapeDtypeStruct, student: jax.ShapeDtypeStruct) -> Params:
    """A projector for each network, if the settings ask for one."""
    if not settings.projector:
        return {}
    module, keys = Projector(settings.projector), jax.random.split(key)
    sizes = {"teacher": teacher.shape[-1], "student": student.shape[-1]}
    return {
        name: module.init(k, jnp.zeros((2, size)))["params"]
        for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }


def loss(
    settings: Settings,
    teacher: Float[Array, "n _p _q _r _f"],
    student: Float[Array, "n _p _q _r _f"],
    context: TermContext,
) -> tuple[Float[Array, ""], Measurements]:
    """On-diagonal plus λ times off-diagonal part, divided by the number of features if `settings.normalise` asks.

    The bottlenecks need the same grid only if voxels are samples, see `check`.
    """
    latents = {"teacher": _as_samples(teacher, settings.samples), "student": _as_samples(student, settings.samples)}
    if settings.projector:
        module = Projector(settings.projector, context.axis_name)
        latents = {name: module.apply({"params": context.params[name]}, z) for name, z in latents.items()}
    on_diagonal, off_diagonal, correlation = barlow_twins(latents["teacher"], latents["student"], context.axis_name)
    scale = 1 / latents["teacher"].shape[-1] if settings.normalise == "features" else 1.0
    total = scale * (on_diagonal + settings.off_diagonal * off_diagonal)
    return total, {"on_diagonal": on_diagonal, "off_diagonal": off_diagonal, "correlation": correlation}


def check(settings: Settings, teacher: jax.ShapeDtypeStruct, student: jax.ShapeDtypeStruct, train: TrainConfig) -> None:
    """Whether the two bottlenecks can be correlated.

    Raises:
      ValueError: they give too few samples, or differ in shape or in number of features.
    """
    if settings.samples == "cases" and train.batch < MIN_SAMPLES:
        raise ValueError(
            f"samples = cases gives one sample per case, and train.batch is {train.batch}: "
            f"allowed from {MIN_SAMPLES} on (fewer carry no information); use samples = voxels, or a larger batch"
        )
    if settings.samples == "voxels" and teacher.shape[1:4] != student.shape[1:4]:
        raise ValueError(
            f"the bottlenecks of teacher and student differ in shape ({teacher.shape[1:4]} and {student.shape[1:4]} of "
            "a patch): with samples = voxels they must agree; change the strides, or use samples = cases"
        )
    if teacher.shape[-1] != student.shape[-1] and not settings.projector:
        raise ValueError(
            f"the bottlenecks of teacher and student have {teacher.shape[-1]} and {student.shape[-1]} features: "
            "give projector, or the same last number of features"
        )


def barlow_twins(
    teacher: Float[Array | np.ndarray, "n f"], student: Float[Array | np.ndarray, "n f"], axis_name: str | None = None
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Cross-correlation of two latents and its distance from the identity.

    Features are standardised over all samples of all devices (population variance), C = z_tᵀ z_s / N. Moments
    are summed over `axis_name`, so value and gradient do not depend on the number of devices.

    Args:
      teacher: [samples, features] on this device.
      student: the same samples and number of features.
      axis_name: mapped axis that samples are spread over, or None.

    Returns:
      Σ_i (C_ii − 1)²; Σ_{i≠j} C_ij² (to be weighted by λ); and the mean of the diagonal.

    Raises:
      ValueError: fewer than `MIN_SAMPLES` samples over all devices.

    Examples:
      >>> import jax, kd_jax
      >>> latent = jax.random.normal(jax.random.key(0), (512, 8))
      >>> on_diagonal, off_diagonal, correlation = kd_jax.barlow_twins(latent, -latent)
      >>> print(f"{on_diagonal:.1f} {correlation:.2f}")  # 8 features, each (-1 - 1)²
      32.0 -1.00
    """
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    samples = teacher.shape[0] * devices
    if samples < MIN_SAMPLES:
        raise ValueError(
            f"Barlow Twins got {samples} samples per step, needs at least {MIN_SAMPLES}: use "
            "samples = voxels, a larger train.batch or a larger data.patch"
        )
    z_t = _standardise(teacher, samples, axis_name)
    z_s = _standardise(student, samples, axis_name)
    correlation = sum_over(jnp.matmul(z_t.T, z_s, precision=lax.Precision.HIGHEST), axis_name) / samples
    diagonal = jnp.diagonal(correlation)
    off_diagonal = jnp.sum(jnp.square(correlation - jnp.diag(diagonal)))
    return jnp.sum(jnp.square(diagonal - 1)), off_diagonal, jnp.mean(diagonal)


def _standardise(z: Float[Array | np.ndarray, "n f"], samples: int, axis_name: str | None) -> Float[Array, "n f"]:
    z = jnp.asarray(z, jnp.float32)
    centred = z - sum_over(z.sum(0), axis_name) / samples
    variance = sum_over(jnp.square(centred).sum(0), axis_name) / samples
    return centred * lax.rsqrt(variance + EPSILON)


def _as_samples(z: Float[Array, "n p q r f"], samples: str) -> Float[Array, "m f"]:
    z = z.astype(jnp.float32)
    return z.reshape(-1, z.shape[-1]) if samples == "voxels" else z.mean((1, 2, 3))
