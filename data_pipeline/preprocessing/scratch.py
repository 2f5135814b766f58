"""Arrays for volumes of any size: in memory up to a limit, above it in a file that vanishes with the array."""

import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32

from data_pipeline.errors import InputError

IN_MEMORY = 2 << 30
"""Bytes of the largest array kept in memory: four channels of 512³ voxels. Logits of a BraTS case have 0.14 GB."""
SLAB = 64 << 20
"""Bytes of float32 values in one slab, where an array is processed slab by slab."""


def zeros(shape: Sequence[int]) -> Float32[np.ndarray, "..."]:
    """Zeros, in memory or, above `IN_MEMORY`, on disk.

    The file lies in the folder of `tempfile` (TMPDIR), has no name, and vanishes with the array or the process; the
    system writes its pages to disk when memory is short.

    Raises:
      InputError: the disk has no room for the file.
    """
    size = math.prod(shape) * np.dtype(np.float32).itemsize
    if size <= IN_MEMORY:
        return np.zeros(shape, np.float32)
    folder = tempfile.gettempdir()
    try:
        if (free := shutil.disk_usage(folder).free) < size:
            raise OSError(f"{free / 1e9:.1f} GB free")
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                # Reserve the space now: a disk that fills up under a mapped file ends the process without a message.
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.float32, mode="r+", shape=tuple(shape))
    except OSError as error:
        raise InputError(
            f"{folder}: no room for {size / 1e9:.1f} GB of temporary values, an array of {' x '.join(map(str, shape))} "
            f"({error.strerror or error}); free some space, or set TMPDIR to a folder on a larger disk"
        ) from error


def slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Slices of a float32 array's first axis, first to last: at most `SLAB` bytes each, but at least one row."""
    row = math.prod(shape[1:]) * np.dtype(np.float32).itemsize
    count = max(1, SLAB // row)
    for start in range(0, shape[0], count):
        yield slice(start, min(start + count, shape[0]))
