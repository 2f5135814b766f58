"""Restores the networks of runs as segmenters."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import cast, get_args

from data_pipeline.errors import InputError
from kd_jax.config.network import AXES, Axis
from kd_jax.config.schema import STUDENT, TEACHER
from kd_jax.inference.member import Member, compile_network
from kd_jax.inference.segmenter import Segmenter
from kd_jax.inference.sliding_window import Predictor
from kd_jax.models.protocol import Network
from kd_jax.runs.restore import default_network, restore_network
from kd_jax.runs.store import Which, networks_of


def load(
    run: str | PathLike[str],
    *more_runs: str | PathLike[str],
    network: str | None = None,
    checkpoint: str = "best",
    mirror: Sequence[str] = (),
) -> Segmenter:
    """Restores the student of a trained run, to segment patients with it.

    Args:
      run: folder of the run, as training printed it.
      more_runs: further runs; their networks and that of the first are an ensemble, whose logits are averaged.
      network: "teacher" or the name of a student; None takes the run's student, or the teacher of a run without one.
      checkpoint: "best" or "latest".
      mirror: axes ("x" left and right, "y" front and back, "z" top and bottom) along which images are mirrored too;
        logits are averaged over all combinations. All three take 8 times as long.

    Raises:
      InputError: a folder is no run, has no such checkpoint or network, or has several students and `network` is None;
        a run is given twice, or gives classes where another gives regions; an axis or checkpoint is not known.

    Examples:
      >>> import kd_jax
      >>> student = kd_jax.load("runs/paper")
      >>> student.modalities
      ('t1ce', 'flair')
    """
    if checkpoint not in get_args(Which):
        raise InputError(f"checkpoint {checkpoint!r}: expected {' or '.join(get_args(Which))}")
    if unknown := [axis for axis in mirror if axis not in AXES]:
        raise InputError(f"mirror: {unknown[0]!r} is no axis; expected some of {', '.join(AXES)}")
    runs = [Path(folder) for folder in (run, *more_runs)]
    return load_segmenter(runs, network, cast(Which, checkpoint), mirror=[axis for axis in AXES if axis in mirror])


def load_segmenter(runs: Sequence[Path], network: str | None, which: Which, *, mirror: Sequence[Axis]) -> Segmenter:
    """Restore a network of each run and prepare them for whole volumes.

    Args:
      runs: at least one run folder; the networks of several are an ensemble.
      network: which network; None takes the student where a run has one, else the teacher.
      which: checkpoint.
      mirror: axes to mirror.

    Raises:
      InputError: a run is given twice, is no run or has no such checkpoint or network, or the networks of the runs
        have outputs of different kinds.
    """
    members: list[Member] = []
    predictors: dict[tuple[Network, tuple[int, ...], tuple[int, ...]], Predictor] = {}
    for run in runs:
        if run.resolve() in [member.run.resolve() for member in members]:
            raise InputError(f"{run}: given twice; name each run once")
        restored = restore_network(run, network or default_network(run, which), which)
        config = restored.config
        architecture = restored.module, config.data.patch, restored.settings.channels
        if architecture not in predictors:
            predictors[architecture] = compile_network(restored, mirror)
        member = Member(
            run, restored.network, config, restored.step, restored.modalities, restored.params, predictors[architecture]
        )
        members.append(member)
        if config.outputs != members[0].config.outputs:
            raise InputError(
                f"{run}: its network gives {config.outputs}, that of {members[0].run} {members[0].config.outputs}, and "
                "logits of the two cannot be averaged; combine runs of one loss.segmentation"
            )
    return Segmenter(tuple(members), tuple(mirror))


def load_segmenters(
    runs: Sequence[Path], networks: str | None, which: Which, *, mirror: Sequence[Axis]
) -> dict[str, Segmenter]:
    """Segmenters of several networks of the same runs, by name.

    Args:
      runs: as for `load_segmenter`.
      networks: names with commas between them; "both" are student and teacher, "all" every network that the first
        run's checkpoint holds; None is each run's default.
      which: checkpoint.
      mirror: axes to mirror.

    Raises:
      InputError: as `load_segmenter`.
    """
    if networks is None:
        segmenter = load_segmenter(runs, None, which, mirror=mirror)
        return {segmenter.name: segmenter}
    if networks == "all":
        names: Sequence[str] = networks_of(runs[0], which)
    else:
        names = (STUDENT, TEACHER) if networks == "both" else [name for name in networks.split(",") if name]
    return {name: load_segmenter(runs, name, which, mirror=mirror) for name in dict.fromkeys(names)}
