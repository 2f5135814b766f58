"""Trains a run from its configuration: what `kd-jax train` and `kd_jax.fit` do once the configuration is known."""

import sys
from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path

from data_pipeline.errors import InputError
from kd_jax.config.schema import Config
from kd_jax.models.protocol import Params
from kd_jax.objective.joint import prepare_config
from kd_jax.runs.folder import accept_config, check_new_run, open_run
from kd_jax.runs.split_files import resume_split
from kd_jax.training.cases import gather_cases
from kd_jax.training.devices import local_batch, on_first_host
from kd_jax.training.loop import train


def fit(config: Config, run: str | PathLike[str], *, resume: bool = False, overwrite: bool = False) -> Path:
    """Trains a teacher and its students, as `kd-jax train` does with the same settings.

    It has this name because `kd_jax.train` is the module of the command. Progress goes to the terminal, everything else
    to the run folder. On several hosts, call `jax.distributed.initialize` first. Workers of the loader
    (`data.workers` above 0) start Python anew, so a script then needs `if __name__ == "__main__":`.

    Args:
      config: all settings, for example from `kd_jax.load_config`.
      run: folder of the run.
      resume: continue the run in that folder from its latest checkpoint. Only settings that change no number may differ
        from those it was started with: where the data and the cache are, loader workers, how often it is saved.
      overwrite: start anew where the folder holds a run; that run is lost.

    Returns:
      The folder, with config.json, log.jsonl, progress.png, TensorBoard scalars and checkpoints ("best", "latest").

    Raises:
      InputError: a case or setting cannot be used, the folder holds something else, there is nothing to resume, or a
        measurement became NaN.
      KeyboardInterrupt: Ctrl-C or SIGTERM, after the step in progress was saved; go on with `resume`.

    Examples:
      >>> import kd_jax
      >>> config = kd_jax.load_config("paper", {"data.root": "/data/BraTS2021", "student.modalities": ["flair"]})
      >>> run = kd_jax.fit(config, "runs/flair")  # doctest: +SKIP
      >>> student = kd_jax.load(run)  # doctest: +SKIP
    """
    folder = Path(run)
    if resume and overwrite:
        raise InputError("resume and overwrite: one continues a run, the other deletes it; give one of them")
    config = prepare_config(config)
    if resume:
        status = continue_run(accept_config(folder, config), folder)
    else:
        status = start_run(config, folder, command=["kd_jax.fit", *sys.argv], overwrite=overwrite)
    if status:
        raise KeyboardInterrupt(f"{folder}: stopped and saved; go on with kd_jax.fit(config, run, resume=True)")
    return folder


def start_run(
    config: Config, run: Path, *, command: Sequence[str], overwrite: bool, teacher: Params | None = None
) -> int:
    """Trains a new run; returns the exit status of `loop.train`.

    Args:
      config: from `prepare_config`.
      run: its folder.
      command: what started it, for environment.json.
      overwrite: replace a run that is there.
      teacher: parameters that the teacher starts with; None draws them.

    Raises:
      InputError: as `fit`.
    """
    local_batch(config.train.batch)
    # Everything that can be refused is refused before the cases are prepared, which may take hours.
    on_first_host("run folder checked", lambda: check_new_run(run, overwrite=overwrite))
    cases = gather_cases(config)
    opened = partial(open_run, run, config, cases.record, cases.folds, command, overwrite=overwrite)
    on_first_host("run opened", opened)
    return train(config, run, cases, resume=False, teacher=teacher)


def continue_run(config: Config, run: Path) -> int:
    """Continues a run from its latest checkpoint; returns the exit status of `loop.train`.

    Args:
      config: from `resume_run` or `accept_config`.
      run: its folder.

    Raises:
      InputError: as `fit`, or the cases are not those that the run was started with.
    """
    cases = gather_cases(config)
    on_first_host("split checked", lambda: resume_split(run, cases.record, cases.folds))
    return train(config, run, cases, resume=True)
