"""The loader with few and with many cases: `python -m experiments.benchmark.scaling_loader`.

Reads settings as JSON from standard input and writes one JSON line of `Loading`'s fields to standard output. It runs in
a process of its own, so that its memory is the loader's.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from data_pipeline.cache.entry import PreparedCase
from data_pipeline.cache.fill import prepare_cases
from data_pipeline.layouts.find import find_cases
from data_pipeline.patches.loader import Batches, training_batches
from data_pipeline.patches.stream import LoaderSettings
from data_pipeline.phantom.data_set import case_name
from experiments.benchmark.prepare_task import write_noise

DIFFERENT = 3
"""Cases that differ; the others are hard links to them."""
SHAPE = 96, 96, 80
_TUMOUR_ML = 30.0


@dataclass(frozen=True)
class Task:
    """The work of one run of the loader.

    Attributes:
      cases: number of them.
      workers: processes; 0 uses threads.
      patch: voxels along each axis.
      batch: patches per step.
      batches: per epoch.
      epochs: after each of which memory is looked at.
      cache: folder for the cases.
    """

    cases: int
    workers: int
    patch: int
    batch: int
    batches: int
    epochs: int
    cache: str


@dataclass(frozen=True)
class Loading:
    """The measurements of one run.

    Attributes:
      start: seconds until the first batch was there.
      epochs: seconds of each epoch.
      memory: bytes of the process's own memory after each epoch, its workers included; none where the system does not
        tell. Mapped files are not counted: the system takes their memory back whenever it needs some.
    """

    start: float
    epochs: Sequence[float]
    memory: Sequence[int]


def main() -> None:
    """Reads the settings, loads, answers."""
    task = Task(**json.load(sys.stdin))
    settings = LoaderSettings((task.patch,) * 3, batch=task.batch, workers=task.workers)
    with many_cases(task.cases, Path(task.cache)) as cases:
        started = time.perf_counter()
        with training_batches(cases, settings, seed=0) as batches:
            next(batches)
            start = time.perf_counter() - started
            epochs, memory = zip(*(_epoch(batches, task.batches) for _ in range(task.epochs)), strict=True)
    print(json.dumps(asdict(Loading(start, epochs, [m for m in memory if m is not None]))))


def _epoch(batches: Batches, count: int) -> tuple[float, int | None]:
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    return time.perf_counter() - started, memory_of_tree(os.getpid())


@contextmanager
def many_cases(count: int, cache: Path) -> Iterator[list[PreparedCase]]:
    """As many prepared cases as asked for, each with its own folder and name, in a folder that vanishes."""
    few = prepared_cases(cache)
    with TemporaryDirectory(dir=cache) as folder:
        yield [_linked(few[number % len(few)], f"case_{number:04}", Path(folder)) for number in range(count)]


def prepared_cases(cache: Path) -> list[PreparedCase]:
    """The files that all cases link to: noise with a tumour in it, made at the first call."""
    root = cache / "cases"
    for number in range(DIFFERENT):
        if not (root / case_name(number)).exists():
            write_noise(root / case_name(number), SHAPE, _TUMOUR_ML, number)
    return prepare_cases(find_cases(root), 1.0, cache / "prepared", workers=0, progress=False)


def _linked(case: PreparedCase, name: str, root: Path) -> PreparedCase:
    folder = root / name
    folder.mkdir()
    for file in case.folder.iterdir():
        os.link(file, folder / file.name)
    return replace(case, id=name, patient=name, folder=folder, source=replace(case.source, id=name, patient=name))


def memory_of_tree(process: int) -> int | None:
    """Anonymous and shared memory of a process and its children in bytes; None where there is no /proc."""
    if not Path(f"/proc/{process}/status").exists():
        return None
    total, todo = 0, [process]
    while todo:
        current = Path(f"/proc/{todo.pop()}")
        fields = dict(line.split(":", 1) for line in (current / "status").read_text().splitlines())
        total += sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
        for children in current.glob("task/*/children"):
            todo += map(int, children.read_text().split())
    return total


if __name__ == "__main__":
    main()
