"""The examples of the documentation run, and do what they say."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from data_pipeline.errors import InputError
from kd_jax.config.load import load_config
from kd_jax.models.build import select_modalities
from kd_jax.models.protocol import NetworkOutput
from kd_jax.objective.joint import build_objective, prepare_config
from kd_jax.training.step import make_train_step
from tests.data_pipeline.cases import file_of, write_case
from tests.kd_jax.fake_run import write_run
from tests.kd_jax.tiny import tiny_batch, tiny_config, tiny_state

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
TERM = str(EXAMPLES / "feature_l2.py")
CASE = "BraTS2021_00000"


def test_the_example_segments_a_patient(tmp_path, monkeypatch, capsys):
    """A network that says enhancing tumour everywhere in the brain: Dice by counting the label's voxels."""
    case = write_case(tmp_path, rng=np.random.default_rng(0))
    run, output = write_run(tmp_path / "run", student="ET"), tmp_path / "tumour.nii.gz"
    files = [f"{m}={file_of(case, CASE, m)}" for m in ("t1ce", "flair")]
    arguments = [str(run), str(output), *files, f"label={file_of(case, CASE, 'seg')}"]
    monkeypatch.setattr(sys, "argv", ["segment_patient.py", *arguments])
    runpy.run_path(str(EXAMPLES / "segment_patient.py"), run_name="__main__")
    written, label = (np.asanyarray(nib.load(f).dataobj) for f in (output, file_of(case, CASE, "seg")))
    assert set(np.unique(written)) == {0, 4}
    said = capsys.readouterr().out
    for region, values in {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}.items():
        true = np.count_nonzero(np.isin(label, values))
        brain = np.count_nonzero(written)
        assert f"{region}: {brain / 1000:.1f} ml" in said
        assert f"{region}: Dice {2 * true / (brain + true):.3f}" in said


def _numpy_l2(teacher, student):
    teacher, student = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in map(np.asarray, (teacher, student)))
    return np.mean((teacher - student) ** 2)


def test_a_term_of_one_s_own_is_one_line_of_configuration_and_trains(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(f'[distillation]\nupdate = "student"\n"{TERM}" = {{weight = 0.5}}\n')
    distillation = load_config(file).distillation
    two_stages = {"features": (4, 6)}
    config = tiny_config(teacher=two_stages, student=two_stages, loss={"segmentation": "ce"})
    config = prepare_config(replace(config, distillation=distillation))
    objective = build_objective(config, None)
    train_step = make_train_step(objective)

    @jax.jit  # one program for both, because compiling takes longest
    def step_and_bottlenecks(state, batch):
        bottlenecks = [
            module.apply(
                {"params": state.networks[name].params["network"]},
                select_modalities(batch["image"], config.networks[name]),
            ).bottleneck
            for name, module in objective.networks.items()
        ]
        return *train_step(state, batch), bottlenecks

    state = tiny_state(objective)
    for number in range(2):
        state, measurements, bottlenecks = step_and_bottlenecks(state, tiny_batch(number, 2))
        np.testing.assert_allclose(measurements["student/feature_l2/loss"], _numpy_l2(*bottlenecks), rtol=1e-5)
        assert "student/barlow_twins/loss" in measurements
    assert state.step == 2


def test_the_term_compares_the_stage_of_its_settings():
    rng = np.random.default_rng(0)
    term = runpy.run_path(TERM)
    stages = [[jnp.asarray(rng.normal(size=(1, n, n, n, 3)), jnp.float32) for n in (4, 2)] for _ in range(2)]
    for stage, place in ((None, 1), (0, 0), (1, 1)):
        settings = term["Settings"](stage=stage)
        teacher, student = (term["select"](settings, NetworkOutput((), encoder, ())) for encoder in stages)
        value, _ = term["loss"](settings, teacher, student, None)
        np.testing.assert_allclose(value, _numpy_l2(stages[0][place], stages[1][place]), rtol=1e-5)


@pytest.mark.parametrize(
    ("table", "student", "found"),
    [
        ({"stage": 3}, {}, "stage 3: allowed: 0 to 2"),
        ({"stage": -1}, {}, "distillation.feature_l2.stage: input should be greater than or equal to 0, found -1"),
        ({"layer": 1}, {}, "unknown key distillation.feature_l2.layer; allowed in"),
        ({"stage": 0}, {"features": (5, 6, 8)}, r"distillation.feature_l2, student: features of shapes"),
    ],
)
def test_features_without_a_counterpart_are_refused(table, student, found):
    with pytest.raises(InputError, match=found):
        prepare_config(tiny_config(distillation={TERM: table}, student=student))
