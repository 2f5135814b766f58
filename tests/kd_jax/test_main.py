import importlib.util
import re
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
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, (_, purpose) in COMMANDS.items():
        assert re.search(rf"^│ {name} +{re.escape(purpose)} +│$", printed, re.MULTILINE)


HEAVY = {"flax", "grain", "jax", "matplotlib", "nibabel", "nilearn", "optax", "orbax", "pandas", "scipy", "sklearn"}
"""Packages that are imported when work begins: with them, a help or a worker process would wait for seconds."""
_HELP = """
import contextlib, io, runpy, sys
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    print(module, "--help" in printed.getvalue(), *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_no_help_waits_for_what_only_the_work_needs():
    modules = ["kd_jax", *(module for module, _ in COMMANDS.values())]
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-c", _HELP, *modules]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for module, line in zip(modules, lines, strict=True):
        name, has_help, *imported = line.split()
        assert (name, has_help) == (module, "True")
        assert not HEAVY & set(imported), name


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kd-jax {__version__}\n"


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (["import_nnunet", "x"], 'unknown command "import_nnunet". Did you mean "import-nnunet"?'),
        (["trian"], 'unknown command "trian". Did you mean "train"?'),
        (["segment"], 'unknown command "segment". Available commands: train, '),
        (["--run", "x"], 'unknown command "--run". Available commands: train, '),
    ],
)
def test_a_name_that_is_no_command(capsys, given, answer):
    assert main(given) == COMMAND_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {answer}") and line.endswith("`kd-jax --help` lists all.")


def test_no_command_at_all(capsys):
    assert main([]) == COMMAND_ERROR
    assert "import-nnunet" in capsys.readouterr().out


@pytest.mark.slow
def test_a_command_gets_its_arguments_and_its_worker_processes_start(tmp_path):
    made = _kd_jax("phantom", "made", "--cases", "2", "--spacing", "6", "--workers", "2", cwd=tmp_path)
    assert made.returncode == 0 and "2 phantoms in made" in made.stdout, made.stderr
    assert len(list((tmp_path / "made").glob("*/*_seg.nii.gz"))) == 2


def test_the_exit_status_is_the_commands(tmp_path):
    refused = _kd_jax("check", "nowhere", cwd=tmp_path)
    assert refused.returncode == COMMAND_ERROR and "error: nowhere" in refused.stderr
