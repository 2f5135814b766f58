import numpy as np
import pytest

from experiments.benchmark import machine, step
from experiments.benchmark.figures import Options
from experiments.benchmark.sides import Measured
from experiments.benchmark.step_task import SIZES, draw_batch, make_config


def measured(seconds, first=1.0, gigabytes=1.0, loss=None):
    return Measured([seconds], 1.0, first, int(gigabytes * 1e9), int(2 * gigabytes * 1e9), None, loss, loss)


def test_both_sides_take_the_same_steps(tmp_path):
    for module in step.ORIGINALS:
        pytest.importorskip(module)
    from experiments.benchmark import pytorch, step_jax

    settings = {"size": "small", "precision": "float32", "seed": 0, "weights": str(tmp_path / "weights.npz")}
    theirs, last = pytorch.joint_step(**settings), pytorch.joint_step(**settings, channels_last=True)
    ours = step_jax.joint_step(**settings)
    losses = [(ours.run(), theirs.run(), last.run()) for _ in range(3)]
    assert losses[0][0] != losses[1][0]
    for mine, *originals in losses:
        assert originals == pytest.approx([mine, mine], rel=1e-4)


@pytest.mark.slow
def test_without_the_originals_our_side_is_measured_without_a_ratio(monkeypatch):
    monkeypatch.setattr(machine, "missing", lambda modules: ["torch"])
    part = step.measure(Options(rounds=1, small=True))
    assert part.ratio is None
    assert part.figures[0].ours > 0
    assert "without a ratio: torch not installed" in part.notes


def test_on_a_cpu_every_form_about_as_fast_as_the_fastest_contends():
    tried = {"slow": measured(2.0), "fast": measured(1.0), "near": measured(1.1)}
    assert step.contenders(tried, one=False) == ["fast", "near"]
    assert step.contenders(tried, one=True) == ["fast"]
    assert step.contenders({}, one=False) == []


def test_memory_and_compilation_are_beside_the_best_of_all_forms():
    tried = {"lean": measured(9.0, first=3.0, gigabytes=2.0), "fast": measured(5.0, first=60.0, gigabytes=5.0)}
    both = {"fast": measured(6.0, first=8.0, gigabytes=4.0), step.OURS: measured(3.0, first=12.0, gigabytes=1.0)}
    figures = {f.name: f for f in step.step_figures(step.Comparison(both, tried, []), "x", batch=2)}
    time, rate = figures["joint step, x"], figures["pairs of patches, x"]
    assert (time.peers, time.ratio) == ({"fast": 6.0}, 2)
    assert (rate.ours, rate.peers) == (pytest.approx(2 / 3), {"fast": pytest.approx(1 / 3)})
    assert figures["peak host memory, x"].ratio == 2
    first = figures["first step, compilation included, x"]
    assert (first.peers, first.ratio) == ({"lean": 3.0, "fast": 60.0}, 0.25)


def test_ours_without_compiled_operators_is_no_peer_of_ours():
    sides = {"them": measured(6.0), step.PLAIN: measured(4.0), step.OURS: measured(2.0)}
    first, *_, last = step.step_figures(step.Comparison(sides, {}, []), "x", batch=1)
    assert (first.ours, first.peers, first.ratio) == (2.0, {"them": 6.0}, 3)
    assert (last.ours, last.peers, last.ratio) == (4.0, {"them": 6.0}, 1.5)


@pytest.mark.parametrize("size", ["small", "cpu"])
def test_a_batch_fits_its_run_and_holds_every_class_on_every_level(size):
    config = make_config(size, "float32", seed=0)
    image, labels = draw_batch(config, seed=0)
    assert image.shape == (SIZES[size].batch, *SIZES[size].patch, 4)
    stride = config.teacher.total_stride[0] // 2
    assert set(np.unique(labels[:, ::stride, ::stride, ::stride])) == {0, 1, 2, 3}
    assert config.teacher.stage_convs_encoder == (2,) * len(SIZES[size].features)
