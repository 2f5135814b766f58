"""Training of a teacher and a student at once, from the command line to the end of the run.

Without arguments it is a small pair on the embedded phantom. A run folder then holds config.json,
environment.json, split.json, log.jsonl, progress.png, tensorboard/ and checkpoints/{latest,best}.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from data_pipeline.conventions import MODALITIES, REGION_CLASSES
from data_pipeline.errors import InputError
from data_pipeline.loader import training_batches, validation_batches
from kd_jax.cases import Split, gather_cases, loader_settings
from kd_jax.checkpoint import Checkpoints, restore_state
from kd_jax.config import Config
from kd_jax.distill import build_networks
from kd_jax.journal import Journal
from kd_jax.parallel import (
    AXIS,
    connect_hosts,
    local_batch,
    map_over_devices,
    must_block_every_step,
    on_first_host,
    replicate,
    shard,
)
from kd_jax.progress import Progress
from kd_jax.runs import check_new_run, default_run, open_run, resume_run, resume_split
from kd_jax.settings import SettingsHelp, add_setting_arguments, load_config, overrides_from, refuse_unknown
from kd_jax.step import Batch, TrainState, init_state, make_train_step, make_validation_step
from kd_jax.stop import StopRequest

NETWORKS = "teacher", "student"
VALIDATION_SEED = 1
"""Offset of the run's seed for the validation patches, which stay the same in every epoch."""
LOG_EVERY = 10
"""Steps between step records of the log."""

Step = Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, Array]]]


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    args, unknown = _parser().parse_known_args(arguments)
    refuse_unknown(unknown)
    if args.distributed or args.coordinator:
        connect_hosts(args.coordinator, args.processes, args.process)
    overrides = overrides_from(args)
    if args.resume:
        if args.run is None or args.config is not None or args.overwrite:
            raise InputError("--resume takes the run as --run RUN, and neither --config nor --overwrite")
        run = args.run
        config = resume_run(run, overrides)
    else:
        config = load_config(args.config, overrides)
        local_batch(config.train.batch)
        if args.run is None and jax.process_count() > 1:
            raise InputError("--run: several hosts need one folder, on the file system they share; give it")
        run = args.run or default_run(config)
        on_first_host("run folder checked", lambda: check_new_run(run, overwrite=args.overwrite))
        if config.data.root is not None and args.config is None:
            _say("settings are those of the small phantom run; for BraTS see --config experiments/configs/paper.toml")
    split = gather_cases(config)
    record = split.record(config.data)
    if args.resume:
        on_first_host("split checked", lambda: resume_split(run, record))
    else:
        on_first_host("run opened", lambda: open_run(run, config, record, arguments, overwrite=args.overwrite))
    return train(config, run, split, resume=args.resume)


def train(config: Config, run: Path, split: Split, *, resume: bool) -> int:
    """Trains a run to its end or until asked to stop; returns the exit status.

    Args:
      config: the run.
      run: its folder, opened.
      split: its cases.
      resume: continue from the latest checkpoint.

    Raises:
      InputError: the checkpoint does not fit, or the loss is no number any more.
    """
    per_device = local_batch(config.train.batch)
    networks = build_networks(config, AXIS)
    state, progress = init_state(networks, config), Progress()
    if resume:
        state, position = restore_state(run, state)
        progress = Progress.from_position(position)
    state = replicate(state)
    _announce(config, run, split, state, per_device, progress)
    train_step = map_over_devices(make_train_step(networks, config, AXIS), donate=True)
    validation_step = map_over_devices(make_validation_step(networks, config, AXIS), donate=False)
    with (
        StopRequest() as stop,
        Journal(run, progress.step, write=jax.process_index() == 0) as journal,
        Checkpoints(run) as checkpoints,
        closing(_training_batches(config, split, progress.step)) as batches,
    ):
        while progress.epoch < config.train.epochs and not stop.requested:
            started = time.monotonic()
            state = _train_epoch(config, state, progress, train_step, batches, journal, stop)
            finished = progress.step == (progress.epoch + 1) * config.train.iterations
            progress.seconds += time.monotonic() - started
            if finished:
                started = time.monotonic()
                counts = _validate(config, split, state, validation_step)
                progress.seconds += time.monotonic() - started
                _end_epoch(config, state, progress, counts, journal, checkpoints)
        if progress.epoch < config.train.epochs:
            checkpoints.save("latest", state, progress.to_position(), config)
    if progress.epoch < config.train.epochs:
        _say(f"stopped at step {progress.step}; go on with: python -m kd_jax.train --run {run} --resume")
        return stop.exit_status
    _say(f"trained; score it with: python -m kd_jax.evaluate {run} --network both")
    return 0


def _train_epoch(
    config: Config,
    state: TrainState,
    progress: Progress,
    step: Step,
    batches: Iterator[Batch],
    journal: Journal,
    stop: StopRequest,
) -> TrainState:
    """Steps until the epoch ends or a stop is asked for; measurements are read one step behind."""
    first, end = progress.epoch * config.train.iterations, (progress.epoch + 1) * config.train.iterations
    pending: Mapping[str, Array] = {}
    block = must_block_every_step()
    with tqdm(
        total=end - first,
        initial=progress.step - first,
        desc=f"epoch {progress.epoch + 1}/{config.train.epochs}",
        unit="step",
        leave=False,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        disable=jax.process_index() > 0,
    ) as bar:
        while progress.step < end and not stop.agreed(progress.step):
            batch = shard(next(batches))
            state, measurements = step(state, batch)
            if block:
                jax.block_until_ready(measurements)
            if pending:
                _absorb(pending, progress, journal, bar)
            pending = measurements
            progress.step += 1
        if pending:
            _absorb(pending, progress, journal, bar)
    return state


