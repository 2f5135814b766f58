"""One side of a comparison, in a process of its own: `python -m experiments.benchmark.worker MODULE:FACTORY SETTINGS`.

Reads one word per line and answers each with one line of JSON: `run` does the work once and returns its time. The
process ends with its input. Anything that the work prints goes to standard error.
"""

import ctypes
import gc
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def main(target: str, settings: Mapping[str, Any]) -> None:
    """Sets up, runs once (which compiles), reports that, and then runs as often as it is asked to."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")

    module, factory = target.split(":")
    started = time.perf_counter()
    workload = getattr(importlib.import_module(module), factory)(**settings)
    set_up = time.perf_counter() - started
    started = time.perf_counter()
    value = workload.run()
    first = time.perf_counter() - started
    whole_peak = _peak_bytes()
    _forget_peak()
    answer(set_up=set_up, first=first, value=value)
    for _ in sys.stdin:
        started = time.perf_counter()
        value = workload.run()
        seconds = time.perf_counter() - started
        answer(
            seconds=seconds,
            value=value,
            peak=_peak_bytes(),
            peak_with_set_up=max(whole_peak, _peak_bytes()),
            device_peak=workload.device_memory(),
        )


def _peak_bytes() -> int:
    """Largest resident size since `_forget_peak`, or over the whole life where the system cannot reset it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def _forget_peak() -> None:
    """Resets the peak, after returning the memory that set-up and compilation freed to the system."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak of memory includes compilation: this system cannot reset it", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
