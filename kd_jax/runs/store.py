"""Checkpoints of a run; the only importer of Orbax.

`RUN/checkpoints/latest/STEP` and `RUN/checkpoints/best/STEP` each hold the items student, teacher,
optimiser, position and config (and projectors, where the run has them), so that evaluation restores one
network alone; an imported network is a run whose best checkpoint holds a teacher and nothing to go on training with.
Saves are asynchronous and atomic: a folder that was not completed is not a checkpoint.
"""

import errno
import logging
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Sharding, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp
from pydantic import TypeAdapter, ValidationError

from data_pipeline.conventions import MODALITIES, Modality
from data_pipeline.errors import InputError
from kd_jax.config.schema import Config, NetworkConfig
from kd_jax.models.unet import UNet
from kd_jax.objective.joint import Params, build_network
from kd_jax.training.devices import globally_replicated, replicated
from kd_jax.training.step import NetworkState, TrainState

NetworkName = Literal["student", "teacher"]
Which = Literal["best", "latest"]
Position = dict[str, Any]
"""Where a run stands besides its arrays: JSON values, with the key "step"."""

_JSON_ITEMS = "position", "config"
_OS_ERROR = re.compile(r"([A-Z][\w ]*) \[os_error_code")
"""What the storage library below Orbax says where Python would raise an OSError."""
_OVERHEAD = 1_000_000
"""Bytes of a checkpoint besides its arrays, at most: shardings, metadata, configuration."""
_RESUME = "the one before is untouched: free space or change permissions, then go on with --resume"


class Checkpoints:
    """Writes the checkpoints of one run; use as a context manager, so that the last save completes."""

    def __init__(self, run: Path) -> None:
        keep_one = ocp.training.preservation_policies.LatestN(1)
        kinds: tuple[Which, ...] = "latest", "best"
        self._folders = {which: _folder(run, which) for which in kinds}
        self._writers = {
            which: ocp.training.Checkpointer(
                folder, context=_context(), preservation_policy=keep_one, cleanup_tmp_directories=True
            )
            for which, folder in self._folders.items()
        }

    def save(self, which: Which, state: TrainState, position: Position, config: Config) -> None:
        """Starts a save at `position["step"]`; waits only for the previous one of the same kind.

        Raises:
          InputError: the disk is full or read-only; the checkpoint before is untouched.
        """
        writer, folder = self._writers[which], self._folders[which]
        with _explained(folder):
            writer.wait()
            _require_room(folder, state, copies=2)  # best and latest may be written at once, beside those there are
            # A copy, for the next step reuses the state's buffers while this save is still reading.
            items = _items(globally_replicated(jax.tree.map(jnp.copy, state)))
            items |= {"position": position, "config": _as_json(config)}
            with _quiet():
                writer.save_checkpointables_async(position["step"], items, force=True, overwrite=True)

    def __enter__(self) -> Self:
        logging.getLogger("absl").addFilter(_is_not_raised)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        problems: list[InputError] = []
        for which, writer in self._writers.items():
            try:
                with _explained(self._folders[which]):
                    writer.close()
            except InputError as problem:
                problems.append(problem)
                # At best: threads of Orbax may still be writing. What is left is no checkpoint, and goes on resuming.
                for left in self._folders[which].glob("*.orbax-checkpoint-tmp"):
                    shutil.rmtree(left, ignore_errors=True)
        logging.getLogger("absl").removeFilter(_is_not_raised)
        if problems and kind is None:  # else what made the first save fail is on its way already
            raise problems[0]


