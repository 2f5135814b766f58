"""Turns a network that nnU-Net trained into a configuration, parameters and a record of its provenance."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from data_pipeline.conventions import MODALITIES, Modality
from data_pipeline.errors import InputError
from kd_jax import __version__
from kd_jax.config.load import parse_config
from kd_jax.config.network import AXES, Axis
from kd_jax.config.schema import Config
from kd_jax.models.protocol import Params
from kd_jax.nnunet.channels import OutputMeaning, read_modalities, read_outputs
from kd_jax.nnunet.json_table import read_table
from kd_jax.nnunet.plans import NnunetPlan, read_nnunet_plan
from kd_jax.nnunet.reader import Checkpoint, read_checkpoint
from kd_jax.nnunet.result_files import ResultFiles
from kd_jax.nnunet.trainers import check_trainer, is_deeply_supervised
from kd_jax.nnunet.weights import convert_weights

_TOWARDS = ("R", "L"), ("A", "P"), ("S", "I")
"""Letters of each axis: in our direction, and reversed."""
_BRATS, _CANONICAL = "LPS", "RAS"
_NNUNET_FOLDS = 5


@dataclass(frozen=True, eq=False)
class Found:
    """A network of nnU-Net, as its files describe it.

    Attributes:
      result: the files.
      checkpoint: weights, and notes about the training.
      plan: the network and its preprocessing.
      modalities: in the order of the network's channels.
      outputs: meaning of the network's outputs.
      reversed_axes: axes along which the network saw volumes reversed.
    """

    result: ResultFiles
    checkpoint: Checkpoint
    plan: NnunetPlan
    modalities: tuple[Modality, ...]
    outputs: OutputMeaning
    reversed_axes: tuple[Axis, ...]


def read_network(
    result: ResultFiles,
    *,
    channels: Sequence[Modality] | None = None,
    labels: str | None = None,
    orientation: str | None = None,
    any_trainer: bool = False,
) -> Found:
    """Reads nnU-Net's files, the small ones first, so that problems are reported early.

    Args:
      result: paths of the files.
      channels: modalities in the network's order, in place of the names in dataset.json.
      labels: meaning of nnU-Net's label values, "1=NCR,2=ED,3=ET", in place of the names there.
      orientation: towards what the axes of the training files run; None is what BraTS has.
      any_trainer: accept one that is not known to keep the network.

    Raises:
      InputError: a file cannot be read, or its content is not supported.
    """
    plans, dataset = read_table(result.plans), read_table(result.dataset)
    outputs = read_outputs(dataset, labels)
    checkpoint = read_checkpoint(result.checkpoint)
    if not any_trainer:
        check_trainer(checkpoint.trainer, result.checkpoint)
    plan = read_nnunet_plan(plans, checkpoint.configuration)
    modalities = read_modalities(dataset, channels, plan.modalities)
    return Found(result, checkpoint, plan, modalities, outputs, reversed_axes(orientation, plan.reoriented))


def reversed_axes(orientation: str | None, reoriented: bool) -> tuple[Axis, ...]:
    """Axes along which nnU-Net saw volumes reversed, ours running towards R, A, S.

    Args:
      orientation: three letters, towards what the axes of the training files run; None is what BraTS has.
      reoriented: nnU-Net's reader brought every file to R, A, S.

    Raises:
      InputError: no such letters, or axes in another order.
    """
    letters = (orientation or (_CANONICAL if reoriented else _BRATS)).upper()
    if len(letters) != len(AXES) or any(a not in towards for a, towards in zip(letters, _TOWARDS, strict=True)):
        raise InputError(
            f"--orientation {orientation}: expected R or L, then A or P, then S or I, e.g. {_BRATS}; files with their "
            "axes in another order are not understood: reorient them and train nnU-Net again"
        )
    if reoriented and letters != _CANONICAL:
        raise InputError(
            f"--orientation {orientation}: the plans have nnU-Net bring every file to {_CANONICAL}; leave it out"
        )
    return tuple(axis for axis, letter, towards in zip(AXES, letters, _TOWARDS, strict=True) if letter == towards[1])


def import_config(found: Found) -> Config:
    """The run's configuration: the network as teacher, and settings of a student of the same form, which the run lacks.

    Raises:
      InputError: the plans describe an impossible network.
    """
    plan, fold = found.plan, found.checkpoint.fold
    network = {**plan.network, "reversed_axes": found.reversed_axes}
    number = int(fold) if str(fold).isdigit() else None
    values = {
        "data": {
            "spacing": plan.spacing,
            "patch": plan.patch,
            "fold": "all" if number is None else number,
            "folds": max(_NNUNET_FOLDS, (number or 0) + 1),
        },
        "teacher": {**network, "modalities": found.modalities},
        "student": network,
        "loss": {
            "segmentation": found.outputs.segmentation,
            "batch_dice": plan.batch_dice,
            "deep_supervision": is_deeply_supervised(found.checkpoint.trainer),
        },
        "distillation": {"weight": 0},
        # Of nnUNetTrainer; some of its variants take others.
        "optimiser": {"learning_rate": 0.01, "momentum": 0.99},
        "train": {"epochs": 1000, "iterations": 250, "validation_iterations": 50, "batch": plan.batch},
    }
    return parse_config(values, str(found.result.plans))


def import_params(found: Found, config: Config) -> Params:
    """The network's parameters, for `config` from `import_config`.

    Raises:
      InputError: the weights are not those of the network that the plans describe.
    """
    channels = [found.modalities.index(MODALITIES[i]) for i in config.teacher.channels]
    try:
        return convert_weights(
            found.checkpoint.weights,
            config.teacher,
            axes=found.plan.axes,
            channels=channels,
            outputs=found.outputs.order,
        )
    except ValueError as error:
        raise InputError(
            f"{found.result.checkpoint}: does not fit {found.result.plans}: {error}; give the plans it was trained with"
        ) from error


def provenance(found: Found) -> dict[str, Any]:
    """The origin of the network, and its channels and outputs there, as JSON values."""
    checkpoint, plan = found.checkpoint, found.plan
    mirrored = checkpoint.mirror_axes
    return {
        "kd_jax": __version__,
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        **{name: str(path.resolve()) for name, path in asdict(found.result).items()},
        "sha256": _sha256(found.result.checkpoint),
        "trainer": checkpoint.trainer,
        "plans_name": plan.name,
        "dataset_name": plan.dataset,
        "configuration": checkpoint.configuration,
        "fold": checkpoint.fold,
        "epoch": checkpoint.epoch,
        "channels": list(found.modalities),
        "outputs": dict(found.outputs.names),
        "reversed_axes": list(found.reversed_axes),
        "mirroring": None if mirrored is None else [a for a, i in zip(AXES, plan.axes, strict=True) if i in mirrored],
        "notes": list(plan.notes),
    }


def orientation_of(axes: Sequence[Axis]) -> str:
    """Three letters for `reversed_axes`, e.g. LPS."""
    return "".join(towards[axis in axes] for axis, towards in zip(AXES, _TOWARDS, strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
