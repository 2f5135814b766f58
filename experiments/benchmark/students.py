"""Compares one teacher with three students in one step with the three runs that would train them one by one."""

import statistics
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from data_pipeline.conventions import Modality
from experiments.benchmark.figures import Figure, Options, Part
from experiments.benchmark.sides import Measured, Side, compare
from experiments.benchmark.step_task import draw_batch
from experiments.benchmark.workload import Workload
from kd_jax.config.schema import Config, DataConfig, StudentConfig, TeacherConfig
from kd_jax.objective.joint import build_objective
from kd_jax.training.devices import AXIS, map_over_devices, replicate, shard
from kd_jax.training.state import init_state
from kd_jax.training.step import make_train_step

STUDENTS: Mapping[str, tuple[Modality, ...]] = {"flair_t1ce": ("flair", "t1ce"), "t2": ("t2",), "t1": ("t1",)}
TOGETHER = "one teacher, three students"
SIZES = {"demo": ((8, 16, 32, 64), 48, 5), "small": ((4, 6), 16, 2)}
"""Features of every network, patch size in voxels, and steps of a timed run."""


def train_steps(*, students: Sequence[str], size: str, seed: int) -> Workload:
    """Some steps in a row on all local devices; the value is the sum of the students' losses at the last.

    Args:
      students: those of `STUDENTS` that this run trains.
      size: one of `SIZES`.
      seed: of weights and batch.
    """
    features, patch, steps = SIZES[size]
    config = Config(
        seed=seed,
        data=DataConfig(patch=(patch,) * 3),
        teacher=TeacherConfig(features=features),
        students={name: StudentConfig(modalities=STUDENTS[name], features=features) for name in students},
    )
    objective = build_objective(config, AXIS)
    state = replicate(init_state(objective))
    step = map_over_devices(make_train_step(objective), donate=True)
    image, labels = (np.stack([part] * jax.local_device_count()) for part in draw_batch(config, seed))

    def run() -> float:
        nonlocal state
        for _ in range(steps):
            state, measurements = step(state, shard({"image": image, "label": labels}))
        jax.block_until_ready(state)
        return sum(float(measurements[f"{name}/loss"]) for name in students)

    return Workload(run)


def measure(options: Options) -> Part:
    """Seconds of a step of all, and of the steps of the three runs together."""
    size = "small" if options.small else "demo"
    features, patch, steps = SIZES[size]
    runs = {TOGETHER: list(STUDENTS), **{f"teacher and {name}": [name] for name in STUDENTS}}
    factory = "experiments.benchmark.students:train_steps"
    sides = {
        name: Side(factory, {"students": students, "size": size, "seed": options.seed})
        for name, students in runs.items()
    }
    measured = compare(sides, options.rounds)
    together, one_by_one = measured.pop(TOGETHER), list(measured.values())
    figure = Figure(
        f"step of one teacher and three students, {' '.join(map(str, features))} features, {patch}³, batch 2",
        "s",
        together.median / steps,
        {"three runs": sum(run.median for run in one_by_one) / steps},
        _ratio(together, one_by_one),
    )
    return Part("students", [figure], _notes(together, one_by_one))


def _ratio(together: Measured, one_by_one: Sequence[Measured]) -> float:
    """The median over rounds of the three runs' time by ours."""
    rounds = zip(together.seconds, *(run.seconds for run in one_by_one), strict=True)
    return statistics.median(sum(runs) / ours for ours, *runs in rounds)


def _notes(together: Measured, one_by_one: Sequence[Measured]) -> list[str]:
    alone = sum(run.first_value or 0.0 for run in one_by_one)
    compiling = sum(run.first for run in one_by_one)
    return [
        f"sum of the students' losses after the first steps: {together.first_value:.6f} together, {alone:.6f} in three "
        "runs; that each student ends bitwise the same is a test",
        f"first steps with compilation: {together.first:.1f} s together, {compiling:.1f} s in three runs",
    ]