def _absorb(measurements: Mapping[str, Array], progress: Progress, journal: Journal, bar: Any) -> None:
    values = {name: float(value) for name, value in jax.device_get(dict(measurements)).items()}
    done = progress.absorb(values)
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise InputError(
            f"{broken[0]} is no number any more at step {done}: start again with a lower optimiser.learning_rate, or "
            "train.precision = float32; checkpoints from before are untouched"
        )
    if done % LOG_EVERY == 0:
        journal.step(done, values)
    bar.update()
    bar.set_postfix({network: f"{values[f'{network}/loss']:.3f}" for network in NETWORKS}, refresh=False)


def _validate(config: Config, split: Split, state: TrainState, step: Callable[..., Mapping[str, Array]]) -> np.ndarray:
    """[network, region, (TP, FP, FN)] in voxels over the validation patches."""
    total = np.zeros((2, len(REGION_CLASSES), 3))
    batches = validation_batches(
        split.validation,
        loader_settings(config),
        seed=config.seed + VALIDATION_SEED,
        steps=config.train.validation_iterations,
        **_placement(),
    )
    with closing(batches):
        for batch in batches:
            total += jax.device_get(step(state, shard(batch))["counts"])
    return total


def _end_epoch(
    config: Config,
    state: TrainState,
    progress: Progress,
    counts: np.ndarray,
    journal: Journal,
    checkpoints: Checkpoints,
) -> None:
    record, improved = progress.end_epoch(counts)
    journal.epoch(progress.step, progress.epoch - 1, record)
    position = progress.to_position()
    if improved:
        checkpoints.save("best", state, position, config)
    if progress.epoch % config.train.save_every == 0 or progress.epoch == config.train.epochs:
        checkpoints.save("latest", state, position, config)
    dice = "   ".join(
        f"{network} "
        + " ".join(f"{region} {_figure(record[f'{network}/pseudo_dice/{region}'])}" for region in REGION_CLASSES)
        for network in NETWORKS
    )
    losses = " ".join(f"{network} {record[f'{network}/loss']:.3f}" for network in NETWORKS)
    barlow = f" barlow {record['barlow_twins/loss']:.3f}" if "barlow_twins/loss" in record else ""
    _say(
        f"epoch {progress.epoch}/{config.train.epochs}  loss: {losses}{barlow}   pseudo-Dice: {dice}   "
        f"{record['seconds']:.1f} s"
    )


def _training_batches(config: Config, split: Split, start_step: int) -> Any:
    return training_batches(
        split.train, loader_settings(config), seed=config.seed, start_step=start_step, **_placement()
    )


def _placement() -> dict[str, int]:
    return {
        "local_devices": jax.local_device_count(),
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def _announce(config: Config, run: Path, split: Split, state: TrainState, per_device: int, progress: Progress) -> None:
    device = jax.local_devices()[0]
    _say(f"run {run}: {len(split.train)} training and {len(split.validation)} validation cases of {split.root}")
    for name, side in (("teacher", state.teacher), ("student", state.student)):
        settings = getattr(config, name)
        size = sum(leaf.size for leaf in jax.tree.leaves(side.params["network"])) / 1e6
        seen = ", ".join(MODALITIES[i] for i in settings.channels)
        _say(f"{name}: {seen}; features {' '.join(map(str, settings.features))}; {size:.2f} million parameters")
    weight = config.distillation.weight
    _say(
        f"distillation: {f'Barlow Twins, weight {weight:g}, {config.distillation.update} update' if weight else 'none'}"
    )
    _say(
        f"{jax.device_count()} x {device.device_kind} ({device.platform}), {jax.process_count()} host(s), "
        f"{per_device} patch(es) per device, {config.train.precision}; from step {progress.step}"
    )


def _figure(value: float | None) -> str:
    return "  - " if value is None else f"{value:.2f}"


def _say(text: str) -> None:
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kd_jax.train",
        usage="python -m kd_jax.train [--config FILE] [--run RUN] [--resume] [--overwrite] [--SECTION.KEY VALUE ...]",
        description="Train a teacher on all modalities and a student on a subset at the same time. Without "
        "arguments: a small pair on the embedded phantom, in minutes on a laptop. Ctrl-C saves and says how to go on.",
        formatter_class=SettingsHelp,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings (see experiments/configs)")
    parser.add_argument("--run", type=Path, metavar="RUN", help="run folder (default: a new one under runs/)")
    parser.add_argument("--resume", action="store_true", help="continue --run RUN from its latest checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="start anew where RUN holds a run; it is lost")
    hosts = parser.add_argument_group("several hosts")
    hosts.add_argument(
        "--distributed", action="store_true", help="join the cluster found (SLURM, Open MPI, Cloud TPU, Kubernetes)"
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, where no cluster is found")
    hosts.add_argument("--processes", type=int, metavar="N", help="number of processes, with --coordinator")
    hosts.add_argument("--process", type=int, metavar="I", help="which one this is, with --coordinator")
    add_setting_arguments(parser)
    return parser
