"""Twenty steps on the real cases that have four modalities."""

import math
from pathlib import Path

import pytest

from data_pipeline.command_line import run_command
from kd_jax.train import main
from kd_jax.training.journal import read_log

REAL = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


SETTINGS = """
    --data.skip_bad true --data.fold all --data.patch 24 24 24 --train.epochs 4 --train.iterations 5
    --train.validation_iterations 1 --teacher.features 4 8 16 --student.features 4 8 16
"""


@pytest.mark.skipif(not REAL.is_dir(), reason="the real cases are not beside this checkout")
def test_twenty_steps_on_real_cases_lower_the_loss(tmp_path, capsys):
    places = ["--data.root", str(REAL), "--data.cache", str(tmp_path / "cache"), "--run", str(tmp_path / "run")]
    assert run_command(main, [*places, *SETTINGS.split()]) == 0
    said = capsys.readouterr()
    assert "2 training and 2 validation cases" in said.out and "brats_2013_pat0001_1: has no t1, t2" in said.err
    epochs = [record for record in read_log(tmp_path / "run") if record["kind"] == "epoch"]
    assert epochs[-1]["step"] == 20
    for name in ("teacher/loss", "student/loss", "student/barlow_twins/loss"):
        values = [record[name] for record in epochs]
        assert all(math.isfinite(value) for value in values)
        assert values[-1] < values[0], name
