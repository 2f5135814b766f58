"""A run that version 0.2.0 stopped in the middle, before there were several students and terms had names.

`tests/golden/run_0_2_0.tar.gz` was trained for 22 steps by
`python -m kd_jax.train --data.phantom_cases 6 --data.folds 3 --data.spacing 4 4 4 --data.patch 16 16 16
--teacher.features 4 6 8 --student.features 4 6 8 --train.epochs 2 --train.iterations 40 --distillation.projector 16 12`
and stopped by Ctrl-C. The norms are those that version 0.2.0 read back from it.
"""

import tarfile

import jax
import numpy as np
import pytest

from experiments.parity.check import GOLDEN
from kd_jax.config.load import load_config
from kd_jax.objective.distillation import terms_of
from kd_jax.objective.joint import build_objective
from kd_jax.runs.restore import restore_network
from kd_jax.training.checkpoints import restore_state
from kd_jax.training.journal import read_log
from kd_jax.training.progress import Progress
from kd_jax.training.state import init_state

NORMS = {"teacher": 12.233152809395445, "student": 12.134624108647133, "terms": 9.372300205234914}
MOMENTUM = {"teacher": 0.6699912474611323, "student": 1.1754249507266754}


def _norm(tree):
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree) if leaf.ndim]
    return np.sqrt(sum(np.sum(leaf**2) for leaf in leaves))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(GOLDEN / "run_0_2_0.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "run_0_2_0"


def test_its_whole_state_is_restored_with_projectors_and_momentum(run):
    config = load_config(run / "config.json", {})
    (term,) = terms_of(config, "student")
    assert (term.name, term.settings.projector, config.distillation.weight) == ("barlow_twins", (16, 12), 0.1)
    like = jax.eval_shape(lambda: init_state(build_objective(config, None)))
    state, position = restore_state(run, like)
    assert jax.tree.structure(state) == jax.tree.structure(like)
    assert int(state.step) == position["step"] == 22
    student = state.students["student"]
    found = {"teacher": state.teacher.params, "student": student.params["network"], "terms": student.params["terms"]}
    assert {name: _norm(params) for name, params in found.items()} == pytest.approx(NORMS, rel=1e-12)
    optimisers = {"teacher": state.teacher.optimiser, "student": student.optimiser}
    assert {name: _norm(optimiser) for name, optimiser in optimisers.items()} == pytest.approx(MOMENTUM, rel=1e-12)


def test_its_progress_and_log_go_on_under_the_names_of_today(run):
    config = load_config(run / "config.json", {})
    _, position = restore_state(run, jax.eval_shape(lambda: init_state(build_objective(config, None))))
    progress = Progress.from_position(position)
    assert progress.best == {} and progress.count == 22
    assert progress.sums["student/barlow_twins/loss"] / progress.count == pytest.approx(1, abs=0.5)
    assert "student/barlow_twins/loss" in read_log(run)[0]


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_its_networks_are_restored_alone(run, network):
    assert _norm(restore_network(run, network, "latest").params) == pytest.approx(NORMS[network], rel=1e-12)
