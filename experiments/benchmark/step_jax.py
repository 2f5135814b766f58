"""Our side of the joint training step, as a run takes it: from a batch on the host to updated parameters."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from experiments.benchmark.step_task import draw_batch, make_config
from experiments.benchmark.workload import Workload
from kd_jax.config.schema import Config
from kd_jax.nnunet.weights import convert_weights
from kd_jax.objective.joint import build_objective
from kd_jax.training.devices import AXIS, map_over_devices, replicate, shard
from kd_jax.training.state import NetworkState, TrainState, init_state
from kd_jax.training.step import make_train_step


def joint_step(*, size: str, precision: str, seed: int, weights: str | None = None) -> Workload:
    """A step on all local devices, each with its own copy of the batch; its value is the joint loss.

    Args:
      size: one of `step_task.SIZES`.
      precision: float32 or bfloat16.
      seed: of the batch, and of the weights where none are given.
      weights: file in which `pytorch.joint_step` saved the first weights; None draws them.
    """
    config = make_config(size, precision, seed)
    objective = build_objective(config, AXIS)
    state = init_state(objective)
    if weights is not None and Path(weights).exists():
        state = _with_weights(state, config, Path(weights))
    state = replicate(state)
    step = map_over_devices(make_train_step(objective), donate=True)
    image, labels = (np.stack([part] * jax.local_device_count()) for part in draw_batch(config, seed))

    def run() -> float:
        nonlocal state
        state, measurements = step(state, shard({"image": image, "label": labels}))
        values = {name: float(value) for name, value in jax.device_get(dict(measurements)).items()}
        jax.block_until_ready(state)
        pull = config.distillation.weight * values["student/barlow_twins/loss"]
        return values["teacher/loss"] + values["student/loss"] + pull

    return Workload(run, device_memory)


def _with_weights(state: TrainState, config: Config, weights: Path) -> TrainState:
    saved = np.load(weights)

    def loaded(name: str, network: NetworkState) -> NetworkState:
        prefix = f"{name}."
        tensors = {key.removeprefix(prefix): saved[key] for key in saved.files if key.startswith(prefix)}
        return replace(network, params={"network": convert_weights(tensors, config.networks[name])})

    students = {name: loaded(name, student) for name, student in state.students.items()}
    return replace(state, teacher=loaded("teacher", state.teacher), students=students)


def device_memory() -> int | None:
    """Peak bytes of the first accelerator, or None on a CPU."""
    statistics = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    return None if statistics is None else statistics.get("peak_bytes_in_use")
