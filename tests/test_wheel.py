"""What a user gets who installs the package and has no checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from kd_jax import __version__

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kd_jax", "data_pipeline")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # Built from a copy: in the checkout, setuptools would take stale files of build/ into the wheel.
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "experiments", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    _pip("install", "--no-deps", "--target", folder, wheel)
    return folder


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


def _files(package: str) -> set[str]:
    files = (file for file in (ROOT / package).rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {file.relative_to(ROOT).as_posix() for file in files}


def test_the_wheel_holds_both_packages_with_their_data_and_nothing_else(wheel):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {"kd_jax/config/presets/paper.toml", "kd_jax/py.typed", "kd_jax/native/module.cc"} <= names
    assert names == set().union(*map(_files, PACKAGES))


def test_the_wheel_brings_the_console_script(wheel):
    with ZipFile(wheel) as archive:
        (file,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "kd-jax = kd_jax.__main__:main" in archive.read(file).decode()


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["-m", "kd_jax", "--version"], f"kd-jax {__version__}"),
        (["-m", "kd_jax", "train", "--config", "paper", "--help"], "--config"),
        (["-c", "import kd_jax; print(kd_jax.__version__, kd_jax.__file__)"], f"{__version__} INSTALLED"),
        (
            ["-c", "from pathlib import Path; from kd_jax.config.load import *; print(load_config(Path('paper'), {}))"],
            "segmentation='ce'",
        ),
    ],
)
def test_it_works_in_another_folder_without_the_checkout(installed, tmp_path, command, answer):
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "100"}
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert answer.replace("INSTALLED", str(installed)) in done.stdout
