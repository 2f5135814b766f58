"""Train state and the pure train step, which names its device axis."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from kd_jax.config.schema import Config, OptimiserConfig
from kd_jax.models.outputs import found_regions, region_truth
from kd_jax.objective.joint import (
    Measurements,
    Networks,
    Params,
    Seen,
    Targets,
    distillation_loss,
    init_params,
    joint_loss,
    make_targets,
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
        return settings.learning_rate * ((epochs - epoch) / epochs) ** settings.power

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
    update = _UPDATES[config.distillation.update]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        teacher, student, measurements = update(state, networks, config, optimiser, batch, axis_name)
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
    """Both networks move at once, by the gradient of `joint_loss`."""
    if config.distillation.stop_gradient:
        grads, measurements = _gradient_in_turn(state, networks, config, batch, axis_name)
    else:
        params = state.teacher.params, state.student.params
        grads, measurements = jax.grad(joint_loss, has_aux=True)(params, networks, config, batch, axis_name)
    teacher, teacher_norm = descend(state.teacher, mean_over(grads[0], axis_name), optimiser)
    student, student_norm = descend(state.student, mean_over(grads[1], axis_name), optimiser)
    norms = {"teacher/gradient_norm": teacher_norm, "student/gradient_norm": student_norm}
    return teacher, student, measurements | norms


def _gradient_in_turn(
    state: TrainState, networks: Networks, config: Config, batch: Batch, axis_name: str | None
) -> tuple[tuple[Params, Params], Measurements]:
    """The gradient of `joint_loss` where nothing of the student moves the teacher: one network after the other.

    The activations of the one are gone when those of the other come, which halves the step's memory; the barrier
    keeps the compiler from overlapping them again.
    """
    targets = make_targets(batch["label"], config)
    teacher, seen = _teacher_gradient(state.teacher.params, networks, config, batch, targets, axis_name)
    teacher, seen, batch, targets = lax.optimization_barrier((teacher, seen, batch, targets))
    student, terms = _student_gradient(state.student.params, seen, networks, config, batch, targets, axis_name)
    return (teacher, student), {**named("teacher", seen.measurements), **terms}


def alternating_update(
    state: TrainState,
    networks: Networks,
    config: Config,
    optimiser: optax.GradientTransformation,
    batch: Batch,
    axis_name: str | None,
) -> tuple[NetworkState, NetworkState, Measurements]:
    """The teacher moves first; the student then follows the moved teacher, which is held still."""
    targets = make_targets(batch["label"], config)
    grads, seen = _teacher_gradient(state.teacher.params, networks, config, batch, targets, axis_name)
    teacher, norm = descend(state.teacher, mean_over(grads, axis_name), optimiser)
    moved = TrainState(state.step, teacher, state.student)
    _, student, measurements = student_update(moved, networks, config, optimiser, batch, axis_name)
    terms = named("teacher", seen.measurements)
    return teacher, student, {**measurements, **terms, "teacher/gradient_norm": norm}


def student_update(
    state: TrainState,
    networks: Networks,
    config: Config,
    optimiser: optax.GradientTransformation,
    batch: Batch,
    axis_name: str | None,
) -> tuple[NetworkState, NetworkState, Measurements]:
    """The student moves alone; the teacher's loss is measured, and its latent is what the student is pulled to."""
    targets = make_targets(batch["label"], config)
    teacher = segment(networks.teacher, state.teacher.params, config.teacher, config.loss, batch, targets, axis_name)
    grads, terms = _student_gradient(state.student.params, teacher, networks, config, batch, targets, axis_name)
    student, norm = descend(state.student, mean_over(grads, axis_name), optimiser)
    return state.teacher, student, {**named("teacher", teacher.measurements), **terms, "student/gradient_norm": norm}


def _teacher_gradient(
    params: Params, networks: Networks, config: Config, batch: Batch, targets: Targets, axis_name: str | None
) -> tuple[Params, Seen]:
    """Of the teacher's own loss; and what it made of the batch."""

    def loss(params: Params) -> tuple[Float[Array, ""], Seen]:
        seen = segment(networks.teacher, params, config.teacher, config.loss, batch, targets, axis_name)
        return seen.loss, seen

    return jax.grad(loss, has_aux=True)(params)


def _student_gradient(
    params: Params,
    teacher: Seen,
    networks: Networks,
    config: Config,
    batch: Batch,
    targets: Targets,
    axis_name: str | None,
) -> tuple[Params, Measurements]:
    """Of the student's own loss and the pull towards the teacher's latent; and their terms."""

    def loss(params: Params) -> tuple[Float[Array, ""], Measurements]:
        seen = segment(networks.student, params, config.student, config.loss, batch, targets, axis_name)
        pull, parts = distillation_loss(networks, params, config, teacher.bottleneck, seen.bottleneck, axis_name)
        return seen.loss + pull, {**named("student", seen.measurements), **parts}

    return jax.grad(loss, has_aux=True)(params)


_UPDATES = {"joint": joint_update, "alternating": alternating_update, "student": student_update}


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
            counts.append(region_counts(found_regions(logits[0], config.outputs), region_truth(batch["label"])))
        total = jnp.stack(counts)
        return {"counts": total if axis_name is None else lax.psum(total, axis_name)}

    return step


def region_counts(found: Bool[Array, "n d h w r"], truth: Bool[Array, "n d h w r"]) -> Float[Array, "r 3"]:
    """[region] × [true positives, false positives, false negatives] in voxels, over the batch."""
    counts = [(found & truth).sum((0, 1, 2, 3)), (found & ~truth).sum((0, 1, 2, 3)), (~found & truth).sum((0, 1, 2, 3))]
    return jnp.stack(counts, axis=-1).astype(jnp.float32)
