"""Patches with all of nnU-Net's augmentation, beside nnU-Net's own loader and batchgeneratorsv2."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments.benchmark.figures import Figure, Options, Part
from experiments.benchmark.machine import missing
from experiments.benchmark.prepare_task import ONE_THREAD, write_cases
from experiments.benchmark.sides import Measured, Side, compare

OURS, NNUNET = "kd_jax", "batchgeneratorsv2"
PATCH, SMALL_PATCH = 128, 32
PATCHES, SMALL_PATCHES = 30, 4
"""Of a round. Few are turned, which takes longest: means of fewer would be chance."""
CASES, SPACING, SMALL_SPACING = 2, 1.0, 4.0
WORKERS = 1, 2


def measure(options: Options) -> Part:
    """Patches a second on one core, and from worker processes."""
    patch, patches = (SMALL_PATCH, SMALL_PATCHES) if options.small else (PATCH, PATCHES)
    spacing = SMALL_SPACING if options.small else SPACING
    with TemporaryDirectory() as folder:
        write_cases(Path(folder) / "raw", CASES, spacing=spacing, seed=options.seed)
        settings = {"folder": folder, "patch": patch, "spacing": spacing, "patches": patches, "seed": options.seed}
        measured = compare(_sides(settings), options.rounds)
        figures = [_rates(f"{patch}³ patches of 4 modalities and label, one core", measured, patches)]
        notes = _notes(measured, patches)
        for count in WORKERS:
            side = Side("experiments.benchmark.loader_sides:workers", {**settings, "workers": count})
            found = compare({OURS: side}, options.rounds)
            figures.append(_rates(f"the same from {count} worker process{'es' * (count > 1)}", found, patches))
            notes.append(_memory(count, found[OURS]))
    return Part("loader", figures, [*notes, f"{os.cpu_count()} cores for the workers and what reads from them"])


def _sides(settings: dict[str, Any]) -> dict[str, Side]:
    sides = {OURS: Side("experiments.benchmark.loader_sides:ours", settings, ONE_THREAD)}
    if not missing({"nnunetv2": NNUNET}):
        sides[NNUNET] = Side("experiments.benchmark.loader_sides:nnunet", settings, ONE_THREAD)
    return sides


def _rates(name: str, measured: dict[str, Measured], patches: int) -> Figure:
    """Over all rounds: the mean of a mixture of quick and slow patches is what a loader delivers."""
    rates = {side: patches * len(found.seconds) / sum(found.seconds) for side, found in measured.items()}
    ours = rates.pop(OURS)
    return Figure(name, "patches/s", ours, rates, ours / max(rates.values()) if rates else None)


def _notes(measured: dict[str, Measured], patches: int) -> list[str]:
    medians = ", ".join(f"{name} {side.value:.3f} s" for name, side in measured.items())
    return [
        f"means over {patches * len(measured[OURS].seconds)} patches; median patch of the last round: {medians}",
        "from files to a batch of two in memory: ours from memory-mapped .npy, nnU-Net's loader from "
        "its own compressed files (blosc2), without the coarser labels of deep supervision",
    ]


def _memory(workers: int, found: Measured) -> str:
    name = f"{workers} worker{'s' * (workers > 1)}"
    if found.first_value is None or found.value is None:
        return f"{name}: the system does not tell memory"
    return f"{name}: {found.first_value / 1e9:.2f} GB after the first round, {found.value / 1e9:.2f} GB after the last"
