import errno
import os
import tracemalloc

import numpy as np
import pytest

from data_pipeline.errors import InputError
from data_pipeline.preprocessing import scratch

SHAPE = (50, 40, 30, 4)  # 0.96 MB


def test_small_arrays_are_ordinary_ones_and_large_ones_take_no_memory(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert type(scratch.zeros(SHAPE)) is np.ndarray
    monkeypatch.setattr(scratch, "IN_MEMORY", 959_999)
    tracemalloc.start()
    array = scratch.zeros(SHAPE)
    array[7] = 3
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(array, np.memmap) and peak < 100_000
    assert array.shape == SHAPE and array.sum() == 3 * 40 * 30 * 4
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_no_room_is_reported_before_the_work(monkeypatch):
    monkeypatch.setattr(scratch, "IN_MEMORY", 0)
    with pytest.raises(InputError, match=r"no room for .* GB of temporary values.*GB free.*set TMPDIR"):
        scratch.zeros((10**6, 10**6, 10**6))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="No space left on device"):
        scratch.zeros(SHAPE)


@pytest.mark.parametrize("rows", [0, 1, 7, 50, 51])
def test_slabs_cover_every_row_once_within_the_bound(monkeypatch, rows):
    monkeypatch.setattr(scratch, "SLAB", rows * 40 * 30 * 4 * 4)
    found = list(scratch.slabs(SHAPE))
    assert [i for s in found for i in range(s.start, s.stop)] == list(range(50))
    assert max(s.stop - s.start for s in found) == min(max(rows, 1), 50)
