"""Run folders with networks of a few parameters, written by the real checkpoint code."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from data_pipeline.conventions import CLASSES, REGION_CLASSES
from kd_jax.config.schema import Config, DataConfig, LossConfig, StudentConfig, TeacherConfig
from kd_jax.objective.joint import build_objective
from kd_jax.runs.split_files import SplitRecord
from kd_jax.runs.store import Checkpoints
from kd_jax.training.checkpoints import save_best
from kd_jax.training.state import init_state

STEP = 7
FEATURES = 2, 3


def write_run(
    run: Path,
    *,
    student: str | int,
    teacher: str | int = "background",
    spacing: float = 1.0,
    patch: int = 8,
    modalities: tuple[str, ...] = ("t1ce", "flair"),
    root: Path | None = None,
    loss: str = "dice_ce",
    reversed_axes: tuple[str, ...] = (),
) -> Path:
    """A run whose networks say one class everywhere (a name), or have random weights (a seed)."""
    config = Config(
        data=DataConfig(root=root, patch=(patch,) * 3, spacing=(spacing,) * 3),
        teacher=TeacherConfig(features=FEATURES),
        student=StudentConfig(features=FEATURES, modalities=modalities, reversed_axes=reversed_axes),
        loss=LossConfig(segmentation=loss),
    )
    return _write(run, config, {"student": student, "teacher": teacher})


def write_run_of_many(
    run: Path, students: Mapping[str, tuple[str | int, tuple[str, ...]]], teacher: str | int = "background"
) -> Path:
    """A run of several students: what each says (a class, or a seed), and its modalities, by name."""
    tables = {name: StudentConfig(features=FEATURES, modalities=seen) for name, (_, seen) in students.items()}
    data = DataConfig(patch=(8, 8, 8), spacing=(1.0, 1.0, 1.0))
    config = Config(data=data, teacher=TeacherConfig(features=FEATURES), students=tables)
    return _write(run, config, {"teacher": teacher, **{name: says for name, (says, _) in students.items()}})


def _write(run: Path, config: Config, networks: Mapping[str, str | int]) -> Path:
    shapes = jax.eval_shape(lambda: init_state(build_objective(config, None)))
    state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    for name, content in networks.items():
        params = state.networks[name].params
        params["network"] = _params(params["network"], content)
    with Checkpoints(run) as checkpoints:
        save_best(checkpoints, jax.device_put(state), {"step": STEP}, config, frozenset(networks))
    return run


def write_split(run: Path, root: Path, train: list[str], validation: list[str]) -> None:
    SplitRecord([str(root)], None, False, train, validation).write(run)


def _params(zeros, content):
    if isinstance(content, int):
        rng = np.random.default_rng(content)
        return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), zeros)
    index = CLASSES.index(content)
    if zeros["head_0"]["bias"].shape == (len(CLASSES),):
        bias = np.arange(len(CLASSES)) == index
    else:
        bias = [1 if index in classes else -1 for classes in REGION_CLASSES.values()]
    return {**zeros, "head_0": {**zeros["head_0"], "bias": np.float32(bias)}}
