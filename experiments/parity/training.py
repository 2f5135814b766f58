"""Compares the surroundings of the step with nnU-Net's: folds, learning rate, pseudo-Dice and its moving average."""

import json
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.crossval_split import generate_crossval_split

from data_pipeline.conventions import REGION_CLASSES
from experiments.parity.check import GOLDEN, Check
from kd_jax.config.schema import Config, TrainConfig
from kd_jax.models.outputs import found_regions, region_truth
from kd_jax.runs.split import cross_validation
from kd_jax.training.progress import Progress
from kd_jax.training.step import make_schedule, region_counts

SPLITS_FILE = GOLDEN / "splits.json"
SIZES = 5, 23, 484, 1251
"""Sizes of data sets whose folds are compared: the smallest, an odd one, MSD's BrainTumour, BraTS 2021."""
GOLDEN_SIZE = 23
EPOCHS = 1000


def checks() -> Iterator[Check]:
    """Each of them, with what the ordinary tests keep."""
    for size in SIZES:
        yield Check(f"folds of {size} cases", _different_folds(size), 0, "cases in another fold")
    splits = generate_crossval_split(case_names(GOLDEN_SIZE), seed=12345, n_splits=5)
    text = [{part: [str(name) for name in names] for part, names in fold.items()} for fold in splits]
    SPLITS_FILE.write_text(json.dumps(text, indent=0) + "\n")
    yield Check("learning rate of 1000 epochs", _schedule_difference(), 1e-6, "largest relative difference")
    yield Check("pseudo-Dice counts of regions", _count_difference(), 0, "voxels")
    yield Check("pseudo-Dice and its moving average", _average_difference(), 1e-6)


def case_names(size: int) -> list[str]:
    """Sorted identifiers of a data set."""
    return [f"BraTS2021_{i:05d}" for i in range(size)]


def _different_folds(size: int) -> int:
    names = case_names(size)
    theirs = generate_crossval_split(names, seed=12345, n_splits=5)
    different = 0
    for ours, split in zip(cross_validation(names, names, 5), theirs, strict=True):
        different += len(set(ours.train) ^ {str(name) for name in split["train"]})
        different += len(set(ours.val) ^ {str(name) for name in split["val"]})
    return different


def _schedule_difference() -> float:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = PolyLRScheduler(optimiser, 0.01, EPOCHS)
    config = Config(train=TrainConfig(epochs=EPOCHS, iterations=250))
    ours = make_schedule(config)
    worst = 0.0
    for epoch in range(0, EPOCHS, 37):
        scheduler.step(epoch)
        theirs = optimiser.param_groups[0]["lr"] * config.optimiser.learning_rate / 0.01
        worst = max(worst, abs(float(ours(np.int32(250 * epoch + 249))) / theirs - 1))
    return worst


def _count_difference() -> float:
    """As `nnUNetTrainer.validation_step` counts for a region-based data set."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (2, 6, 5, 7))
    logits = rng.standard_normal((*labels.shape, len(REGION_CLASSES))).astype(np.float32)
    truth = np.stack([np.isin(labels, classes) for classes in REGION_CLASSES.values()], axis=1)
    found = (torch.sigmoid(torch.from_numpy(np.moveaxis(logits, -1, 1).copy())) > 0.5).long()
    theirs = get_tp_fp_fn_tn(found, torch.from_numpy(truth), axes=[0, 2, 3, 4])[:3]
    ours = region_counts(found_regions(jnp.asarray(logits), "regions"), region_truth(jnp.asarray(labels)))
    return float(np.abs(np.asarray(ours).T - np.stack([t.numpy() for t in theirs])).max())


def _average_difference() -> float:
    """nnU-Net's logger fed with the mean Dice of nnU-Net's formula, epoch by epoch."""
    rng = np.random.default_rng(0)
    logger, progress, worst = MetaLogger("", resume=False), Progress(), 0.0
    for epoch in range(12):
        counts = rng.integers(1, 1000, (2, len(REGION_CLASSES), 3)).astype(float)
        progress.absorb({"student/loss": 1.0})
        record, _ = progress.end_epoch(dict(zip(("teacher", "student"), counts, strict=True)))
        tp, fp, fn = counts[1].T
        mean = float(np.nanmean(2 * tp / (2 * tp + fp + fn)))
        logger.log("mean_fg_dice", mean, epoch)
        worst = max(worst, _distance(record, "student/pseudo_dice/mean", mean))
        worst = max(worst, _distance(record, "student/pseudo_dice/ema", logger.get_value("ema_fg_dice", step=epoch)))
    return worst


def _distance(record: Mapping[str, float | None], name: str, value: float) -> float:
    found = record[name]
    return float("nan") if found is None else abs(found - value)
