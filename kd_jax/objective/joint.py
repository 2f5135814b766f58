"""The joint objective: which network sees what, what pulls on what.

Choi et al. 2023: teacher and student are trained in the same iteration, each with its deep-supervised
segmentation loss, and a Barlow Twins loss between their latents.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Integer, Shaped

from data_pipeline.conventions import MODALITIES
from kd_jax.config.schema import Config, LossConfig, NetworkConfig, Remat
from kd_jax.models.outputs import region_truth
from kd_jax.models.unet import UNet
from kd_jax.objective.projector import Projector
from kd_jax.objective.segmentation import (
    barlow_twins,
    binary_cross_entropy,
    cross_entropy,
    deep_supervision_weights,
    labels_at,
    soft_dice_loss,
)

Params = Mapping[str, Any]
Measurements = dict[str, Float[Array, ""]]
Targets = Mapping[tuple[int, ...], Shaped[Array, "n _d _h _w *k"]]
"""What a level should show, by its shape (D, H, W): classes, or membership of each region."""
FOLD_ON_TPU = 4
"""Neighbours that fill 128 lanes with the 32 channels of nnU-Net's finest stage."""


class Networks(NamedTuple):
    """The modules of a run; `projector` holds one per network, or None."""

    teacher: UNet
    student: UNet
    projectors: tuple[Projector, Projector] | None


class Seen(NamedTuple):
    """What a network made of a batch."""

    loss: Float[Array, ""]
    bottleneck: Float[Array, "n p q r f"]
    measurements: Measurements


def build_network(network: NetworkConfig, config: Config) -> UNet:
    """The module of one network of a run; `auto` settings are those of the backend that JAX runs on."""
    settings = config.train
    on_tpu = "auto" in (settings.remat, settings.fold) and jax.default_backend() == "tpu"
    remat: Remat = ("norms" if on_tpu else "none") if settings.remat == "auto" else settings.remat
    fold = (FOLD_ON_TPU if on_tpu else 1) if settings.fold == "auto" else settings.fold
    return UNet(network, config.output_channels, jnp.dtype(settings.precision), remat, fold)


def build_networks(config: Config, axis_name: str | None) -> Networks:
    """Teacher, student and projectors of a run whose step names its device axis `axis_name`."""
    projectors = None
    if config.distillation.weight > 0 and config.distillation.projector:
        widths = config.distillation.projector
        projectors = Projector(widths, axis_name), Projector(widths, axis_name)
    return Networks(build_network(config.teacher, config), build_network(config.student, config), projectors)


def init_params(networks: Networks, config: Config, key: Array) -> tuple[Params, Params]:
    """Initial parameters: {"network": …} of the teacher; {"network": …, "projectors": …} of the student's side.

    The projectors, when there are any, belong to the distillation and are updated with the student.
    """
    keys = jax.random.split(key, 4)
    patch = config.data.patch
    # Compiled, the forward pass that `init` also runs is found to be of no use.
    teacher = jax.jit(networks.teacher.init)(keys[0], jnp.zeros((1, *patch, len(config.teacher.channels))))["params"]
    student = jax.jit(networks.student.init)(keys[1], jnp.zeros((1, *patch, len(config.student.channels))))["params"]
    student_side = {"network": student}
    if networks.projectors is not None:
        sizes = config.teacher.features[-1], config.student.features[-1]
        student_side["projectors"] = {
            name: module.clone(axis_name=None).init(k, jnp.zeros((2, size)))["params"]
            for name, module, k, size in zip(("teacher", "student"), networks.projectors, keys[2:], sizes, strict=True)
        }
    return {"network": teacher}, student_side


def segment(
    module: UNet,
    params: Params,
    config: NetworkConfig,
    loss: LossConfig,
    batch: Mapping[str, Array],
    targets: Targets,
    axis_name: str | None,
) -> Seen:
    """Runs one network on the modalities it sees of a batch and measures its deep-supervised loss."""
    logits, bottleneck = module.apply({"params": params["network"]}, select_modalities(batch["image"], config))
    total, measurements = supervised_loss(logits, targets, loss, axis_name)
    return Seen(total, bottleneck, measurements)


