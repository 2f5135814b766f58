"""Makes the folder of a new run, opens the folder of one to be continued, and records the environment."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from data_pipeline.errors import InputError
from data_pipeline.files import ensure_writable, write_atomically
from kd_jax import __version__
from kd_jax.config.load import dump_config, load_config
from kd_jax.config.schema import Config
from kd_jax.config.settings import config_values
from kd_jax.runs.split import Fold
from kd_jax.runs.split_files import SplitRecord, joined_name, write_split
from kd_jax.runs.store import has_checkpoint

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
MAY_CHANGE = ("data.root", "data.splits", "data.cache", "data.workers", "train.save_every")
"""Settings that do not change the numbers of a run, so they may change when it is resumed."""
_PACKAGES = "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy", "nibabel"


def default_run(config: Config) -> Path:
    """A folder for a new run: runs/DATA_SUBSET_TIME."""
    data = "phantom" if config.data.root is None else joined_name(config.data.root)
    students = list(config.students) or config.student.modalities
    return Path("runs") / f"{data}_{'-'.join(students)}_{datetime.now():%Y%m%d-%H%M%S}"


def check_new_run(run: Path, *, overwrite: bool) -> None:
    """Checks that a new run may go to this folder, before its cases are prepared. Leaves no trace.

    Raises:
      InputError: the folder holds a run, or something else, or cannot be written.
    """
    if run.exists() and not run.is_dir():
        raise InputError(f"{run}: is a file; give a folder for the run")
    if run.is_dir() and any(run.iterdir()):
        if not (run / CONFIG_FILE).exists():
            raise InputError(f"{run}: holds files but no run; give an empty or new folder")
        if not overwrite:
            raise InputError(
                f"{run}: holds a run; continue it with --resume, replace it with --overwrite, or give another --run"
            )
    ensure_writable(run)


def open_run(
    run: Path,
    config: Config,
    record: SplitRecord,
    folds: Sequence[Fold],
    command: Sequence[str],
    *,
    overwrite: bool,
) -> None:
    """Makes the folder of a new run and writes its configuration, environment, split and folds.

    Raises:
      InputError: as `check_new_run`.
    """
    check_new_run(run, overwrite=overwrite)
    if run.is_dir():
        _clear(run)
    write_atomically(run / CONFIG_FILE, dump_config(config).encode())
    write_atomically(run / ENVIRONMENT_FILE, (json.dumps(describe_environment(command), indent=2) + "\n").encode())
    write_split(run, record, folds)


def resume_run(run: Path, overrides: Mapping[str, Any]) -> Config:
    """The configuration of a run to be continued: its own, with settings that may change.

    Raises:
      InputError: there is nothing to continue, or an override would change the run.
    """
    _require_resumable(run)
    return accept_config(run, load_config(run / CONFIG_FILE, overrides))


def accept_config(run: Path, config: Config) -> Config:
    """A configuration with which a run may be continued.

    Raises:
      InputError: there is nothing to continue, or the configuration would change the run.
    """
    _require_resumable(run)
    old, new = config_values(load_config(run / CONFIG_FILE)), config_values(config)
    changed = [key for key in old if old[key] != new[key] and key not in MAY_CHANGE]
    if changed:
        raise InputError(
            f"{', '.join(changed)}: cannot change when resuming {run}, which was started with other values; "
            f"allowed: {', '.join(MAY_CHANGE)}"
        )
    return config


def _require_resumable(run: Path) -> None:
    if not (run / CONFIG_FILE).is_file():
        raise InputError(f"{run}: not a run folder (no {CONFIG_FILE} in it); give the folder that training printed")
    if not has_checkpoint(run, "latest"):
        raise InputError(f"{run}: has no checkpoint to resume from; start again with --overwrite")


def describe_environment(command: Sequence[str]) -> dict[str, Any]:
    """Everything but the configuration that a run depends on: versions, devices, the command that started it."""
    devices = jax.devices()
    return {
        "kd_jax": __version__,
        "commit": _commit(),
        "command": list(command),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "packages": {name: version(name) for name in _PACKAGES},
        "devices": [f"{device.platform} {device.device_kind}" for device in devices],
        "hosts": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _clear(run: Path) -> None:
    for entry in run.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _commit() -> str | None:
    file = Path(__file__).resolve()
    git = ["git", "-C", str(file.parent)]
    try:
        # An environment inside some other repository is not a checkout of this one.
        subprocess.run([*git, "ls-files", "--error-unmatch", file.name], capture_output=True, check=True)
        command = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
