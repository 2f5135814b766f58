"""`kill -9` at random moments of the command. `make kills` gives as many as the README states."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.owner import is_dead
from tests.data_pipeline.cases import write_case

KILLS = int(os.environ.get("KD_JAX_KILLS", "3"))
ROOT = Path(__file__).resolve().parents[2]
CASES = 8

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals of a process group"),
]


def start(data: Path, cache: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "data_pipeline.prepare", str(data), "--cache", str(cache), "--workers", "2"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def finish(process: subprocess.Popen) -> str:
    printed = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, printed
    return printed


def contents(cache: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(cache)): p.read_bytes() if p.is_file() else None for p in cache.rglob("*")}


def names(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "prepared").glob("*"))


def half_written(cache: Path) -> list[str]:
    return [name for name in names(cache) if name.endswith(".tmp")]


def wait_until_it_writes(process: subprocess.Popen, cache: Path) -> None:
    before = half_written(cache)
    while process.poll() is None and set(half_written(cache)) <= set(before):
        time.sleep(0.0005)


def kill_all(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):  # the command may have been quicker
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_until_dead(owners: list[str]) -> None:
    """A killed process closes its files before it has ended."""
    for _ in range(200):
        if all(is_dead(owner) for owner in owners):
            return
        time.sleep(0.05)
    raise AssertionError(f"{owners}: still alive")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    for number in range(CASES):
        write_case(folder / "data", rng=np.random.default_rng(number), number=number, shape=(30, 32, 28))
    return folder


@pytest.fixture(scope="module")
def undisturbed(place) -> tuple[dict[str, bytes | None], float]:
    """The cache of a run that nothing disturbs, and the seconds it took."""
    started = time.monotonic()
    finish(start(place / "data", place / "whole"))
    return contents(place / "whole"), time.monotonic() - started


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(place, undisturbed):
    """Every other kill comes at any moment of a run's length, the others while a case is written."""
    expected, seconds = undisturbed
    cache, rng, running, halves = place / "killed", np.random.default_rng(0), 0, 0
    for kill in range(KILLS):
        entries = [name for name in names(cache) if name not in half_written(cache)]
        if len(entries) > CASES // 2:  # there is always work left
            shutil.rmtree(cache / "prepared" / entries[rng.integers(len(entries))])
        process = start(place / "data", cache)
        if kill % 2:
            time.sleep(rng.uniform(0, seconds))
        else:
            wait_until_it_writes(process, cache)
        running += process.poll() is None
        kill_all(process)
        left = half_written(cache)
        wait_until_dead([name.split(".")[-3] for name in left])
        halves += bool(left)
    print(f"{KILLS} kills, {running} of a command that ran, {halves} left a half-written case")
    assert running > KILLS // 2
    printed = finish(start(place / "data", cache))
    assert f"{CASES} cases in {cache / 'prepared'}" in printed
    assert contents(cache) == expected


def test_workers_end_with_their_parent(place):
    cache = place / "parent"
    process = start(place / "data", cache)
    wait_until_it_writes(process, cache)
    os.kill(process.pid, signal.SIGKILL)
    # The pipe is open as long as any process of the group lives.
    process.communicate(timeout=60)
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.05)
