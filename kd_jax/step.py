"""Train state and the pure train step, which names its device axis."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int32, Integer

from data_pipeline.conventions import REGION_CLASSES
from kd_jax.config import Config, OptimiserConfig
from kd_jax.distill import (
    Measurements,
    Networks,
    Params,
    distillation_loss,
    init_params,
    joint_loss,
    named,
    segment,
    select_modalities,
)

Batch = Mapping[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NetworkState:
    """One side of the pair: parameters (network, and projectors on the student's side) and optimiser state."""

    params: Params
    optimiser: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a step changes."""

    step: Int32[Array, ""]
    teacher: NetworkState
    student: NetworkState


def make_schedule(config: Config) -> optax.Schedule:
    """Learning rate of a step: nnU-Net's polynomial decay, held within an epoch."""
    settings, epochs, iterations = config.optimiser, config.train.epochs, config.train.iterations

    def schedule(step: Int32[Array, ""]) -> Float[Array, ""]:
        epoch = jnp.minimum(step // iterations, epochs)
        return settings.learning_rate * (1 - epoch / epochs) ** settings.power

    return schedule


def make_optimiser(settings: OptimiserConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """nnU-Net's SGD: gradient clipped by norm, weight decay added, Nesterov momentum (PyTorch's order)."""
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(schedule, momentum=settings.momentum, nesterov=True),
    )


def init_state(networks: Networks, config: Config) -> TrainState:
    """State at step 0, drawn from `config.seed`; another backend or compiler may draw otherwise."""
    optimiser = make_optimiser(config.optimiser, make_schedule(config))

    @jax.jit  # operator by operator it takes many times as long
    def init(key: Array) -> TrainState:
        teacher, student = (NetworkState(p, optimiser.init(p)) for p in init_params(networks, config, key))
        return TrainState(jnp.zeros((), jnp.int32), teacher, student)

    # XLA:CPU takes seconds to compile each draw of the default generator, a fraction of one for this.
    return init(jax.random.key(config.seed, impl="rbg"))


def make_train_step(
    networks: Networks, config: Config, axis_name: str | None
) -> Callable[[TrainState, Batch], tuple[TrainState, Measurements]]:
    """The step of a run: (state, this device's share of the batch) to (state, measurements).

    The batch is image [N, D, H, W, 4] float32 and label [N, D, H, W] integer classes. Gradients and
    measurements are means over `axis_name`; state and measurements leave equal on every device.
    """
    schedule = make_schedule(config)
    optimiser = make_optimiser(config.optimiser, schedule)
    gradients = joint_update if config.distillation.update == "joint" else alternating_update

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        teacher, student, measurements = gradients(state, networks, config, optimiser, batch, axis_name)
        measurements = {**mean_over(measurements, axis_name), "learning_rate": schedule(state.step)}
        return TrainState(state.step + 1, teacher, student), measurements

    return step


def joint_update(
    state: TrainState,
    networks: Networks,
    config: Config,
    optimiser: optax.GradientTransformation,
    batch: Batch,
    axis_name: str | None,
) -> tuple[NetworkState, NetworkState, Measurements]:
    """Both networks move at once, from one backward pass."""
    params = state.teacher.params, state.student.params
    grads, measurements = jax.grad(joint_loss, has_aux=True)(params, networks, config, batch, axis_name)
    teacher, teacher_norm = descend(state.teacher, mean_over(grads[0], axis_name), optimiser)
    student, student_norm = descend(state.student, mean_over(grads[1], axis_name), optimiser)
    norms = {"teacher/gradient_norm": teacher_norm, "student/gradient_norm": student_norm}
    return teacher, student, measurements | norms


def alternating_update(
    state: TrainState,
    networks: Networks,
    config: Config,
    optimiser: optax.GradientTransformation,
    batch: Batch,
    axis_name: str | None,
) -> tuple[NetworkState, NetworkState, Measurements]:
    """The teacher moves first; the student then follows the moved teacher, which is held still."""
    image, labels = batch["image"], batch["label"]

    def teacher_loss(params: Params) -> tuple[Float[Array, ""], Measurements]:
        seen = segment(networks.teacher, params, config.teacher, config.loss, image, labels)
        return seen.loss, seen.measurements

    grads, teacher_terms = jax.grad(teacher_loss, has_aux=True)(state.teacher.params)
    teacher, teacher_norm = descend(state.teacher, mean_over(grads, axis_name), optimiser)
    latent = segment(networks.teacher, teacher.params, config.teacher, config.loss, image, labels).bottleneck

    def student_loss(params: Params) -> tuple[Float[Array, ""], Measurements]:
        seen = segment(networks.student, params, config.student, config.loss, image, labels)
        pull, parts = distillation_loss(networks, params, config, latent, seen.bottleneck, axis_name)
        return seen.loss + pull, {**named("student", seen.measurements), **parts}

    grads, student_terms = jax.grad(student_loss, has_aux=True)(state.student.params)
    student, student_norm = descend(state.student, mean_over(grads, axis_name), optimiser)
    norms = {"teacher/gradient_norm": teacher_norm, "student/gradient_norm": student_norm}
    return teacher, student, {**named("teacher", teacher_terms), **student_terms, **norms}


def descend(
    state: NetworkState, grads: Params, optimiser: optax.GradientTransformation
) -> tuple[NetworkState, Float[Array, ""]]:
    """One optimiser step of one side; also the norm of its gradient before clipping."""
    updates, optimiser_state = optimiser.update(grads, state.optimiser, state.params)
    return NetworkState(optax.apply_updates(state.params, updates), optimiser_state), optax.tree.norm(grads)


def mean_over(tree: Any, axis_name: str | None) -> Any:
    """Mean of every leaf over the devices.

    Each device differentiates its own copy of a loss that holds psums, whose transpose is a psum again:
    the mean over devices of these gradients is the gradient of the global loss.
    """
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def make_validation_step(
    networks: Networks, config: Config, axis_name: str | None
) -> Callable[[TrainState, Batch], Mapping[str, Float[Array, "2 3 3"]]]:
    """Counts for nnU-Net's pseudo-Dice: (state, batch) to {"counts": [network, region, (TP, FP, FN)]}.

    Networks are teacher, student; regions are WT, TC, ET; counts are voxels summed over the batch and
    the devices.
    """

    def step(state: TrainState, batch: Batch) -> Mapping[str, Float[Array, "2 3 3"]]:
        counts = []
        for module, side, settings in (
            (networks.teacher, state.teacher, config.teacher),
            (networks.student, state.student, config.student),
        ):
            image = select_modalities(batch["image"], settings)
            logits, _ = module.apply({"params": side.params["network"]}, image)
            counts.append(region_counts(jnp.argmax(logits[0], axis=-1), batch["label"]))
        total = jnp.stack(counts)
        return {"counts": total if axis_name is None else lax.psum(total, axis_name)}

    return step


def region_counts(prediction: Integer[Array, "n d h w"], labels: Integer[Array, "n d h w"]) -> Float[Array, "3 3"]:
    """[WT, TC, ET] × [true positives, false positives, false negatives] in voxels."""
    rows = []
    for classes in REGION_CLASSES.values():
        found = jnp.isin(prediction, jnp.array(classes))
        truth = jnp.isin(labels, jnp.array(classes))
        rows.append([(found & truth).sum(), (found & ~truth).sum(), (~found & truth).sum()])
    return jnp.array(rows, jnp.float32)
