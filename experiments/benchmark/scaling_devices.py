"""The joint step on several virtual devices of one CPU, which share its cores.

With one patch a device, n devices have the work of n steps of one device, and any extra time is the cost of
distributing it. With the same batch on more devices the operators also see other shapes, and that counts as well.
"""

import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from experiments.benchmark.figures import Figure
from experiments.benchmark.scaling_task import make_config
from experiments.benchmark.sides import Measured, Side, compare, speed_ratio
from experiments.benchmark.step_task import draw_batch
from experiments.benchmark.workload import Workload
from kd_jax.objective.joint import build_objective
from kd_jax.training.devices import AXIS, local_batch, map_over_devices, replicate, shard
from kd_jax.training.state import init_state
from kd_jax.training.step import make_train_step

THREADS = "4"
"""Threads of XLA's pool. With jax 0.10, a pool of two deadlocks when steps of several devices queue up."""


def joint_steps(*, features: Sequence[int], patch: int, batch: int, steps: int, seed: int) -> Workload:
    """Some steps in a row on all local devices, each waited for; the value is the last joint loss.

    Args:
      features: channels of each stage of both networks.
      patch: voxels along each axis.
      batch: patches over all devices.
      steps: per run.
      seed: of weights and batch.
    """
    config = make_config(features, patch, batch, seed)
    objective = build_objective(config, AXIS)
    state = replicate(init_state(objective))
    step = map_over_devices(make_train_step(objective), donate=True)
    share = jax.local_device_count(), local_batch(batch)
    image, labels = (part.reshape(*share, *part.shape[1:]) for part in draw_batch(config, seed))

    def run() -> float:
        nonlocal state
        for _ in range(steps):
            state, measurements = step(state, shard({"image": image, "label": labels}))
            jax.block_until_ready((state, measurements))
        return float(np.float64(measurements["teacher/loss"]) + np.float64(measurements["student/loss"]))

    return Workload(run)


def measure_devices(
    counts: Sequence[int], features: Sequence[int], patch: int, steps: int, rounds: int, seed: int
) -> dict[str, Measured]:
    """The same batch on each number of devices, and one patch per device on each; by `name_of`."""
    settings = {"features": features, "patch": patch, "steps": steps, "seed": seed}
    layouts = [(devices, max(counts)) for devices in counts] + [(devices, devices) for devices in counts[:-1]]
    sides = {
        name_of(devices, batch): Side(
            "experiments.benchmark.scaling_devices:joint_steps", {**settings, "batch": batch}, _environment(devices)
        )
        for devices, batch in layouts
    }
    return compare(sides, rounds)


def device_figures(counts: Sequence[int], measured: Mapping[str, Measured], steps: int, work: str) -> list[Figure]:
    """Seconds a step takes on several devices, and seconds one device needs for the same work."""

    def figure(name: str, batch: int, devices: int, one_batch: int) -> Figure:
        ours, one, times = measured[name_of(devices, batch)], measured[name_of(1, one_batch)], batch // one_batch
        peers = {"1 device" if times == 1 else f"{times} x 1 device": times * one.median / steps}
        return Figure(
            f"{name} on {devices} devices, {work}", "s", ours.median / steps, peers, times * speed_ratio(ours, one)
        )

    several, batch = list(reversed(counts[1:])), max(counts)
    return [figure("step of one patch a device", devices, devices, 1) for devices in several] + [
        figure(f"step of batch {batch}", batch, devices, batch) for devices in several
    ]


def name_of(devices: int, batch: int) -> str:
    """Name of a side."""
    return f"{devices} device{'s' * (devices > 1)}, batch {batch}"


def _environment(devices: int) -> dict[str, str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    return {"XLA_FLAGS": flags, "NPROC": THREADS, "JAX_PLATFORMS": "cpu"}
