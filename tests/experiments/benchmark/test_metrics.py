import numpy as np
import pytest

from experiments.benchmark import metrics, metrics_sides
from experiments.benchmark.figures import Options
from experiments.benchmark.metrics_cases import make_pair
from kd_jax.metrics import region_scores

SETTINGS = {"shape": (48, 48, 32), "volumes_ml": [1.0, 1.6], "seed": 0}


def test_a_prediction_is_good_and_its_tumour_has_the_size_asked_for():
    pair = make_pair((96, 96, 80), 30.0, seed=1)
    scores = region_scores(*pair, (1.0, 1.0, 1.0), "nan")
    assert scores["WT"]["reference_volume_ml"] == pytest.approx(30, rel=0.15)
    assert 0.85 < scores["WT"]["dice"] < 0.98 and 0.5 < scores["ET"]["dice"] < scores["TC"]["dice"]
    assert all(1 <= region["hd95_mm"] < 12 for region in scores.values())
    assert all(np.array_equal(*maps) for maps in zip(pair, make_pair((96, 96, 80), 30.0, seed=1), strict=True))


def test_a_shifted_prediction_is_that_far_away():
    scores = region_scores(*make_pair((96, 96, 80), 10.0, seed=1, shift=15), (1.0, 1.0, 1.0), "nan")
    assert scores["WT"]["hd95_mm"] == pytest.approx(15, abs=2)


def test_monai_finds_the_same():
    pytest.importorskip("monai", reason="MONAI is not installed")
    ours, theirs = metrics_sides.ours(**SETTINGS).run(), metrics_sides.monai(**SETTINGS).run()
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_medpy_finds_no_more():
    pytest.importorskip("medpy", reason="MedPy is not installed")
    ours, theirs = metrics_sides.ours(**SETTINGS).run(), metrics_sides.medpy(**SETTINGS).run()
    assert 0.3 * ours < theirs <= ours


@pytest.mark.slow
def test_the_part_runs(capfd):
    pytest.importorskip("monai", reason="MONAI is not installed")
    part = metrics.measure(Options(rounds=1, small=True))
    assert part.name == "metrics" and part.ratio > 0
    assert set(part.figures[0].peers) == {"MONAI"} and set(part.figures[1].peers) == {"MedPy"}
