import os
import time
from pathlib import Path

import pytest

from experiments.benchmark.sides import Measured, Side, SideError, compare, speed_ratio, time_figure
from experiments.benchmark.workload import Workload

HERE = "tests.experiments.benchmark.test_sides"


def counting(*, path: str, name: str, lines: int = 0) -> Workload:
    """Writes its name to a file at each run and returns how often it ran; says a lot meanwhile."""
    runs = 0

    def run() -> float:
        nonlocal runs
        runs += 1
        print("to standard output, which is not where answers go\n" * lines)
        with Path(path).open("a") as file:
            file.write(name)
        return runs

    return Workload(run)


def environment(*, key: str) -> Workload:
    return Workload(lambda: float(os.environ[key]))


def failing() -> Workload:
    raise ValueError("the disk is on fire")


def sleeping(*, seconds: float) -> Workload:
    return Workload(lambda: time.sleep(seconds))


def allocating(*, megabytes: int) -> Workload:
    """The first run takes far more memory than the others."""
    sizes = iter([megabytes])
    return Workload(lambda: float(len(bytearray(next(sizes, 1) * 10**6))))


def measured(*seconds: float) -> Measured:
    return Measured(seconds, 1.0, 2.0, 10**9, 2 * 10**9, None, None, None)


def test_sides_start_one_after_the_other_and_then_take_turns(tmp_path):
    path = tmp_path / "order"
    settings = {"path": str(path), "lines": 20_000}
    found = compare({n: Side(f"{HERE}:counting", {**settings, "name": n}) for n in "ab"}, rounds=3)
    assert path.read_text() == "ab" + "ab" + "ba" + "ab"
    assert [len(side.seconds) for side in found.values()] == [3, 3]
    assert [(side.first_value, side.value) for side in found.values()] == [(1, 4), (1, 4)]


def test_a_side_has_its_environment():
    found = compare({"a": Side(f"{HERE}:environment", {"key": "KD_JAX_TEST"}, {"KD_JAX_TEST": "7"})}, rounds=1)
    assert found["a"].value == 7


def test_a_side_that_fails_is_told_with_its_own_last_words():
    with pytest.raises(SideError, match=r"(?s)^broken ended with status 1.*ValueError: the disk is on fire$"):
        compare({"broken": Side(f"{HERE}:failing")}, rounds=1)


def test_a_side_that_takes_too_long_is_ended():
    started = time.monotonic()
    with pytest.raises(SideError, match="slow took longer than 2 s"):
        compare({"slow": Side(f"{HERE}:sleeping", {"seconds": 60}, patience=2)}, rounds=1)
    assert time.monotonic() - started < 30


def test_the_peak_after_warming_up_leaves_out_what_only_the_first_run_took():
    found = compare({"a": Side(f"{HERE}:allocating", {"megabytes": 200})}, rounds=1)["a"]
    assert found.peak_with_set_up - found.peak > 150e6


def test_ratios_are_of_paired_rounds():
    ours, peer = measured(1, 10, 2), measured(3, 20, 8)  # 3, 2 and 4 times as long
    assert speed_ratio(ours, peer) == 3


def test_the_ratio_of_a_figure_is_against_the_fastest_peer():
    sides = {"slow": measured(9, 9), "ours": measured(2, 2), "fast": measured(4, 4)}
    figure = time_figure("work", sides, "ours")
    assert (figure.ours, figure.peers, figure.ratio) == (2, {"slow": 9, "fast": 4}, 2)
    assert time_figure("work", {"ours": measured(2)}, "ours").ratio is None
