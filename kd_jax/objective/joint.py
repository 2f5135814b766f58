"""The objective of a training step; no other file writes it down.

Choi et al. 2023 train teacher and student in the same iteration, each with its deep-supervised segmentation loss, and
pull their outputs together with distillation terms, above all Barlow Twins between their bottlenecks:

    L = L_seg(teacher) + Σ_students [ L_seg(student) + w Σ_terms w_term L_term(teacher, student) ]

The sum is split into one part per network. If the terms do not move the teacher, each parameter has a gradient in only
one part, and `kd_jax.training.step` differentiates the parts one after the other, which saves memory.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from data_pipeline.errors import InputError
from kd_jax.config.schema import TEACHER, Config, NetworkConfig
from kd_jax.models.build import build_network, select_modalities
from kd_jax.models.protocol import Network, NetworkOutput, Params
from kd_jax.objective.distillation import Term, complete_terms, terms_of
from kd_jax.objective.supervised import Measurements, Targets, make_targets, supervised_loss
from kd_jax.objective.terms.base import TermContext, weight_at

Batch = Mapping[str, Array | np.ndarray]
"""image [N, D, H, W, 4] float32, label [N, D, H, W] integer classes."""
Selected = Mapping[str, Mapping[str, Any]]
"""The parts of the teacher's output that terms compare, by student and term."""


@dataclass(frozen=True, eq=False)
class Objective:
    """The networks and terms of a run.

    Attributes:
      config: the run's.
      teacher: the teacher's module.
      students: modules of the students, by name.
      terms: terms that are on, by student.
      axis_name: mapped axis of the devices, or None.
    """

    config: Config
    teacher: Network
    students: Mapping[str, Network]
    terms: Mapping[str, tuple[Term, ...]]
    axis_name: str | None

    @property
    def networks(self) -> Mapping[str, Network]:
        """All modules by name, the teacher first."""
        return {TEACHER: self.teacher, **self.students}


def build_objective(config: Config, axis_name: str | None) -> Objective:
    """Networks and terms of a run whose step names its device axis `axis_name`.

    Raises:
      InputError: an architecture or a term is not known, or cannot be built from its settings.
    """
    students = {name: build_network(student, config) for name, student in config.every_student.items()}
    terms = {name: terms_of(config, name) for name in students}
    return Objective(config, build_network(config.teacher, config), students, terms, axis_name)


def prepare_config(config: Config) -> Config:
    """The configuration as a run keeps it: its objective can be built, and every setting of its terms is written out.

    Nothing is computed: networks are traced for one patch each, for the shapes that terms are to compare.

    Raises:
      InputError: as `build_objective`, or a term cannot compare these networks.
    """
    config = complete_terms(config)
    objective = build_objective(config, None)
    for name, terms in objective.terms.items():
        for term in terms:
            if not term.has_check:
                continue
            teacher, student = (
                _selected_shape(objective, who, _params_shape(objective, who), term) for who in (TEACHER, name)
            )
            try:
                term.check(teacher, student, config.train)
            except ValueError as error:
                raise InputError(f"distillation.{term.name}, {name}: {error}") from error
    return config


def init_params(objective: Objective, key: PRNGKeyArray) -> tuple[Params, Mapping[str, Params]]:
    """Initial parameters: the teacher's {"network": …}, and {"network": …, "terms": {TERM: …}} for each student.

    Students without a seed of their own start from the same draw: two of one architecture begin equal, and equal to
    the student of a run that has no other. Parameters of terms belong to the student and are updated with it.
    """
    config = objective.config
    teacher = {"network": _init_network(objective.teacher, config.teacher, config, _keys(key)[0])}
    students = {}
    for name, module in objective.students.items():
        settings = config.every_student[name]
        # The same generator as the run's own key, so that a student's seed draws what the run's seed would.
        own = key if settings.seed is None else jax.random.key(settings.seed, impl=jax.random.key_impl(key))
        params = {"network": _init_network(module, settings, config, _keys(own)[1])}
        if terms := _init_terms(objective, name, teacher, params, _keys(own)[2]):
            params["terms"] = terms
        students[name] = params
    return teacher, students


def teacher_objective(
    objective: Objective, params: Params, batch: Batch, targets: Targets
) -> tuple[Float[Array, ""], tuple[Selected, Measurements]]:
    """The teacher's part of the sum; also the parts of its output that terms compare, and its measurements."""
    output, loss, measurements = _segment(objective, TEACHER, params, batch, targets)
    return loss, (_select(objective, output), _named(TEACHER, measurements))


