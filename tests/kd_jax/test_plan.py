"""Planning through the command."""

import json
import shlex

import numpy as np
import pytest

from data_pipeline.command_line import COMMAND_ERROR, run_command
from data_pipeline.preprocessing import fingerprint
from kd_jax import plan
from kd_jax.config.load import parse_config
from kd_jax.planning.plan_file import read_plan
from tests.data_pipeline.cases import file_of, write_case


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(2):
        write_case(tmp_path / "cases", rng=rng, number=number, shape=(24, 30, 26))
    return tmp_path / "cases"


def command(*arguments) -> int:
    return run_command(plan.main, [*map(str, arguments), "--workers", "1"])


def error(capsys) -> str:
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))


def test_a_folder_of_cases_becomes_a_plan_to_train_with(data, tmp_path, capsys):
    file = tmp_path / "plan.json"
    assert command(data, "-o", file, "--preset", "M", "--ignore-affine") == 0
    config = parse_config(read_plan(file), "plan")
    assert config.data.spacing == (1, 1, 1) and config.data.patch == (20, 28, 24)
    assert config.teacher.encoder == "residual" and config.teacher.convs_encoder == (1, 3, 4)
    document = json.loads(file.read_text())
    assert document["data"]["cases"] == 2 and document["data"]["median_shape_after_crop"] == [20, 26, 22]
    out = capsys.readouterr().out
    assert "20 x 28 x 24 voxels" in out and "16 GB for 2 network(s)" in out and "encoder blocks" in out
    said = shlex.split(out.rpartition("train with: ")[2])
    assert said[:2] == ["kd-jax", "train"]
    assert said[said.index("--plan") + 1] == str(file) and said[said.index("--data.root") + 1] == str(data)
    assert said[said.index("--data.ignore_affine") + 1] == "true"


def test_memory_networks_and_spacing_are_followed(data, tmp_path):
    plans = []
    for number, options in enumerate(
        (
            ["--memory", 0.04, "--networks", 1],
            ["--memory", 0.08],
            ["--memory", 0.04],
            ["--spacing", 2, 1, 1],
        )
    ):
        assert command(data, "-o", tmp_path / f"{number}.json", *options) == 0
        plans.append(read_plan(tmp_path / f"{number}.json"))
    one, two, half, coarse = plans
    assert one == two
    assert np.prod(half["data"]["patch"]) < np.prod(one["data"]["patch"])
    assert coarse["data"]["spacing"] == [2, 1, 1] and coarse["data"]["patch"][0] < 20


def test_a_plan_is_not_replaced_unless_asked(data, tmp_path, capsys, monkeypatch):
    file = tmp_path / "plan.json"
    file.write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "measure_cases", lambda *a, **k: pytest.fail("the work was begun"))
        assert command(data, "-o", file) == COMMAND_ERROR
    assert f"{file}: already there; choose another --output, or pass --overwrite" in error(capsys)
    assert file.read_text() == "mine"
    assert command(data, "-o", file, "--overwrite") == 0
    assert read_plan(file)


def test_cases_that_cannot_be_used_are_listed_and_may_be_left_out(data, tmp_path, capsys):
    file_of(data / "BraTS2021_00001", "BraTS2021_00001", "seg").unlink()
    assert command(data, "-o", tmp_path / "plan.json") == COMMAND_ERROR
    err = capsys.readouterr().err
    assert "1 of 2 cases cannot be used" in err and "--skip-bad:\n  BraTS2021_00001: no label file" in err
    assert not (tmp_path / "plan.json").exists()
    assert command(data, "-o", tmp_path / "plan.json", "--skip-bad") == 0
    assert "--data.skip_bad true" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--memory", "0"], 'invalid value "0.0" for --memory. Must be > 0.'),
        (["--memory", "nan"], 'invalid value "nan" for --memory.'),
        (["--networks", "0"], 'invalid value "0" for --networks. Must be >= 1.'),
        (["--spacing", "1", "-1", "1"], 'invalid value "(1.0, -1.0, 1.0)" for --spacing. Must be > 0.'),
        (["--memory", "0.0001"], "no patch fits"),
    ],
)
def test_impossible_options(data, tmp_path, capsys, options, said):
    assert command(data, "-o", tmp_path / "plan.json", *options) == COMMAND_ERROR
    assert said in error(capsys)
    assert not (tmp_path / "plan.json").exists()


def test_no_cases_and_nowhere_to_write(data, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert command(tmp_path / "empty", "-o", tmp_path / "plan.json") == COMMAND_ERROR
    assert "no cases found" in error(capsys)
    (tmp_path / "file").touch()
    assert command(data, "-o", tmp_path / "file" / "plan.json") == COMMAND_ERROR
    assert "cannot be written" in error(capsys)
