"""Checkpoints on the disk; the only importer of Orbax.

`RUN/checkpoints/KIND/STEP` holds items that are restored one by one, so that evaluation reads one network alone:

- an item for each network, by its name: the parameters of the teacher and of every student;
- optimiser and, if terms have parameters, terms, which only training needs;
- position and config, as JSON.

KIND is "latest", from which training continues, or one of the best. A run with one student has a single "best" with all
items; a run with several has "best-NAME" for each network, with that network alone. An imported network is a run whose
best checkpoint holds a teacher and no state to train on. Saves are asynchronous and atomic: an incomplete folder is not
a checkpoint.
"""

import errno
import logging
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp
from pydantic import TypeAdapter

from data_pipeline.errors import InputError
from kd_jax.config.schema import Config, Which
from kd_jax.models.protocol import Params

Position = dict[str, Any]
"""Position of a run, as JSON values with the key "step"."""
Items = Mapping[str, Any]
"""Trees of arrays by item."""

JSON_ITEMS = "position", "config"
NOT_NETWORKS = {*JSON_ITEMS, "optimiser", "terms", "projectors"}
"""Items that hold no network. Older runs have the parameters of terms in "projectors"."""
_OS_ERROR = re.compile(r"([A-Z][\w ]*) \[os_error_code")
"""Message of Orbax's storage library where Python would raise an OSError."""
_OVERHEAD = 1_000_000
"""Most bytes of a checkpoint without its arrays: shardings, metadata, configuration."""
_RESUME = "the one before is untouched: free space or change permissions, then go on with --resume"


def best_kind(network: str | None) -> str:
    """Folder of the best checkpoint: of one network of a run with several students, or of all (None)."""
    return "best" if network is None else f"best-{network}"


