"""Who may import whom."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCAL = {"kd_jax", "data_pipeline", "experiments", "tests"}
VOCABULARY = {"data_pipeline.conventions", "data_pipeline.errors", "kd_jax.config.schema"}


def _modules(package: str) -> dict[str, Path]:
    files = (ROOT / package).rglob("*.py")
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module)
    return found


def _local(file: Path) -> set[str]:
    return {name for name in _imports(file) if name.split(".")[0] in LOCAL}


@pytest.mark.parametrize(("name", "file"), sorted(_modules("data_pipeline").items()))
def test_the_data_pipeline_imports_nothing_local_and_no_jax(name, file):
    assert {n.split(".")[0] for n in _local(file)} <= {"data_pipeline"}
    assert not {n.split(".")[0] for n in _imports(file)} & {"jax", "flax", "optax", "orbax", "torch"}


PIPELINE_ROOMS = {
    "reading": set(),
    "layouts": {"reading"},
    "preprocessing": {"reading"},
    "cache": {"reading", "preprocessing"},
    "patches": set(),
    "phantom": set(),
    "check": {"reading", "layouts"},
}
"""Rooms of the data pipeline, and which others each may import."""
PIPELINE_COMMANDS = {"command_line", "prepare"}
"""Loose modules that import rooms: only commands may import them in turn. The other loose modules import no room."""


def test_the_rooms_of_the_data_pipeline_form_no_circle():
    TopologicalSorter(PIPELINE_ROOMS).prepare()


@pytest.mark.parametrize("name", sorted(_modules("data_pipeline").keys() - {"data_pipeline.prepare"}))
def test_modules_of_the_data_pipeline_import_only_the_rooms_that_theirs_may(name):
    room = name.removeprefix("data_pipeline").strip(".").split(".")[0]
    imported = {part for n in _local(_modules("data_pipeline")[name]) for part in n.split(".")[1:2]} - {room}
    allowed = {"layouts"} if room == "command_line" else PIPELINE_ROOMS.get(room, set())
    if name.endswith((".command", ".__main__")):
        allowed = allowed | {"command_line"}
    assert imported & (PIPELINE_ROOMS.keys() | PIPELINE_COMMANDS) <= allowed


@pytest.mark.parametrize(("name", "file"), sorted(_modules("kd_jax").items()))
def test_nothing_imports_experiments_or_torch_and_only_checkpoint_imports_orbax(name, file):
    tops = {n.split(".")[0] for n in _imports(file)}
    assert not tops & {"experiments", "tests", "torch"}
    assert "orbax" not in tops or name == "kd_jax.runs.store"


ALONE = ("kd_jax.objective.segmentation", "kd_jax.metrics", "kd_jax.models", "kd_jax.native")


@pytest.mark.parametrize("name", sorted(name for name in _modules("kd_jax") if name.startswith(ALONE)))
def test_losses_metrics_models_and_compiled_operators_stand_alone(name):
    allowed = {"data_pipeline.command_line"} if name == "kd_jax.native.__main__" else set()
    assert {n for n in _local(_modules("kd_jax")[name]) if not n.startswith(ALONE)} <= VOCABULARY | allowed


@pytest.mark.parametrize("name", sorted(name for name in _modules("kd_jax") if name.startswith("kd_jax.metrics")))
def test_metrics_need_no_jax(name):
    imported = _imports(_modules("kd_jax")[name])
    assert not {n.split(".")[0] for n in imported} & {"jax", "flax"}
    assert not {
        n for n in imported if n.startswith(("kd_jax.models", "kd_jax.objective.segmentation", "kd_jax.native"))
    }


def test_importing_the_package_does_not_start_a_backend():
    code = (
        "import kd_jax.train, kd_jax.training.launch, kd_jax.plan, kd_jax.import_nnunet, kd_jax.postprocess, "
        "kd_jax.evaluate, kd_jax.predict, jax; "
        "from jax._src import xla_bridge; assert not xla_bridge._backends, xla_bridge._backends"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
