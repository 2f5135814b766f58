import math

import pytest

from experiments.benchmark import loader, loader_sides
from experiments.benchmark.figures import Options


def test_rates_are_means():
    figure = loader.per_core("patches", {loader.OURS: [0.1, 0.3], loader.NNUNET: [0.4, 0.4]})
    assert figure.ours == 5.0 and figure.peers == {loader.NNUNET: 2.5} and figure.ratio == 2.0


def test_without_a_peer_there_is_no_ratio():
    assert loader.per_core("patches", {loader.OURS: [0.1]}).ratio is None


def test_seconds_of_every_batch_but_the_first_run_are_kept(tmp_path, monkeypatch):
    """Batches of two that take 2, 4, ..., 20 seconds, five in a run."""
    clock = [0.0]
    monkeypatch.setattr(loader_sides.time, "process_time", lambda: clock[0])

    def batch():
        batch.number += 1
        clock[0] += 2 * batch.number

    batch.number = 0
    work = loader_sides._timed(batch, 10, tmp_path / "seconds")
    work.run()
    work.run()
    assert loader_sides.seconds_per_patch(tmp_path / "seconds", 10) == [6, 7, 8, 9, 10]


@pytest.mark.slow
def test_the_part_runs():
    part = loader.measure(Options(rounds=1, small=True))
    assert part.name == "loader" and all(math.isfinite(figure.ours) and figure.ours > 0 for figure in part.figures)
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    assert part.ratio > 0 and set(part.figures[0].peers) == {loader.NNUNET}