class Checkpoints:
    """Writes the checkpoints of one run; a context manager, so that the last save completes."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._writers: dict[str, ocp.training.Checkpointer] = {}

    def save(self, kind: str, items: Items, position: Position, config: Config) -> None:
        """Starts a save at `position["step"]`; waits only for the previous one of the same kind.

        Args:
          kind: "latest" or from `best_kind`.
          items: arrays that nobody changes or donates until the save is done.
          position: the run's.
          config: the run's.

        Raises:
          InputError: the disk is full or read-only; the checkpoint before is untouched.
        """
        folder = _folder(self._run, kind)
        with _explained(folder):
            writer = self._writer(kind)
            writer.wait()
            _require_room(folder, items, copies=2)  # best and latest may be written before older ones are removed
            json = {"position": position, "config": _as_json(config)}
            with _quiet():
                writer.save_checkpointables_async(position["step"], {**items, **json}, force=True, overwrite=True)

    def _writer(self, kind: str) -> ocp.training.Checkpointer:
        """Opened at the first save: a run of many students has a folder for the best of each."""
        if kind not in self._writers:
            keep_one = ocp.training.preservation_policies.LatestN(1)
            self._writers[kind] = ocp.training.Checkpointer(
                _folder(self._run, kind), context=_context(), preservation_policy=keep_one, cleanup_tmp_directories=True
            )
        return self._writers[kind]

    def __enter__(self) -> Self:
        logging.getLogger("absl").addFilter(_is_not_raised)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        problems: list[InputError] = []
        for which, writer in self._writers.items():
            folder = _folder(self._run, which)
            try:
                with _explained(folder):
                    writer.close()
            except InputError as problem:
                problems.append(problem)
                # Best effort: threads of Orbax may still be writing. Leftovers are no checkpoint; resuming clears them.
                for left in folder.glob("*.orbax-checkpoint-tmp"):
                    shutil.rmtree(left, ignore_errors=True)
        logging.getLogger("absl").removeFilter(_is_not_raised)
        if problems and kind is None:  # else what made the first save fail is on its way already
            raise problems[0]


def save_teacher(run: Path, params: Params, position: Position, config: Config) -> None:
    """Writes a best checkpoint that holds a teacher alone, as for a network that was trained elsewhere.

    Raises:
      InputError: the disk is full or read-only; no part of a checkpoint is left.
    """
    folder = _folder(run, best_kind(None))
    with _explained(folder, "nothing was kept: free space or change permissions, then try again"):
        folder.mkdir(parents=True, exist_ok=True)
        _require_room(folder, params, copies=1)
        with _context(), _quiet():
            items = {"teacher": jax.tree.map(jnp.asarray, params), "position": position, "config": _as_json(config)}
            ocp.save_checkpointables(folder / str(position["step"]), items)


def load_items(checkpoint: Path, target: Mapping[str, Any]) -> dict[str, Any]:
    """Items of a checkpoint.

    Args:
      checkpoint: from `find_checkpoint`.
      target: items to restore: a tree of shapes with shardings, or None for one of `JSON_ITEMS`.

    Raises:
      InputError: an item is damaged, or not of these shapes.
    """
    try:
        with _context(), _quiet():
            return ocp.load_checkpointables(checkpoint, dict(target))
    except Exception as error:  # Orbax raises many kinds, down to those of its storage library.
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{checkpoint}: {', '.join(target)} cannot be restored ({reason}); the checkpoint is damaged or "
            "was made with another configuration: take the other of best and latest, or train again"
        ) from error


def find_checkpoint(run: Path, which: Which, network: str | None = None) -> Path:
    """Folder of a completed checkpoint.

    Args:
      run: the run folder.
      which: latest or best.
      network: whose best, where each network of the run has its own; None is any.

    Raises:
      InputError: `run` is no run folder, or has no such checkpoint.
    """
    for kind in _kinds(run, which):
        if network is None or kind in ("latest", "best", best_kind(network)):
            return _folder(run, kind) / str(_latest_step(_folder(run, kind)))
    raise InputError(_missing(run, which))


def networks_of(run: Path, which: Which = "best") -> tuple[str, ...]:
    """Names of the networks that a run's checkpoint holds, the students first.

    Raises:
      InputError: `run` is no run folder, or has no such checkpoint.
    """
    kinds = _kinds(run, which)
    if not kinds:
        raise InputError(_missing(run, which))
    folders = [_folder(run, kind) / str(_latest_step(_folder(run, kind))) for kind in kinds]
    names = {item.name for folder in folders for item in folder.iterdir() if item.is_dir()} - NOT_NETWORKS
    return tuple(sorted(names, key=lambda name: (name == "teacher", name)))


def has_checkpoint(run: Path, which: Which) -> bool:
    """Whether a completed checkpoint is there."""
    return bool(_kinds(run, which))


def _kinds(run: Path, which: Which) -> list[str]:
    """The folders of this kind that hold a completed checkpoint, in order of their names."""
    found = sorted(
        folder.name for folder in (run / "checkpoints").glob(f"{which}*") if _latest_step(folder) is not None
    )
    return [kind for kind in found if kind == which or kind.startswith(f"{which}-")]


def _folder(run: Path, kind: str) -> Path:
    return (run / "checkpoints" / kind).resolve()


def _latest_step(folder: Path) -> int | None:
    steps = [p for p in folder.glob("*") if p.name.isdigit() and all((p / item).is_dir() for item in JSON_ITEMS)]
    return max((int(p.name) for p in steps), default=None)


def _as_json(config: Config) -> dict[str, Any]:
    return TypeAdapter(Config).dump_python(config, mode="json")


def _context() -> ocp.Context:
    registry = ocp.handlers.local_registry()
    for name in JSON_ITEMS:
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def _is_not_raised(record: logging.LogRecord) -> bool:
    """Orbax logs the traceback of what it raises afterwards, once per thread."""
    return not record.exc_info


@contextmanager
def _explained(folder: Path, advice: str = _RESUME) -> Iterator[None]:
    """A failed write as one line for the user."""
    try:
        yield
    except (OSError, ValueError) as error:
        found = _OS_ERROR.search(str(error))
        reason = error.strerror if isinstance(error, OSError) else found and found[1]
        if reason is None:
            raise
        raise InputError(f"{folder}: the checkpoint cannot be written ({reason}); {advice}") from error


def _require_room(folder: Path, tree: Any, copies: int) -> None:
    """Checks the free space first: otherwise Orbax fails halfway, in several threads at once."""
    if jax.process_count() > 1:  # one host giving up alone would leave the others waiting for it
        return
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    need = copies * (arrays + _OVERHEAD)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise OSError(errno.ENOSPC, f"{free / 1e6:.1f} MB free, {need / 1e6:.1f} MB needed")


def _quiet() -> warnings.catch_warnings:
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _missing(run: Path, which: Which) -> str:
    if not run.exists():
        return f"{run}: no such run folder; give the folder that `kd-jax train` printed"
    if not (run / "checkpoints").is_dir():
        return f"{run}: not a run folder (no checkpoints/ in it); give the folder that `kd-jax train` printed"
    other: Which = "latest" if which == "best" else "best"
    hint = f"--checkpoint {other} is there" if has_checkpoint(run, other) else "train it first"
    return f"{run}: has no {which} checkpoint; {hint}"
