"""Who may import whom: a newcomer should find the room for a change, and a change should stay in its room."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kd_jax", "data_pipeline", "experiments", "tests")
VOCABULARY = {"data_pipeline.conventions", "data_pipeline.errors"}
COMMANDS = {"__main__", "train", "evaluate", "predict", "plan", "postprocess", "import_nnunet"}
MOST_ROOMS, MOST_ARROWS = 20, 60


def _modules(package: str) -> dict[str, Path]:
    files = (ROOT / package).rglob("*.py")
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def _imports(file: Path) -> set[str]:
    """Modules a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module)
    return found


def _local(file: Path) -> set[str]:
    return {name for name in _imports(file) if name.split(".")[0] in PACKAGES}


def _tops(file: Path) -> set[str]:
    return {name.split(".")[0] for name in _imports(file)}


def _room(module: str) -> str:
    """The folder or file below the package that a module is in: "kd_jax.ops.lean" is in "ops"."""
    return module.split(".")[1] if "." in module else ""


def _rooms(package: str) -> dict[str, set[str]]:
    """Rooms of a package, and for each the other rooms that it imports from."""
    rooms: dict[str, set[str]] = {}
    for name, file in _modules(package).items():
        if room := _room(name):
            used = {_room(other) for other in _local(file) if other.split(".")[0] == package}
            rooms.setdefault(room, set()).update(used - {room, ""})
    return rooms


def test_kd_jax_is_a_house_of_few_rooms_and_no_circles():
    rooms = _rooms("kd_jax")
    files = {path.stem for path in (ROOT / "kd_jax").glob("*.py")} - {"__init__"}
    assert files <= COMMANDS
    assert len(rooms) <= MOST_ROOMS
    assert sum(map(len, rooms.values())) <= MOST_ARROWS
    TopologicalSorter(rooms).prepare()  # raises CycleError
    for room, used in rooms.items():
        assert not used & COMMANDS or room == "__main__", f"{room} imports a command"


def test_the_data_pipeline_has_no_circles_between_its_rooms():
    TopologicalSorter(_rooms("data_pipeline")).prepare()


@pytest.mark.parametrize(("name", "file"), sorted(_modules("data_pipeline").items()))
def test_the_data_pipeline_imports_nothing_local_and_no_jax(name, file):
    assert {n.split(".")[0] for n in _local(file)} <= {"data_pipeline"}
    assert not _tops(file) & {"jax", "flax", "optax", "orbax", "torch"}


@pytest.mark.parametrize(("name", "file"), sorted(_modules("kd_jax").items()))
def test_nothing_imports_experiments_or_torch_and_only_the_store_imports_orbax(name, file):
    assert not _tops(file) & {"experiments", "tests", "torch"}
    assert "orbax" not in _tops(file) or name == "kd_jax.runs.store"


ALONE = {
    "native": {"command_line"},
    "ops": {"native"},
    "models": {"config", "ops"},
    "objective": {"config", "models", "ops"},
    "metrics": set(),
}
"""Rooms of pure functions, and what else each may import from: others of them, and settings."""


@pytest.mark.parametrize("room", ALONE)
def test_what_is_computed_knows_nothing_of_files_and_runs(room):
    for name, file in _modules("kd_jax").items():
        if _room(name) == room:
            for other in _local(file) - VOCABULARY:
                assert _room(other) in {room, *ALONE[room]}, f"{name} imports {other}"


@pytest.mark.parametrize("name", sorted(name for name in _modules("kd_jax") if name.startswith("kd_jax.metrics")))
def test_metrics_need_no_jax(name):
    assert not _tops(_modules("kd_jax")[name]) & {"jax", "flax"}


def _fresh(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def _import_all(*rooms: str) -> str:
    """Code that imports every module of these rooms; of a command it imports what its `main` does."""
    names = {name for name, file in _modules("kd_jax").items() if _room(name) in rooms}
    commands = {name for name in names if _room(name) in COMMANDS}
    names |= {other for name in commands for other in _local(_modules("kd_jax")[name])}
    return f"import {', '.join(sorted(name for name in names if not name.endswith('__main__')))}; "


def test_importing_the_package_does_not_start_a_backend():
    _fresh(
        _import_all(*_rooms("kd_jax")) + "from jax._src import xla_bridge; "
        "assert not xla_bridge._backends, xla_bridge._backends"
    )


def test_prediction_does_not_import_the_optimiser():
    _fresh(
        _import_all("predict", "inference") + "import sys; "
        "assert not {'optax', 'kd_jax.training', 'kd_jax.objective'} & sys.modules.keys()"
    )