def student_objective(
    objective: Objective,
    name: str,
    params: Params,
    selected: Selected,
    batch: Batch,
    targets: Targets,
    step: Int[Array, ""] | int,
) -> tuple[Float[Array, ""], Measurements]:
    """One student's part of the sum, and its measurements.

    Args:
      objective: the run's.
      name: the student's name.
      params: the student's parameters.
      selected: from `teacher_objective`.
      batch: this device's share.
      targets: from `targets_of`.
      step: number of the step, for schedules.
    """
    config = objective.config
    output, loss, measurements = _segment(objective, name, params, batch, targets)
    if config.distillation.stop_gradient:
        selected = lax.stop_gradient(selected)
    pull = None
    for term in objective.terms[name]:
        context = TermContext(targets, params.get("terms", {}).get(term.name, {}), objective.axis_name)
        value, parts = term.loss(selected[name][term.name], term.select(output), context)
        weighted = config.distillation_of(name).weight * weight_at(term.settings, step, config.train) * value
        pull = weighted if pull is None else pull + weighted
        measurements |= {f"{term.name}/loss": value, **{f"{term.name}/{part}": v for part, v in parts.items()}}
    return loss if pull is None else loss + pull, _named(name, measurements)


def joint_objective(
    objective: Objective,
    params: tuple[Params, Mapping[str, Params]],
    batch: Batch,
    step: Int[Array, ""] | int,
) -> tuple[Float[Array, ""], Measurements]:
    """The whole sum for one batch, and all measurements."""
    targets = targets_of(objective, batch)
    total, (selected, measurements) = teacher_objective(objective, params[0], batch, targets)
    for name, student in params[1].items():
        loss, parts = student_objective(objective, name, student, selected, batch, targets, step)
        total, measurements = total + loss, measurements | parts
    return total, measurements


def targets_of(objective: Objective, batch: Batch) -> Targets:
    """Targets of a batch for the levels of all networks."""
    strides = chain.from_iterable(module.level_strides for module in objective.networks.values())
    return make_targets(batch["label"], strides, objective.config.loss)


def _segment(
    objective: Objective, name: str, params: Params, batch: Batch, targets: Targets
) -> tuple[NetworkOutput, Float[Array, ""], Measurements]:
    """Runs one network on the modalities it sees of a batch, and measures its deep-supervised loss."""
    image = select_modalities(batch["image"], objective.config.networks[name])
    output = objective.networks[name].apply({"params": params["network"]}, image)
    loss, measurements = supervised_loss(output.logits, targets, objective.config.loss, objective.axis_name)
    return output, loss, measurements


def _select(objective: Objective, output: NetworkOutput) -> Selected:
    return {name: {term.name: term.select(output) for term in terms} for name, terms in objective.terms.items()}


def _keys(key: PRNGKeyArray) -> Key[Array, "4"]:
    """Keys of the teacher, of a student and of its terms. The fourth is unused; without it draws would change."""
    return jax.random.split(key, 4)


def _init_network(module: Network, settings: NetworkConfig, config: Config, key: PRNGKeyArray) -> Params:
    # The compiler drops the forward pass that `init` also runs.
    image = jnp.zeros((1, *config.data.patch, len(settings.channels)))
    return jax.jit(module.init)(key, image)["params"]


def _init_terms(
    objective: Objective, name: str, teacher: Params, student: Params, key: PRNGKeyArray
) -> Mapping[str, Params]:
    """Parameters of one student's terms; terms without parameters are left out."""
    found = {}
    for term in objective.terms[name]:
        shapes = [_selected_shape(objective, n, p, term) for n, p in ((TEACHER, teacher), (name, student))]
        # The key depends on the term's name, so that a term draws the same whichever others are on.
        if params := term.init(jax.random.fold_in(key, zlib.crc32(term.name.encode())), *shapes):
            found[term.name] = params
    return found


def _params_shape(objective: Objective, name: str) -> Params:
    """Shapes of one network's parameters, as `init_params` makes them."""
    return {
        "network": jax.eval_shape(lambda: objective.networks[name].init(jax.random.key(0), _patch(objective, name)))[
            "params"
        ]
    }


def _patch(objective: Objective, name: str) -> Float[Array, "1 d h w c"]:
    """One empty patch of the modalities that a network sees."""
    config = objective.config
    return jnp.zeros((1, *config.data.patch, len(config.networks[name].channels)))


def _selected_shape(objective: Objective, name: str, params: Params, term: Term) -> Any:
    """Shapes of what a term selects of one network's output for a single patch."""
    module = objective.networks[name]
    return jax.eval_shape(
        lambda p, image: term.select(module.apply({"params": p}, image)), params["network"], _patch(objective, name)
    )


def _named(network: str, measurements: Measurements) -> Measurements:
    """Measurements under a network's name: `student/ce`."""
    return {f"{network}/{name}": value for name, value in measurements.items()}
