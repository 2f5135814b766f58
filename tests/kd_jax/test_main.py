import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.command_line import COMMAND_ERROR
from kd_jax import __version__
from kd_jax.__main__ import COMMANDS, main


def _kd_jax(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "kd_jax", *arguments], cwd=cwd, capture_output=True, text=True)


def test_every_command_is_a_module_that_runs():
    for module, _ in COMMANDS.values():
        found = importlib.util.find_spec(module)
        assert found is not None
        assert found.submodule_search_locations is None or importlib.util.find_spec(f"{module}.__main__")


def test_help_gives_each_command_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(line) <= 80


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"kd-jax {__version__}\n"


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (["import_nnunet", "x"], "unknown command import_nnunet (did you mean import-nnunet?)"),
        (["trian"], "unknown command trian (did you mean train?)"),
        (["segment"], "unknown command segment; --help lists all"),
        (["--run", "x"], "required: COMMAND"),
    ],
)
def test_a_name_that_is_no_command(capsys, given, answer):
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == COMMAND_ERROR
    assert answer in capsys.readouterr().err


def test_no_command_at_all(capsys):
    assert main([]) == COMMAND_ERROR
    assert "import-nnunet" in capsys.readouterr().err


@pytest.mark.slow
def test_a_command_gets_its_arguments_and_its_worker_processes_start(tmp_path):
    made = _kd_jax("phantom", "made", "--cases", "2", "--spacing", "6", "--workers", "2", cwd=tmp_path)
    assert made.returncode == 0 and "2 phantoms in made" in made.stdout, made.stderr
    assert len(list((tmp_path / "made").glob("*/*_seg.nii.gz"))) == 2


def test_the_exit_status_is_the_commands(tmp_path):
    refused = _kd_jax("check", "nowhere", cwd=tmp_path)
    assert refused.returncode == COMMAND_ERROR and "error: nowhere" in refused.stderr
