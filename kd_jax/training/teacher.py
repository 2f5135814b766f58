"""A trained teacher from another run, which may have been imported from nnU-Net."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data_pipeline.errors import InputError
from kd_jax.config.schema import Config, TeacherConfig
from kd_jax.runs.restore import Restored, restore_network


def load_teacher(run: Path) -> Restored:
    """The teacher of a run, from its best checkpoint.

    Raises:
      InputError: `run` is no run, or its checkpoint holds no teacher.
    """
    return restore_network(run, "teacher", "best")


def teacher_settings(teacher: Restored) -> Mapping[str, Any]:
    """The table [teacher] of the run that is to start with this teacher."""
    return TypeAdapter(TeacherConfig).dump_python(teacher.config.teacher, mode="json")


def check_teacher(config: Config, teacher: Restored | None, run: Path | None) -> None:
    """Checks that a new run can start with this teacher.

    Args:
      config: the new run's.
      teacher: `load_teacher(run)`; None if no teacher was given.
      run: folder of the teacher's run, for messages.

    Raises:
      InputError: the run needs a teacher and has none, or the networks, their outputs or voxel sizes differ.
    """
    if teacher is None:
        if config.distillation.update == "student":
            raise InputError(
                "distillation.update = student holds the teacher still, so it needs a trained one: give its run with "
                "--teacher-from RUN, or use update = joint"
            )
        return
    theirs = teacher.config
    if config.teacher != theirs.teacher:
        names = [
            name for name in vars(config.teacher) if getattr(config.teacher, name) != getattr(theirs.teacher, name)
        ]
        raise InputError(
            f"--teacher-from {run}: brings its own teacher.{names[0]}, {getattr(theirs.teacher, names[0])}; "
            "leave teacher.* out of the command line"
        )
    if config.outputs != theirs.outputs:
        raise InputError(
            f"--teacher-from {run}: its outputs are {theirs.outputs}, but loss.segmentation = "
            f"{config.loss.segmentation} trains {config.outputs}; use loss.segmentation = {theirs.loss.segmentation}"
        )
    if config.data.spacing != theirs.data.spacing:
        raise InputError(
            f"--teacher-from {run}: its teacher works at {theirs.data.spacing} mm, data.spacing is "
            f"{config.data.spacing}; use the teacher's spacing"
        )
