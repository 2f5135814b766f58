import math

import numpy as np
import pytest

from experiments.benchmark import loader, loader_sides
from experiments.benchmark.figures import Options
from experiments.benchmark.sides import Measured


def measured(*seconds):
    return Measured(seconds, 1.0, 1.0, 1, 1, None, 0.1, 0.1)


def test_rates_are_means_over_all_rounds():
    found = {loader.OURS: measured(1.0, 3.0), loader.NNUNET: measured(4.0, 4.0)}
    figure = loader._rates("patches", found, 6)
    assert figure.ours == 3.0 and figure.peers == {loader.NNUNET: 1.5} and figure.ratio == 2.0


def test_without_a_peer_there_is_no_ratio():
    assert loader._rates("patches", {loader.OURS: measured(1.0)}, 6).ratio is None


def test_a_run_makes_so_many_patches_and_returns_the_median_of_one(monkeypatch):
    """Batches that take 2, 4, 6, ... seconds, two patches each."""
    ticks = iter(np.repeat(np.cumsum(range(0, 12, 2)), 2)[1:-1].tolist())
    monkeypatch.setattr(loader_sides.time, "perf_counter", lambda: next(ticks))
    made = []
    assert loader_sides._timed(lambda: made.append(1), 10).run() == 3.0
    assert len(made) == 5


def test_the_part_runs():
    part = loader.measure(Options(rounds=1, small=True))
    assert part.name == "loader" and all(math.isfinite(figure.ours) and figure.ours > 0 for figure in part.figures)
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    assert part.ratio > 0 and set(part.figures[0].peers) == {loader.NNUNET}
