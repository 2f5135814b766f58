"""The work that each side of a comparison does."""

from collections.abc import Callable
from dataclasses import dataclass

BRATS_SHAPE = 240, 240, 155
"""Voxels of a BraTS case."""


@dataclass(frozen=True)
class Workload:
    """A piece of work to be timed, made by a factory `(**settings) -> Workload`.

    Attributes:
      run: does the work once and returns when it is finished, also on the device. Its value (a number or None) is
        passed on, to show that both sides computed the same.
      device_memory: peak bytes of the accelerator so far, or None on a CPU.
    """

    run: Callable[[], float | None]
    device_memory: Callable[[], int | None] = lambda: None
