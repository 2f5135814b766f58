"""Finds the files of a network trained by nnU-Net: TRAINER__PLANS__CONFIGURATION, with plans.json and fold_N in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.errors import InputError

Kept = Literal["final", "best"]

_EXAMPLE = (
    "expected a folder like nnUNetTrainer__nnUNetPlans__3d_fullres with plans.json, dataset.json and "
    "fold_0/checkpoint_final.pth"
)


@dataclass(frozen=True)
class ResultFiles:
    """The three files of one trained network."""

    checkpoint: Path
    plans: Path
    dataset: Path


def find_result(given: Path, fold: str | None, kept: Kept, plans: Path | None, dataset: Path | None) -> ResultFiles:
    """The files of one trained network.

    Args:
      given: the folder of a trainer, of one fold, or a checkpoint.
      fold: the fold, if the folder has several.
      kept: the checkpoint of the last epoch or of the best.
      plans: file instead of the plans.json next to the checkpoint or one folder up.
      dataset: file instead of the dataset.json there.

    Raises:
      InputError: one of them is not there, or there are several folds and none was chosen.
    """
    if not given.exists():
        raise InputError(f"{given}: does not exist; {_EXAMPLE}")
    checkpoint = given if given.is_file() else _checkpoint(_fold_folder(given, fold), kept)
    return ResultFiles(
        checkpoint, _beside(checkpoint, "plans.json", plans), _beside(checkpoint, "dataset.json", dataset)
    )


def _fold_folder(given: Path, fold: str | None) -> Path:
    if _checkpoints(given) or given.name.startswith("fold_"):
        if fold is not None and given.name != f"fold_{fold}":
            raise InputError(f"{given}: is the folder of one fold, but --fold is {fold}; leave out --fold")
        return given
    folds = sorted(folder.name.removeprefix("fold_") for folder in given.glob("fold_*") if folder.is_dir())
    if not folds:
        trained = sorted(folder.name for folder in given.glob("*__*__*") if folder.is_dir())
        found = f"holds {', '.join(trained)}: give one of them" if trained else "has no fold_* folder"
        raise InputError(f"{given}: {found}; {_EXAMPLE}")
    if fold is None and len(folds) > 1:
        raise InputError(f"{given}: has the folds {', '.join(folds)}, each a network of its own; choose with --fold")
    if fold is not None and fold not in folds:
        raise InputError(f"{given}: has no fold {fold}; there are {', '.join(folds)}")
    return given / f"fold_{fold if fold is not None else folds[0]}"


def _checkpoint(folder: Path, kept: Kept) -> Path:
    checkpoint = folder / f"checkpoint_{kept}.pth"
    if not checkpoint.is_file():
        found = _checkpoints(folder)
        hint = f"there is {', '.join(found)}: choose with --checkpoint, or give its path" if found else "train it first"
        if not found and list(folder.glob("model_*.model")):
            hint = "this is a result of nnU-Net 1, which is not read"
        raise InputError(f"{folder}: has no {checkpoint.name}; {hint}")
    return checkpoint


def _checkpoints(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("checkpoint_*.pth"))


def _beside(checkpoint: Path, name: str, given: Path | None) -> Path:
    if given is not None:
        return given
    folder = checkpoint.resolve().parent
    for place in (folder, folder.parent):
        if (place / name).is_file():
            return place / name
    raise InputError(
        f"{checkpoint}: no {name} next to it or one folder up; nnU-Net writes it into the folder of the trainer: "
        f"say where it is with --{name.removesuffix('.json')}"
    )
