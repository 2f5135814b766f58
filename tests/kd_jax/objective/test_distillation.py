"""Terms are found by name, checked with their settings, weighted by schedule, and may come from outside."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import InputError
from kd_jax.config.load import dump_config, parse_config
from kd_jax.objective.distillation import complete_terms, terms_of
from kd_jax.objective.joint import build_objective, joint_objective
from kd_jax.objective.terms.base import TermSettings, weight_at
from kd_jax.training.state import init_state
from tests.kd_jax.tiny import tiny_batch, tiny_config, tiny_state

OWN = '''
"""Mean squared difference of all logits."""
import jax.numpy as jnp
from pydantic.dataclasses import dataclass
from kd_jax.objective.terms.base import TermSettings

@dataclass(frozen=True, config={"extra": "forbid"})
class Settings(TermSettings):
    offset: float = 0.0

def select(settings, output):
    return output.logits[0]

def loss(settings, teacher, student, context):
    value = jnp.mean((teacher - student + settings.offset) ** 2)
    return value, {"target_levels": jnp.float32(len(context.targets))}
'''


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "logit_mse.py"
    file.write_text(OWN)
    return str(file)


def _params(state):
    return state.teacher.params, {name: student.params for name, student in state.students.items()}


def test_a_term_of_ones_own_is_a_file_and_a_line(own):
    config = complete_terms(tiny_config(distillation={"weight": 0.5, own: {"weight": 2.0, "offset": 3.0}}))
    objective = build_objective(config, None)
    assert [term.name for term in objective.terms["student"]] == ["barlow_twins", "logit_mse"]
    state, batch = tiny_state(objective), tiny_batch(0, 2)
    total, parts = jax.jit(lambda p: joint_objective(objective, p, batch, 0))(_params(state))
    logits = {
        name: module.apply(
            {"params": state.networks[name].params["network"]},
            jnp.asarray(batch["image"][..., list(config.networks[name].channels)]),
        ).logits[0]
        for name, module in objective.networks.items()
    }
    expected = np.mean((np.asarray(logits["teacher"]) - np.asarray(logits["student"]) + 3) ** 2, dtype=np.float64)
    assert parts["student/logit_mse/loss"] == pytest.approx(expected, rel=1e-4)
    assert parts["student/logit_mse/target_levels"] == 2
    own_losses = parts["teacher/loss"] + parts["student/loss"]
    pulls = 0.5 * parts["student/barlow_twins/loss"] + 0.5 * 2 * parts["student/logit_mse/loss"]
    assert total == pytest.approx(float(own_losses + pulls), rel=1e-6)


def test_every_setting_of_a_term_is_written_to_the_run(own, monkeypatch):
    monkeypatch.chdir(Path(own).parent)
    config = complete_terms(tiny_config(distillation={Path(own).name: {}}))
    assert config.distillation.terms["barlow_twins"]["off_diagonal"] == 0.0051
    assert config.distillation.terms[own]["offset"] == 0.0
    again = parse_config(json.loads(dump_config(config)), "config.json")
    assert again == config and complete_terms(again) == config


def test_students_have_terms_of_their_own():
    students = {"a": {}, "b": {"distillation": {"weight": 0.0}}, "c": {"distillation": {"terms": {}}}}
    config = parse_config({"students": students, "distillation": {"weight": 0.3}}, "test")
    assert {name: len(terms_of(config, name)) for name in students} == {"a": 1, "b": 0, "c": 0}
    assert complete_terms(config).students["a"].distillation is None


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"barlow_twin": {}}, r"distillation.barlow_twin: no such term; allowed: barlow_twins"),
        ({"barlow_twins": {"lambda": 1}}, r"unknown key distillation.barlow_twins.lambda; allowed in .*off_diagonal"),
        ({"barlow_twins": {"off_diagonal": -1}}, r"distillation.barlow_twins.off_diagonal: input should be greater"),
        (
            {"barlow_twins": {"samples": "all"}},
            r"barlow_twins.samples: input should be .*, found 'all'",
        ),
        ({"missing.py": {}}, r"distillation.missing.py: cannot be imported \(missing.py does not exist\)"),
        ({"no_package.term": {}}, r"no_package.term: cannot be imported \(No module named 'no_package'\)"),
        ({"json.decoder": {}}, r"distillation.json.decoder: has no Settings and no loss, which every term has"),
    ],
)
def test_unknown_terms_and_impossible_settings_are_refused_by_name(terms, message):
    with pytest.raises(InputError, match=message):
        complete_terms(tiny_config(distillation=terms))


def test_two_terms_of_one_name_are_refused(own, tmp_path):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "logit_mse.py"
    other.write_text(OWN)
    with pytest.raises(InputError, match=r"distillation.logit_mse: two terms have this name; rename one's file"):
        complete_terms(tiny_config(distillation={own: {}, str(other): {}}))


def test_a_term_without_weight_is_off():
    assert terms_of(tiny_config(distillation={"barlow_twins": {"weight": 0}}), "student") == ()


def test_schedules_by_hand():
    train = tiny_config(train={"epochs": 10, "iterations": 4}).train
    constant = TermSettings(weight=0.3)
    assert weight_at(constant, 7, train) == 0.3
    linear = TermSettings(weight=2.0, schedule="linear", ramp_epochs=2)
    assert [float(weight_at(linear, step, train)) for step in (0, 4, 8, 30)] == pytest.approx([0, 1, 2, 2])
    cosine = TermSettings(weight=1.0, schedule="cosine")
    found = [float(weight_at(cosine, jnp.int32(step), train)) for step in (0, 10, 20, 40)]
    assert found == pytest.approx([0, 0.5 - 0.5 * np.cos(np.pi / 4), 0.5, 1])


def test_a_ramp_follows_the_number_of_the_step():
    config = tiny_config(distillation={"barlow_twins": {"schedule": "linear", "ramp_epochs": 1}})
    objective = build_objective(config, None)
    state, batch = tiny_state(objective), tiny_batch(0, 2)
    measure = jax.jit(lambda step: joint_objective(objective, _params(state), batch, step))
    for step, share in ((0, 0.0), (1, 0.5), (2, 1.0)):
        total, parts = measure(step)
        pull = share * config.distillation.weight * parts["student/barlow_twins/loss"]
        assert total == pytest.approx(float(parts["teacher/loss"] + parts["student/loss"] + pull), rel=1e-6)


def test_a_projector_draws_the_same_whichever_other_terms_are_on(own):
    def projectors(**terms):
        config = tiny_config(distillation={"projector": (6, 5), **terms})
        params = jax.device_get(init_state(build_objective(config, None)).students["student"].params)
        return params["terms"]["barlow_twins"]

    alone, together = projectors(), projectors(**{own: {}})
    assert jax.tree.structure(alone) == jax.tree.structure(together)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True))
