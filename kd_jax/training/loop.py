"""Trains a teacher and its students at once, from an opened run folder to the end of the run.

The loop adds log.jsonl, progress.png, tensorboard/ and checkpoints/{latest,best} to the folder.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float64
from tqdm import tqdm

from data_pipeline.conventions import MODALITIES, REGION_CLASSES
from data_pipeline.errors import InputError
from data_pipeline.patches.loader import training_batches, validation_batches
from kd_jax.config.schema import Config
from kd_jax.models.protocol import Params
from kd_jax.native import library
from kd_jax.objective.joint import Batch, Objective, build_objective
from kd_jax.runs.store import Checkpoints
from kd_jax.training.cases import RunCases, loader_settings
from kd_jax.training.checkpoints import restore_state, save_best, save_latest
from kd_jax.training.devices import AXIS, local_batch, map_over_devices, must_block_every_step, replicate, say, shard
from kd_jax.training.journal import Journal
from kd_jax.training.progress import Progress
from kd_jax.training.state import TrainState, init_state
from kd_jax.training.step import TrainStep, make_train_step, make_validation_step
from kd_jax.training.stop import StopRequest

VALIDATION_SEED = 1
"""Offset of the run's seed for the validation patches, which stay the same in every epoch."""
LOG_EVERY = 10
"""Steps between step records of the log."""


def train(config: Config, run: Path, cases: RunCases, *, resume: bool, teacher: Params | None = None) -> int:
    """Trains a run to its end or until asked to stop; returns the exit status.

    Args:
      config: the run.
      run: its folder, opened.
      cases: its cases.
      resume: continue from the latest checkpoint.
      teacher: parameters a new run's teacher starts with; None draws them.

    Raises:
      InputError: the checkpoint does not fit, or a measurement became NaN or infinite.
    """
    per_device = local_batch(config.train.batch)
    objective = build_objective(config, AXIS)
    state, progress = init_state(objective), Progress()
    if teacher is not None:
        state = replace(state, teacher=replace(state.teacher, params={"network": teacher}))
    if resume:
        state, position = restore_state(run, state)
        progress = Progress.from_position(position)
    state = replicate(state)
    _announce(objective, run, cases, state, per_device, progress)
    train_step = map_over_devices(make_train_step(objective), donate=True)
    validation_step = map_over_devices(make_validation_step(objective), donate=False)
    with (
        StopRequest() as stop,
        Journal(run, progress.step, write=jax.process_index() == 0) as journal,
        Checkpoints(run) as checkpoints,
        closing(_training_batches(config, cases, progress.step)) as batches,
    ):
        while progress.epoch < config.train.epochs and not stop.requested:
            started = time.monotonic()
            state = _train_epoch(config, state, progress, train_step, batches, journal, stop)
            finished = progress.step == (progress.epoch + 1) * config.train.iterations
            progress.seconds += time.monotonic() - started
            if finished:
                started = time.monotonic()
                counts = _validate(config, cases, state, validation_step)
                progress.seconds += time.monotonic() - started
                _end_epoch(config, state, progress, counts, journal, checkpoints)
        if progress.epoch < config.train.epochs:
            save_latest(checkpoints, state, progress.to_position(), config)
    if progress.epoch < config.train.epochs:
        say(f"stopped at step {progress.step}; go on with: kd-jax train --run {run} --resume")
        return stop.exit_status
    say(f"trained; score it with: kd-jax evaluate {run} --network all")
    return 0


def _train_epoch(
    config: Config,
    state: TrainState,
    progress: Progress,
    step: TrainStep,
    batches: Iterator[Batch],
    journal: Journal,
    stop: StopRequest,
) -> TrainState:
    """Steps until the epoch ends or a stop is requested; reads measurements one step late, so no device waits."""
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
            f"{broken[0]} became NaN or infinite at step {done}: start again with a lower optimiser.learning_rate, or "
            "train.precision = float32; checkpoints from before are untouched"
        )
    if done % LOG_EVERY == 0:
        journal.step(done, values)
    bar.update()
    losses = {name.removesuffix("/loss"): value for name, value in values.items() if _is_loss(name)}
    bar.set_postfix({network: f"{value:.3f}" for network, value in losses.items()}, refresh=False)


