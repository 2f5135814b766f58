"""Reads the checkpoints of nnU-Net v2 (`nnUNetTrainer.save_checkpoint`) without PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from data_pipeline.errors import InputError
from kd_jax.nnunet.archive import Archive, Tensor, open_archive


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network of nnU-Net.

    Attributes:
      weights: the state dictionary, floating-point numbers as float32.
      trainer: class that trained it.
      configuration: of the plans, e.g. 3d_fullres.
      fold: held-out fold, or "all".
      epoch: epochs it was trained for; None if the file does not say.
      mirror_axes: axes, in the order of the plans, that nnU-Net mirrors at test time; None if the file does not say.
    """

    weights: Mapping[str, Shaped[np.ndarray, "..."]]
    trainer: str
    configuration: str
    fold: int | str
    epoch: int | None
    mirror_axes: tuple[int, ...] | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads checkpoint_final.pth or checkpoint_best.pth, and runs nothing that the file names.

    Raises:
      InputError: the file cannot be read as data (see `archive`), or is not a checkpoint of nnU-Net v2.
    """
    with open_archive(path) as archive:
        content = archive.content
        if not isinstance(content, dict):
            raise InputError(f"{path}: holds a {type(content).__name__}; {_EXPECTED}")
        arguments = _entry(path, content, "init_args", dict)
        epoch, axes = content.get("current_epoch"), content.get("inference_allowed_mirroring_axes")
        return Checkpoint(
            _weights(archive, path, _entry(path, content, "network_weights", dict)),
            _entry(path, content, "trainer_name", str),
            _entry(path, arguments, "configuration", str, "init_args."),
            _entry(path, arguments, "fold", (int, str), "init_args."),
            epoch if isinstance(epoch, int) else None,
            tuple(a for a in axes if isinstance(a, int)) if isinstance(axes, tuple | list) else None,
        )


_EXPECTED = "expected a checkpoint of nnU-Net 2.0 to 2.8, checkpoint_final.pth or checkpoint_best.pth"


def _entry(path: Path, table: Mapping[str, Any], key: str, kind: type | tuple[type, ...], prefix: str = "") -> Any:
    if key not in table:
        found = ", ".join(sorted(map(str, table))[:8]) or "nothing"
        raise InputError(f"{path}: has no {prefix}{key} (found {found}); {_EXPECTED}")
    if not isinstance(table[key], kind):
        raise InputError(f"{path}: {prefix}{key} is a {type(table[key]).__name__}; {_EXPECTED}")
    return table[key]


def _weights(archive: Archive, path: Path, tensors: Mapping[Any, Any]) -> dict[str, Shaped[np.ndarray, "..."]]:
    weights = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError(f"{path}: network_weights holds {name!r}, which is no tensor; {_EXPECTED}")
        array = archive.array(tensor)
        weights[name] = array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array
    return weights
