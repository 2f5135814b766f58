"""The state that a training step changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from kd_jax.config.schema import TEACHER
from kd_jax.models.protocol import Params
from kd_jax.objective.joint import Objective, init_params
from kd_jax.training.optimiser import make_optimiser, make_schedule


@no_type_check  # JAX also builds it from shapes, shardings and descriptions of arguments
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NetworkState:
    """One network: parameters ({"network": …}, and a student's {"terms": …}) and optimiser state."""

    params: Params
    optimiser: Any


@no_type_check  # JAX also builds it from shapes, shardings and descriptions of arguments
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The number of steps done, the teacher, and the students by name."""

    step: Int32[Array, ""]
    teacher: NetworkState
    students: Mapping[str, NetworkState]

    @property
    def networks(self) -> Mapping[str, NetworkState]:
        """Teacher and students by name."""
        return {TEACHER: self.teacher, **self.students}


def init_state(objective: Objective) -> TrainState:
    """State at step 0, drawn from the run's seed; another backend or compiler may draw otherwise."""
    config = objective.config
    optimiser = make_optimiser(config.optimiser, make_schedule(config))

    @jax.jit  # operator by operator it takes many times as long
    def init(key: Array) -> TrainState:
        teacher, students = init_params(objective, key)
        return TrainState(
            jnp.zeros((), jnp.int32),
            NetworkState(teacher, optimiser.init(teacher)),
            {name: NetworkState(params, optimiser.init(params)) for name, params in students.items()},
        )

    # XLA:CPU takes seconds to compile each draw of the default generator, a fraction of one for this.
    return init(jax.random.key(config.seed, impl="rbg"))
