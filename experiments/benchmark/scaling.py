"""The cost of more devices, more chips and more cases."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from experiments.benchmark.figures import Figure, Options, Part
from experiments.benchmark.scaling_devices import device_figures, measure_devices, name_of
from experiments.benchmark.scaling_loader import Loading, Task, prepared_cases
from experiments.benchmark.scaling_network import network_part

DEVICES = 1, 2, 4
CASES = 10, 250, 1251
"""The last is BraTS 2021's training set."""
BATCHES, EPOCHS = 100, 4
"""In each of so many stretches, after which memory is looked at."""
WORKERS = 0, 2


def measure(options: Options) -> Part:
    """Uses this machine's CPU, whatever else it has; takes minutes, most of them for compilation."""
    small = options.small
    counts, features, patch, steps = ((1, 2), (4, 8), 8, 2) if small else (DEVICES, (8, 16, 32), 32, 5)
    measured = measure_devices(counts, features, patch, steps, options.rounds, options.seed)
    figures = device_figures(counts, measured, steps, f"{patch}³ patches")
    losses = {f"on {n}": measured[name_of(n, max(counts))].first_value for n in counts}
    notes = [
        "virtual devices share the cores: the same work should take the same time, and 1 means it does; a batch on one "
        "device is other work for a CPU than as many single patches",
        f"losses of the same batch of {max(counts)}: "
        + ", ".join(f"{name} {value:.6f}" for name, value in losses.items()),
    ]
    for more, said in (
        ([], ["no bytes between TPU chips: left out of a small run"])
        if small
        else network_part((8, 16), 8, options.seed),
        _loader_part(small),
    ):
        figures += more
        notes += said
    return Part("scaling", figures, notes)


def _loader_part(small: bool) -> tuple[list[Figure], list[str]]:
    counts, batches, epochs = ((3, 6), 3, 2) if small else (CASES, BATCHES, EPOCHS)
    figures, notes = [], []
    with tempfile.TemporaryDirectory() as cache:
        prepared_cases(Path(cache))
        for workers in WORKERS[:1] if small else WORKERS:
            tasks = [Task(count, workers, 16 if small else 32, 2, batches, epochs, cache) for count in counts]
            first = [load(task) for task in tasks]
            again = first if small else [load(task) for task in reversed(tasks)][::-1]  # the machine may drift
            runs = zip(counts, first, again, strict=True)
            found = {count: faster_of(one, other) for count, one, other in runs}
            by = f"{workers} workers" if workers else "threads"
            figures += loader_figures(found, by, batches)
            notes += memory_notes(found, by, batches)
    return figures, notes


def faster_of(one: Loading, other: Loading) -> Loading:
    """The shorter times of two runs; memory is the first's."""
    return Loading(min(one.start, other.start), min(one.epochs, other.epochs, key=np.median), one.memory)


def load(task: Task) -> Loading:
    """One run of the loader in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark.scaling_loader"],
        input=json.dumps(asdict(task)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Loading(**json.loads(done.stdout))


def loader_figures(found: Mapping[int, Loading], by: str, batches: int) -> list[Figure]:
    """Compares the most cases with the fewest: batches, the first of them, and the memory."""
    few, many = min(found), max(found)
    what = f"of {many:,} cases, loaded by {by}"

    def figure(name: str, unit: str, values: Mapping[int, float]) -> Figure:
        return Figure(name, unit, values[many], {f"{few} cases": values[few]}, values[few] / values[many])

    figures = [
        figure(f"{batches} batches {what}", "s", {n: float(np.median(f.epochs)) for n, f in found.items()}),
        figure(f"first batch {what}", "s", {n: f.start for n, f in found.items()}),
    ]
    if all(f.memory for f in found.values()):
        figures.append(figure(f"memory {what}", "MB", {n: float(np.median(f.memory)) / 1e6 for n, f in found.items()}))
    return figures


def memory_notes(found: Mapping[int, Loading], by: str, batches: int) -> list[str]:
    """How memory grows with cases and with batches, by least squares."""
    if not all(f.memory for f in found.values()):
        return [f"memory of the loader ({by}): this system does not report it"]
    per_case = _slope(list(found), [float(np.median(f.memory)) for f in found.values()])
    per_epoch = float(np.mean([_slope(range(len(f.memory)), f.memory) for f in found.values()]))
    return [
        f"memory of the loader ({by}, all processes): {1000 * per_case / 1e6:+.1f} MB per 1,000 cases, "
        f"{per_epoch / batches * 1000 / 1e6:+.1f} MB per 1,000 batches"
    ]


def _slope(x: Sequence[int], y: Sequence[float]) -> float:
    return float(np.polyfit(x, y, 1)[0])
