"""The pure training step of a run: one compiled program that updates every network and names its device axis."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from kd_jax.config.schema import TEACHER
from kd_jax.models.build import select_modalities
from kd_jax.models.outputs import found_regions, region_truth
from kd_jax.models.protocol import Params
from kd_jax.objective.collectives import mean_over, sum_over
from kd_jax.objective.joint import (
    Batch,
    Objective,
    Selected,
    joint_objective,
    student_objective,
    targets_of,
    teacher_objective,
)
from kd_jax.objective.supervised import Measurements, Targets
from kd_jax.training.optimiser import make_optimiser, make_schedule
from kd_jax.training.state import NetworkState, TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Measurements]]
Gradients = Mapping[str, Params]
"""Gradients of the students, by name."""
Update = tuple[NetworkState, Gradients, Measurements]
"""The teacher after the step, the gradients of the students, and the measurements."""


def make_train_step(objective: Objective) -> TrainStep:
    """The step of a run: (state, this device's share of the batch) to (state, measurements).

    The batch is image [N, D, H, W, 4] float32 and label [N, D, H, W] integer classes. Gradients and
    measurements are means over the objective's axis; state and measurements leave equal on every device.
    """
    config = objective.config
    schedule = make_schedule(config)
    optimiser = make_optimiser(config.optimiser, schedule)
    update = _UPDATES[config.distillation.update]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        teacher, gradients, measurements = update(objective, optimiser, state, batch)
        students = {}
        for name, gradient in gradients.items():
            students[name], norm = descend(objective, optimiser, name, state.students[name], gradient)
            measurements |= norm
        measurements = {**mean_over(measurements, objective.axis_name), "learning_rate": schedule(state.step)}
        return TrainState(state.step + 1, teacher, students), measurements

    return step


def _joint_update(
    objective: Objective, optimiser: optax.GradientTransformation, state: TrainState, batch: Batch
) -> Update:
    """Updates all networks at once, by the gradient of the joint objective."""
    gradient = _in_turn if objective.config.distillation.stop_gradient else _together
    (of_teacher, of_students), measurements = gradient(objective, state, batch)
    teacher, norm = descend(objective, optimiser, TEACHER, state.teacher, of_teacher)
    return teacher, of_students, measurements | norm


def _alternating_update(
    objective: Objective, optimiser: optax.GradientTransformation, state: TrainState, batch: Batch
) -> Update:
    """Updates the teacher first; the students then follow the updated teacher, which is held still."""
    targets = targets_of(objective, batch)
    gradient, (_, measured) = _teacher_gradient(objective, state.teacher.params, batch, targets)
    teacher, norm = descend(objective, optimiser, TEACHER, state.teacher, gradient)
    _, of_students, measurements = _student_update(objective, optimiser, replace(state, teacher=teacher), batch)
    # The teacher's measurements belong to the parameters that its gradient was taken at.
    return teacher, of_students, measurements | measured | norm


def _student_update(
    objective: Objective, optimiser: optax.GradientTransformation, state: TrainState, batch: Batch
) -> Update:
    """Updates the students alone; the teacher is evaluated for its loss and for the terms."""
    targets = targets_of(objective, batch)
    _, (selected, measurements) = teacher_objective(objective, state.teacher.params, batch, targets)
    of_students, parts = _student_gradients(objective, state, selected, batch, targets)
    return state.teacher, of_students, measurements | parts


_UPDATES: Mapping[str, Callable[..., Update]] = {
    "joint": _joint_update,
    "alternating": _alternating_update,
    "student": _student_update,
}


def _together(objective: Objective, state: TrainState, batch: Batch) -> tuple[tuple[Params, Gradients], Measurements]:
    """The gradient of the whole sum at once, which is needed if terms move the teacher."""
    params = state.teacher.params, {name: student.params for name, student in state.students.items()}
    return jax.grad(lambda p: joint_objective(objective, p, batch, state.step), has_aux=True)(params)


def _in_turn(objective: Objective, state: TrainState, batch: Batch) -> tuple[tuple[Params, Gradients], Measurements]:
    """The same gradient if no student moves the teacher: one network after the other.

    The activations of one network are freed before those of the next are made, which halves the memory of a step with
    one student. The barrier keeps the compiler from overlapping them again.
    """
    targets = targets_of(objective, batch)
    teacher, (selected, measurements) = _teacher_gradient(objective, state.teacher.params, batch, targets)
    teacher, selected, measurements, batch, targets = lax.optimization_barrier(
        (teacher, selected, measurements, batch, targets)
    )
    students, parts = _student_gradients(objective, state, selected, batch, targets)
    return (teacher, students), measurements | parts


def _teacher_gradient(
    objective: Objective, params: Params, batch: Batch, targets: Targets
) -> tuple[Params, tuple[Selected, Measurements]]:
    return jax.grad(lambda p: teacher_objective(objective, p, batch, targets), has_aux=True)(params)


def _student_gradients(
    objective: Objective, state: TrainState, selected: Selected, batch: Batch, targets: Targets
) -> tuple[Gradients, Measurements]:
    """Gradients of every student's part of the objective, one student after the other."""
    gradients: dict[str, Params] = {}
    measurements: Measurements = {}
    for name, student in state.students.items():
        if gradients:  # one set of activations at a time, as between teacher and student
            gradients, measurements, selected, batch, targets = lax.optimization_barrier(
                (gradients, measurements, selected, batch, targets)
            )
        loss = partial(student_objective, objective, name)
        gradients[name], parts = jax.grad(loss, has_aux=True)(student.params, selected, batch, targets, state.step)
        measurements |= parts
    return gradients, measurements


def descend(
    objective: Objective,
    optimiser: optax.GradientTransformation,
    name: str,
    state: NetworkState,
    gradient: Params,
) -> tuple[NetworkState, Measurements]:
    """One optimiser step of one network by the mean of its gradient over the devices; also returns that mean's norm."""
    gradient = mean_over(gradient, objective.axis_name)
    updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.params)
    moved = NetworkState(optax.apply_updates(state.params, updates), optimiser_state)
    return moved, {f"{name}/gradient_norm": optax.tree.norm(gradient)}


def make_validation_step(
    objective: Objective,
) -> Callable[[TrainState, Batch], Mapping[str, Float[Array, "networks 3 3"]]]:
    """Counts for nnU-Net's pseudo-Dice: (state, batch) to {"counts": [network, region, (TP, FP, FN)]}.

    Networks are those of `Objective.networks`, in that order; regions are WT, TC, ET; counts are voxels summed over
    the batch and the devices.
    """
    config = objective.config

    def step(state: TrainState, batch: Batch) -> Mapping[str, Float[Array, "networks 3 3"]]:
        counts = []
        for name, module in objective.networks.items():
            image = select_modalities(batch["image"], config.networks[name])
            output = module.apply({"params": state.networks[name].params["network"]}, image)
            counts.append(region_counts(found_regions(output.logits[0], config.outputs), region_truth(batch["label"])))
        return {"counts": sum_over(jnp.stack(counts), objective.axis_name)}

    return step


def region_counts(found: Bool[Array, "n d h w r"], truth: Bool[Array, "n d h w r"]) -> Float[Array, "r 3"]:
    """[region] × [true positives, false positives, false negatives] in voxels, over the batch."""
    counts = [(found & truth).sum((0, 1, 2, 3)), (found & ~truth).sum((0, 1, 2, 3)), (~found & truth).sum((0, 1, 2, 3))]
    return jnp.stack(counts, axis=-1).astype(jnp.float32)
