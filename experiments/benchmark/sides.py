"""Two or more programs doing the same work in turn, each in its own process.

Their own processes, so that thread pools do not disturb each other and each has its own peak of memory; in turn, so
that a machine whose speed drifts is as kind to one as to the other.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from experiments.benchmark.figures import Figure


@dataclass(frozen=True)
class Side:
    """Who competes: a factory of a `Workload`, "module:function", its settings and extra environment variables."""

    factory: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One side's runs.

    Attributes:
      seconds: of each round.
      set_up: seconds to build it.
      first: seconds of the first run, compilation included.
      peak: bytes of host memory at most, after the first run.
      peak_with_set_up: the same over its whole life.
      device_peak: bytes of accelerator memory at most, or None.
      value: what the last run returned.
      first_value: what the first run returned.
    """

    seconds: Sequence[float]
    set_up: float
    first: float
    peak: int
    peak_with_set_up: int
    device_peak: int | None
    value: float | None
    first_value: float | None

    @property
    def median(self) -> float:
        """Seconds of the median round."""
        return statistics.median(self.seconds)


class SideError(RuntimeError):
    """A side could not do its work; the message ends with what it wrote to standard error."""


def compare(sides: Mapping[str, Side], rounds: int) -> dict[str, Measured]:
    """Runs all sides once to warm up, then `rounds` times in turn.

    Raises:
      SideError: one of them failed.
    """
    with ExitStack() as stack:
        running = {name: stack.enter_context(_Process(name, side)) for name, side in sides.items()}
        begun = {name: process.answer() for name, process in running.items()}
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for turn in range(rounds):
            order = list(sides) if turn % 2 == 0 else list(reversed(list(sides)))
            for name in order:
                answers[name].append(running[name].ask())
    return {
        name: Measured(
            seconds=[a["seconds"] for a in answers[name]],
            set_up=begun[name]["set_up"],
            first=begun[name]["first"],
            peak=answers[name][-1]["peak"],
            peak_with_set_up=answers[name][-1]["peak_with_set_up"],
            device_peak=answers[name][-1]["device_peak"],
            value=answers[name][-1]["value"],
            first_value=begun[name]["value"],
        )
        for name in sides
    }


def speed_ratio(ours: Measured, peer: Measured) -> float:
    """How many times faster ours is: the median over rounds of the peer's time by ours."""
    return statistics.median(b / a for a, b in zip(ours.seconds, peer.seconds, strict=True))


def time_figure(name: str, measured: Mapping[str, Measured], ours: str) -> Figure:
    """Median seconds of every side; the ratio is against the fastest peer."""
    peers = {other: side for other, side in measured.items() if other != ours}
    fastest = min(peers.values(), key=lambda side: side.median, default=None)
    return Figure(
        name,
        "s",
        measured[ours].median,
        {other: side.median for other, side in peers.items()},
        None if fastest is None else speed_ratio(measured[ours], fastest),
    )


class _Process:
    """A running side; leaving its context ends it."""

    def __init__(self, name: str, side: Side) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.benchmark.worker", side.factory, json.dumps(dict(side.settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **side.environment},
        )

    def __enter__(self) -> "_Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def ask(self) -> dict[str, Any]:
        """One more run."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SideError(f"{self.name} ended with status {self._process.wait()}; its own message is above")
        return json.loads(line)