def make_targets(labels: Integer[Array, "n d h w"], config: Config) -> Targets:
    """What both networks of a run are supervised with, made once for a batch."""
    shapes = set()
    for network in (config.teacher, config.student):
        shape = labels.shape[1:]
        for level, stride in enumerate(network.stage_strides[:-1]):
            shape = tuple(size // s for size, s in zip(shape, stride, strict=True))
            if level == 0 or config.loss.deep_supervision:
                shapes.add(shape)
    return _targets_at(labels, shapes, config.loss)


def _targets_at(labels: Integer[Array, "n d h w"], shapes: Iterable[tuple[int, ...]], config: LossConfig) -> Targets:
    prepare = region_truth if config.segmentation == "dice_bce" else lambda at_level: at_level
    return {shape: prepare(labels_at(labels, shape)) for shape in sorted(shapes)}


def select_modalities(image: Float[Array, "*n c"], config: NetworkConfig) -> Float[Array, "*n m"]:
    """The channels a network sees, by its modalities' names."""
    if len(config.channels) == len(MODALITIES):
        return image
    return jnp.stack([image[..., channel] for channel in config.channels], axis=-1)  # a TPU would gather in a loop


def segmentation_loss(
    logits: list[Float[Array, "n _d _h _w k"]],
    labels: Integer[Array, "n d h w"],
    config: LossConfig,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Measurements]:
    """`supervised_loss` of one network by itself, against the labels."""
    targets = _targets_at(labels, {level.shape[1:4] for level in logits}, config)
    return supervised_loss(logits, targets, config, axis_name)


def supervised_loss(
    logits: list[Float[Array, "n _d _h _w k"]], targets: Targets, config: LossConfig, axis_name: str | None
) -> tuple[Float[Array, ""], Measurements]:
    """Weighted sum over decoder levels, finest first, and its terms.

    `axis_name` is the mapped axis the batch is spread over; it matters to `batch_dice` alone.
    """
    levels = logits if config.deep_supervision else logits[:1]
    weights = deep_supervision_weights(len(levels))
    measurements = {name: jnp.zeros(()) for name in config.segmentation.split("_")}
    for weight, level in zip(weights, levels, strict=True):
        if weight > 0:
            for name, value in _terms(level, targets[level.shape[1:4]], config, axis_name).items():
                measurements[name] += weight * value
    total = sum(measurements.values(), jnp.zeros(()))
    return total, {**measurements, "loss": total}


def _terms(
    logits: Float[Array, "n d h w k"], target: Shaped[Array, "n d h w *k"], config: LossConfig, axis_name: str | None
) -> Measurements:
    """The terms of one decoder level; Dice leaves out the background, which regions do not have."""
    if config.segmentation == "ce":
        return {"ce": cross_entropy(logits, target)}
    dice = partial(soft_dice_loss, batch_dice=config.batch_dice, axis_name=axis_name)
    if config.segmentation == "dice_bce":
        return {"dice": dice(jax.nn.sigmoid(logits), target), "bce": binary_cross_entropy(logits, target)}
    one_hot = jax.nn.one_hot(target, logits.shape[-1])
    return {"dice": dice(jax.nn.softmax(logits)[..., 1:], one_hot[..., 1:]), "ce": cross_entropy(logits, target)}


def distillation_loss(
    networks: Networks,
    student_params: Params,
    config: Config,
    teacher_bottleneck: Float[Array, "n p q r f"],
    student_bottleneck: Float[Array, "n p q r g"],
    axis_name: str | None,
) -> tuple[Float[Array, ""], Measurements]:
    """The weighted Barlow Twins term and its two parts, before weighting."""
    settings = config.distillation
    if settings.weight == 0:
        return jnp.zeros(()), {}
    if settings.stop_gradient:
        teacher_bottleneck = lax.stop_gradient(teacher_bottleneck)
    latents = [_as_samples(z, settings.samples) for z in (teacher_bottleneck, student_bottleneck)]
    if networks.projectors is not None:
        names = "teacher", "student"
        latents = [
            module.apply({"params": student_params["projectors"][name]}, z)
            for name, module, z in zip(names, networks.projectors, latents, strict=True)
        ]
    on_diagonal, off_diagonal, correlation = barlow_twins(latents[0], latents[1], axis_name)
    scale = 1 / latents[0].shape[-1] if settings.normalise == "features" else 1.0
    loss = scale * (on_diagonal + settings.off_diagonal * off_diagonal)
    return settings.weight * loss, {
        "barlow_twins/loss": loss,
        "barlow_twins/on_diagonal": on_diagonal,
        "barlow_twins/off_diagonal": off_diagonal,
        "barlow_twins/correlation": correlation,
    }


def _as_samples(z: Float[Array, "n p q r f"], samples: str) -> Float[Array, "m f"]:
    z = z.astype(jnp.float32)
    return z.reshape(-1, z.shape[-1]) if samples == "voxels" else z.mean((1, 2, 3))


def named(prefix: str, measurements: Measurements) -> Measurements:
    """Measurements under a network's name: `student/ce`."""
    return {f"{prefix}/{name}": value for name, value in measurements.items()}


def joint_loss(
    params: tuple[Params, Params],
    networks: Networks,
    config: Config,
    batch: Mapping[str, Array],
    axis_name: str | None,
) -> tuple[Float[Array, ""], Measurements]:
    """Both segmentation losses and the distillation term of one batch (Choi et al. 2023).

    Args:
      params: the teacher's and the student's side, as from `init_params`.
      networks: the modules.
      config: the run.
      batch: image [N, D, H, W, 4] float32, label [N, D, H, W] integer classes.
      axis_name: mapped axis of the devices, or None.

    Returns:
      The scalar to minimise on this device, and its terms.
    """
    targets = make_targets(batch["label"], config)
    teacher = segment(networks.teacher, params[0], config.teacher, config.loss, batch, targets, axis_name)
    student = segment(networks.student, params[1], config.student, config.loss, batch, targets, axis_name)
    pull, parts = distillation_loss(networks, params[1], config, teacher.bottleneck, student.bottleneck, axis_name)
    measurements = {**named("teacher", teacher.measurements), **named("student", student.measurements), **parts}
    return teacher.loss + student.loss + pull, measurements
