"""Patches from prepared cases on one core, ours and nnU-Net's, and ours from worker processes."""

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.cache.entry import PreparedCase
from data_pipeline.cache.fill import prepare_cases
from data_pipeline.layouts.find import find_cases
from data_pipeline.patches.augment import Augmentation
from data_pipeline.patches.loader import training_batches
from data_pipeline.patches.stream import LoaderSettings, batches_on_demand
from experiments.benchmark.prepare_task import SPACING
from experiments.benchmark.scaling_loader import memory_of_tree
from experiments.benchmark.sides import OURS
from experiments.benchmark.workload import Workload

NNUNET = "batchgeneratorsv2"
BATCH = 2
"""nnU-Net's batch; one of its two patches is centred on foreground."""


def ours(*, folder: str, patch: int, patches: int, seed: int) -> Workload:
    """The loader without threads of its own."""
    settings = LoaderSettings((patch,) * 3, BATCH)
    batches = batches_on_demand(_prepared(folder), settings, seed, Augmentation())
    steps = itertools.count()
    return _timed(lambda: batches[next(steps)], patches, Path(folder) / f"{OURS}.txt")


def nnunet(*, folder: str, patch: int, patches: int, seed: int) -> Workload:
    """`nnUNetDataLoader` on what nnU-Net's preprocessing wrote, with the transforms of its trainer."""
    import numpy as np
    import torch
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

    from experiments.benchmark.prepare_nnunet import describe, open_cases, preprocess
    from experiments.parity.augmentation_draws import original_pipeline

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 nnU-Net draws from the global generators
    out = Path(folder) / "nnunet"
    out.mkdir()
    for case in find_cases(Path(folder) / "raw"):
        preprocess(case, out, patch)
    plans, dataset = describe(patch)
    size = (patch, patch, patch)
    transforms, box = original_pipeline(size, 4)
    loader = nnUNetDataLoader(
        open_cases(out),
        BATCH,
        box,
        size,
        plans.get_label_manager(dataset),
        oversample_foreground_percent=1 / 3,
        transforms=ComposeTransforms(transforms),
    )
    return _timed(lambda: next(loader), patches, Path(folder) / f"{NNUNET}.txt")


def workers(*, folder: str, patch: int, patches: int, seed: int, workers: int) -> Workload:
    """`training_batches` as training takes them; returns the bytes that this process and its workers hold."""
    settings = LoaderSettings((patch,) * 3, BATCH, workers=workers)
    batches = training_batches(_prepared(folder), settings, seed=seed)

    def run() -> float | None:
        for _ in range(patches // BATCH):
            next(batches)
        return memory_of_tree(os.getpid())

    return Workload(run)


def _prepared(folder: str) -> list[PreparedCase]:
    cases = find_cases(Path(folder) / "raw")
    return prepare_cases(cases, SPACING, Path(folder) / "prepared", workers=0, progress=False)


def _timed(next_batch: Callable[[], Any], patches: int, file: Path) -> Workload:
    """Makes this many patches per run; `file` holds the processor seconds of every batch so far, one per line."""

    def run() -> None:
        with file.open("a") as lines:
            for _ in range(patches // BATCH):
                started = time.process_time()
                next_batch()
                print(time.process_time() - started, file=lines)

    return Workload(run)


def seconds_per_patch(file: Path, patches: int) -> list[float]:
    """Seconds of each batch, except those of the first run, in which nnU-Net tries out how to blur."""
    return [float(line) / BATCH for line in file.read_text().split()[patches // BATCH :]]