@dataclass(frozen=True)
class Restored:
    """One network of a run, ready to apply: `module.apply({"params": params}, image)`."""

    config: Config
    network: NetworkName
    module: UNet
    params: Params
    step: int

    @property
    def settings(self) -> NetworkConfig:
        """The configuration of this network."""
        return self.config.student if self.network == "student" else self.config.teacher

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the network sees, in channel order."""
        return tuple(MODALITIES[i] for i in self.settings.channels)


def restore_network(run: Path, network: NetworkName, which: Which = "best") -> Restored:
    """Restores one network of a run, on one device, and reads nothing of the other.

    Raises:
      InputError: `run` is no run folder, has no such checkpoint, or the checkpoint lacks this network or is damaged.
    """
    if network not in (held := _networks(run, which)):
        raise InputError(
            f"{_folder(run, which)}: this checkpoint holds no {network}, only {' and '.join(held) or 'neither network'}"
            + (f"; choose --network {held[0]}, or another run" if held else "; choose another run")
        )
    items = _load(run, which, dict.fromkeys(_JSON_ITEMS))
    try:
        config = TypeAdapter(Config).validate_python(items["config"])
    except ValidationError as error:
        raise InputError(
            f"{_folder(run, which)}: its configuration does not fit this version of kd_jax "
            f"({error.error_count()} problems, first: {error.errors()[0]['loc']}); use the version that trained it"
        ) from error
    settings = config.student if network == "student" else config.teacher
    # A CPU computes bfloat16 by way of float32, slowly: there a network is applied in the precision of its parameters.
    precision = "float32" if jax.default_backend() == "cpu" else config.train.precision
    applied = replace(config, train=replace(config.train, precision=precision))
    module = build_network(settings, applied)
    image = jax.ShapeDtypeStruct((1, *config.data.patch, len(settings.channels)), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    target = _with_sharding(shapes, SingleDeviceSharding(jax.local_devices()[0]))
    params = _load(run, which, {network: target})[network]
    return Restored(config, network, module, params, items["position"]["step"])


def restore_state(run: Path, like: TrainState) -> tuple[TrainState, Position]:
    """Restores the latest whole state of a run onto this host's devices, however many wrote it.

    Args:
      run: the run folder.
      like: a state of the run's configuration, e.g. its initial one; only shapes are used.

    Raises:
      InputError: there is no such checkpoint, or it does not fit the configuration.
    """
    target = _with_sharding(jax.eval_shape(lambda: _items(like)), replicated())
    items = _load(run, "latest", {**target, "position": None})
    teacher, student = {"network": items["teacher"]}, {"network": items["student"]}
    if "projectors" in items:
        student["projectors"] = items["projectors"]
    optimiser = items["optimiser"]
    state = TrainState(
        optimiser["step"],
        NetworkState(teacher, optimiser["teacher"]),
        NetworkState(student, optimiser["student"]),
    )
    return state, items["position"]


def save_teacher(run: Path, params: Params, position: Position, config: Config) -> None:
    """Writes a best checkpoint that holds a teacher alone, as for a network that was trained elsewhere.

    Raises:
      InputError: the disk is full or read-only; no part of a checkpoint is left.
    """
    folder = _folder(run, "best")
    with _explained(folder, "nothing was kept: free space or change permissions, then try again"):
        folder.mkdir(parents=True, exist_ok=True)
        _require_room(folder, params, copies=1)
        with _context(), _quiet():
            items = {"teacher": jax.tree.map(jnp.asarray, params), "position": position, "config": _as_json(config)}
            ocp.save_checkpointables(folder / str(position["step"]), items)


def default_network(run: Path, which: Which = "best") -> NetworkName:
    """The network to apply where none was asked for: the student, or of a run that has none the teacher.

    Raises:
      InputError: `run` is no run folder or has no such checkpoint.
    """
    return "teacher" if _networks(run, which) == ("teacher",) else "student"


def has_checkpoint(run: Path, which: Which) -> bool:
    """Whether a completed checkpoint is there."""
    return _latest_step(_folder(run, which)) is not None


def _folder(run: Path, which: Which) -> Path:
    return (run / "checkpoints" / which).resolve()


def _latest_step(folder: Path) -> int | None:
    steps = [p for p in folder.glob("*") if p.name.isdigit() and all((p / item).is_dir() for item in _JSON_ITEMS)]
    return max((int(p.name) for p in steps), default=None)


def _networks(run: Path, which: Which) -> tuple[NetworkName, ...]:
    """The networks whose parameters a checkpoint holds."""
    checkpoint = _checkpoint(run, which)
    return tuple(name for name in get_args(NetworkName) if (checkpoint / name).is_dir())


def _checkpoint(run: Path, which: Which) -> Path:
    step = _latest_step(_folder(run, which))
    if step is None:
        raise InputError(_missing(run, which))
    return _folder(run, which) / str(step)


def _as_json(config: Config) -> dict[str, Any]:
    return TypeAdapter(Config).dump_python(config, mode="json")


def _items(state: TrainState) -> dict[str, Any]:
    items = {
        "teacher": state.teacher.params["network"],
        "student": state.student.params["network"],
        "optimiser": {"step": state.step, "teacher": state.teacher.optimiser, "student": state.student.optimiser},
    }
    if "projectors" in state.student.params:
        items["projectors"] = state.student.params["projectors"]
    return items


def _with_sharding(tree: Any, sharding: Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _context() -> ocp.Context:
    registry = ocp.handlers.local_registry()
    for name in _JSON_ITEMS:
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
    """Looking first keeps Orbax from failing in the middle, loudly and in several threads at once."""
    if jax.process_count() > 1:  # one host giving up alone would leave the others waiting for it
        return
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    need = copies * (arrays + _OVERHEAD)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise OSError(errno.ENOSPC, f"{free / 1e6:.1f} MB free, {need / 1e6:.1f} MB needed")


def _quiet() -> warnings.catch_warnings:
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _load(run: Path, which: Which, target: Mapping[str, Any]) -> dict[str, Any]:
    checkpoint = _checkpoint(run, which)
    try:
        with _context(), _quiet():
            return ocp.load_checkpointables(checkpoint, dict(target))
    except Exception as error:  # Orbax raises many kinds, down to those of its storage library.
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{checkpoint}: {', '.join(target)} cannot be restored ({reason}); the checkpoint is damaged or "
            "was made with another configuration: take the other of best and latest, or train again"
        ) from error


def _missing(run: Path, which: Which) -> str:
    if not run.exists():
        return f"{run}: no such run folder; give the folder that `python -m kd_jax.train` printed"
    if not (run / "checkpoints").is_dir():
        return f"{run}: not a run folder (no checkpoints/ in it); give the folder that `python -m kd_jax.train` printed"
    other: Which = "latest" if which == "best" else "best"
    hint = f"--checkpoint {other} is there" if has_checkpoint(run, other) else "train it first"
    return f"{run}: has no {which} checkpoint; {hint}"
