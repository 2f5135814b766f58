"""The configuration of a new run, out of everything that a person may give."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax.config.load import load_config
from kd_jax.config.schema import Config
from kd_jax.objective.joint import prepare_config
from kd_jax.planning.plan_file import read_plan
from kd_jax.runs.restore import Restored
from kd_jax.training.teacher import check_teacher, load_teacher, teacher_settings


def configure(
    file: Path | None, plan: Path | None, teacher_from: Path | None, settings: Mapping[str, Any]
) -> tuple[Config, Restored | None]:
    """The file, the plan over it, the given teacher over both, and single settings over all.

    Returns:
      The configuration, with the settings of all its terms written out, and the teacher of the run `teacher_from`.

    Raises:
      InputError: one of them cannot be read or is impossible, or they do not fit together.
    """
    layers = [] if plan is None else [read_plan(plan)]
    teacher = None if teacher_from is None else load_teacher(teacher_from)
    if teacher is not None:
        layers.append({"teacher": teacher_settings(teacher)})
    config = load_config(file, settings, layers)
    check_teacher(config, teacher, teacher_from)
    return prepare_config(config), teacher