def _validate(
    config: Config, cases: RunCases, state: TrainState, step: Callable[..., Mapping[str, Array]]
) -> Mapping[str, Float64[np.ndarray, "3 3"]]:
    """Counts by network, [region, (TP, FP, FN)] in voxels over the validation patches."""
    total = np.zeros((len(config.networks), len(REGION_CLASSES), 3))
    batches = validation_batches(
        cases.validation,
        loader_settings(config),
        seed=config.seed + VALIDATION_SEED,
        steps=config.train.validation_iterations,
        **_placement(),
    )
    with closing(batches):
        for batch in batches:
            total += jax.device_get(step(state, shard(batch))["counts"])
    return dict(zip(config.networks, total, strict=True))


def _end_epoch(
    config: Config,
    state: TrainState,
    progress: Progress,
    counts: Mapping[str, Float64[np.ndarray, "3 3"]],
    journal: Journal,
    checkpoints: Checkpoints,
) -> None:
    record, improved = progress.end_epoch(counts)
    journal.epoch(progress.step, progress.epoch - 1, record)
    position = progress.to_position()
    save_best(checkpoints, state, position, config, improved)
    if progress.epoch % config.train.save_every == 0 or progress.epoch == config.train.epochs:
        save_latest(checkpoints, state, position, config)
    losses = " ".join(f"{name.removesuffix('/loss')} {record[name]:.3f}" for name in record if _is_loss(name))
    dice = "   ".join(
        f"{network} "
        + " ".join(f"{region} {_figure(record[f'{network}/pseudo_dice/{region}'])}" for region in REGION_CLASSES)
        for network in config.networks
    )
    say(
        f"epoch {progress.epoch}/{config.train.epochs}  loss: {losses}   pseudo-Dice: {dice}   "
        f"{record['seconds']:.1f} s"
    )


def _is_loss(name: str) -> bool:
    """Whether a measurement is the loss of a network ("teacher/loss") or of a term ("student/barlow_twins/loss")."""
    return name.endswith("/loss")


def _training_batches(config: Config, cases: RunCases, start_step: int) -> Any:
    return training_batches(
        cases.train, loader_settings(config), seed=config.seed, start_step=start_step, **_placement()
    )


def _placement() -> dict[str, int]:
    return {
        "local_devices": jax.local_device_count(),
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def _announce(
    objective: Objective, run: Path, cases: RunCases, state: TrainState, per_device: int, progress: Progress
) -> None:
    config, device = objective.config, jax.local_devices()[0]
    say(f"run {run}: {len(cases.train)} training and {len(cases.validation)} validation cases of {cases.record.place}")
    for name, network in state.networks.items():
        settings = config.networks[name]
        size = sum(leaf.size for leaf in jax.tree.leaves(network.params["network"])) / 1e6
        seen = ", ".join(MODALITIES[i] for i in settings.channels)
        say(f"{name}: {seen}; features {' '.join(map(str, settings.features))}; {size:.2f} million parameters")
    for name in state.students:
        say(f"{name} is distilled by: {_describe_terms(objective, name)}")
    say(
        f"{jax.device_count()} x {device.device_kind} ({device.platform}), {jax.process_count()} host(s), "
        f"{per_device} patch(es) per device, {config.train.precision}; from step {progress.step}"
    )
    if device.platform == "cpu" and not library.available():
        say("operators compiled for this CPU are about three times faster: kd-jax native")


def _describe_terms(objective: Objective, student: str) -> str:
    """The terms of a student with their weights, and how networks are updated."""
    distillation = objective.config.distillation_of(student)
    terms = [f"{term.name} {distillation.weight * term.settings.weight:g}" for term in objective.terms[student]]
    return f"{', '.join(terms)}; {objective.config.distillation.update} update" if terms else "nothing (control)"


def _figure(value: float | None) -> str:
    return "  - " if value is None else f"{value:.2f}"
