"""Stopping a run on Ctrl-C or SIGTERM without losing work."""

import signal
import sys
from types import FrameType
from typing import Self

import jax
import numpy as np
from jax.experimental import multihost_utils

AGREE_EVERY = 10
"""Steps between the hosts telling each other whether one was asked to stop."""
_SIGNALS = signal.SIGINT, signal.SIGTERM


class StopRequest:
    """Remembers the first signal, so that the step in progress can end and be saved; the second interrupts."""

    def __init__(self) -> None:
        self.requested = False
        self.exit_status = 0
        self._received = 0
        self._previous: dict[int, object] = {}

    def agreed(self, step: int) -> bool:
        """Whether to stop before `step`; the same answer on every host."""
        if jax.process_count() == 1:
            return self.requested
        if not self.requested and step % AGREE_EVERY == 0:
            flags = multihost_utils.process_allgather(np.array(self._received))
            if flags.any():
                self.requested, self.exit_status = True, 128 + int(flags.max())
        return self.requested

    def _remember(self, number: int, _: FrameType | None) -> None:
        if self._received:  # by this process: that the hosts have agreed to stop is no second signal
            raise KeyboardInterrupt
        self._received = number
        if jax.process_count() == 1:
            self.requested, self.exit_status = True, 128 + number
        print(f"\n{signal.Signals(number).name}: saving after this step; once more to stop at once", file=sys.stderr)

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
