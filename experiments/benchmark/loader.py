"""Patches with all of nnU-Net's augmentation: our loader, and nnU-Net's with batchgeneratorsv2."""

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments.benchmark.figures import Figure, Options, Part
from experiments.benchmark.loader_sides import BATCH, NNUNET, seconds_per_patch
from experiments.benchmark.machine import missing
from experiments.benchmark.prepare_task import ONE_THREAD, write_cases
from experiments.benchmark.sides import OURS, Measured, Side, compare

PATCH, SMALL_PATCH = 128, 32
PATCHES, SMALL_PATCHES = 30, 4
"""Batches of a round. Only few patches are turned, which takes longest, so a mean of fewer batches would be chance."""
CASES = 2
WORKERS = 1, 2
NOTES = (
    "one core: per second of processor time, of one process with one thread; worker processes: by the clock",
    "from files to a batch of two in memory: ours from memory-mapped .npy, nnU-Net's loader from its own compressed "
    "files (blosc2), without the coarser labels of deep supervision",
    f"{os.cpu_count()} cores for the workers and what reads from them",
)


def measure(options: Options) -> Part:
    """Patches a second on one core, and from worker processes."""
    patch, patches = (SMALL_PATCH, SMALL_PATCHES) if options.small else (PATCH, PATCHES)
    with TemporaryDirectory() as folder:
        write_cases(Path(folder) / "raw", CASES, options.seed, small=options.small)
        settings = {"folder": folder, "patch": patch, "patches": patches, "seed": options.seed}
        sides = _sides(settings)
        compare(sides, options.rounds)
        seconds = {name: seconds_per_patch(Path(folder) / f"{name}.txt", patches) for name in sides}
        figures = [per_core(f"{patch}³ patches of 4 modalities and label, one core", seconds)]
        notes = [_medians(seconds)]
        for count in WORKERS[:1] if options.small else WORKERS:
            side = Side("experiments.benchmark.loader_sides:workers", {**settings, "workers": count}, ONE_THREAD)
            found = compare({OURS: side}, options.rounds)[OURS]
            rate = patches * len(found.seconds) / sum(found.seconds)
            figures.append(Figure(f"the same from {count} worker process{'es' * (count > 1)}", "patches/s", rate))
            notes.append(_memory(count, found))
    return Part("loader", figures, [*notes, *NOTES])


def _sides(settings: Mapping[str, Any]) -> dict[str, Side]:
    sides = {OURS: Side("experiments.benchmark.loader_sides:ours", settings, ONE_THREAD)}
    if not missing({"nnunetv2": NNUNET}):
        sides[NNUNET] = Side("experiments.benchmark.loader_sides:nnunet", settings, ONE_THREAD)
    return sides


def per_core(name: str, seconds: Mapping[str, Sequence[float]]) -> Figure:
    """Patches a second, from the mean processor time: a loader delivers a mixture of quick and slow patches."""
    rates = {side: 1 / statistics.mean(found) for side, found in seconds.items()}
    ours = rates.pop(OURS)
    return Figure(name, "patches/s", ours, rates, ours / max(rates.values()) if rates else None)


def _medians(seconds: Mapping[str, Sequence[float]]) -> str:
    medians = ", ".join(f"{name} {1 / statistics.median(found):.2f} patches/s" for name, found in seconds.items())
    return f"rates are means over {BATCH * len(seconds[OURS])} patches; medians over batches of two: {medians}"


def _memory(workers: int, found: Measured) -> str:
    name = f"{workers} worker{'s' * (workers > 1)}"
    if found.first_value is None or found.value is None:
        return f"{name}: the system does not report memory"
    return f"{name}: {found.first_value / 1e9:.2f} GB after the first round, {found.value / 1e9:.2f} GB after the last"
