"""Runs two or more programs that do the same work, in turn, each in its own process.

In processes of their own, thread pools do not disturb each other, and each side has its own peak of memory. In turn, a
machine whose speed drifts treats the sides alike.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from experiments.benchmark.figures import Figure

_LINES_SHOWN = 20
"""Lines that are kept of the standard error of a side that failed."""

OURS = "kd_jax"
"""Name of our side."""


@dataclass(frozen=True)
class Side:
    """A competitor.

    Attributes:
      factory: of its `Workload`, "module:function".
      settings: the factory's arguments.
      environment: extra environment variables.
      patience: seconds it may take to set up and run once, and for every further run; None waits for ever.
    """

    factory: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    patience: float | None = None


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
      value: returned by the last run.
      first_value: returned by the first run.
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
    """A side failed; the message ends with its standard error."""


def compare(sides: Mapping[str, Side], rounds: int) -> dict[str, Measured]:
    """Sets up and runs each side once, one after the other, then all `rounds` times in turn.

    Raises:
      SideError: one of them failed.
    """
    with ExitStack() as stack:
        running, begun = {}, {}
        for name, side in sides.items():
            running[name] = stack.enter_context(_Process(name, side))
            begun[name] = running[name].answer()
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
    """How many times faster ours is: the median over rounds of the peer's time divided by ours."""
    return statistics.median(b / a for a, b in zip(ours.seconds, peer.seconds, strict=True))


def time_figure(name: str, measured: Mapping[str, Measured], ours: str = OURS, *, pieces: int = 1) -> Figure:
    """Median seconds of every side for one of the `pieces` of a run; the ratio is against the fastest peer."""
    peers = {other: side for other, side in measured.items() if other != ours}
    fastest = min(peers.values(), key=lambda side: side.median, default=None)
    return Figure(
        name,
        "s",
        measured[ours].median / pieces,
        {other: side.median / pieces for other, side in peers.items()},
        None if fastest is None else speed_ratio(measured[ours], fastest),
    )


def size_figure(name: str, unit: str, values: Mapping[str, float]) -> Figure:
    """A quantity where less is better; the ratio compares with the best peer."""
    peers = {other: value for other, value in values.items() if other != OURS}
    return Figure(name, unit, values[OURS], peers, min(peers.values()) / values[OURS] if peers else None)


class _Process:
    """A running side; leaving its context ends it."""

    def __init__(self, name: str, side: Side) -> None:
        self.name, self._patience = name, side.patience
        self._messages = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed on leaving; a pipe would fill
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.benchmark.worker", side.factory, json.dumps(dict(side.settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
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
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._messages.close()

    def ask(self) -> dict[str, Any]:
        """One more run."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line it says."""
        assert self._process.stdout is not None
        alarm = threading.Timer(self._patience or threading.TIMEOUT_MAX, self._process.kill)
        alarm.daemon = True
        alarm.start()
        line = self._process.stdout.readline()
        too_late = not alarm.is_alive()
        alarm.cancel()
        if not line:
            raise SideError(self._complaint(too_late))
        return json.loads(line)

    def _complaint(self, too_late: bool) -> str:
        if too_late:
            return f"{self.name} took longer than {self._patience:g} s"
        status = self._process.wait()
        self._messages.seek(0)
        last = self._messages.read().splitlines()[-_LINES_SHOWN:]
        return "\n".join([f"{self.name} ended with status {status}:", *last])
