"""A second architecture: what the rest of kd_jax needs of it is the protocol, and nothing else."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import InputError
from kd_jax.models import build
from kd_jax.models.protocol import NetworkOutput
from kd_jax.objective.joint import build_objective, joint_objective, prepare_config
from kd_jax.runs.restore import restore_network
from kd_jax.runs.store import Checkpoints
from kd_jax.training.checkpoints import save_best
from tests.kd_jax.tiny import tiny_config, tiny_state


class Pooled(nn.Module):
    """One level of logits beside features of a third of the resolution, which no setting of the U-Net describes."""

    classes: int
    width: int

    level_strides = ((1, 1, 1),)
    total_stride = (3, 3, 3)

    @nn.compact
    def __call__(self, x):
        """[N, D, H, W, C] to logits of full resolution."""
        coarse = nn.Dense(self.width, name="encoder")(nn.avg_pool(x, (3, 3, 3), (3, 3, 3)))
        context = jax.image.resize(coarse, (*x.shape[:-1], self.width), "nearest")
        fine = nn.tanh(jnp.concatenate([x, context], axis=-1))
        return NetworkOutput([nn.Dense(self.classes, name="head")(fine)], [coarse], [])


def _build(network, channels, dtype, remat, fold):
    return Pooled(channels, **network.options)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(build, "ARCHITECTURES", {**build.ARCHITECTURES, "pooled": _build})


def _config(samples):
    return tiny_config(
        data={"patch": (12, 12, 12)},
        teacher={"features": (4, 6)},
        student={"architecture": "pooled", "options": {"width": 6}},
        distillation={"samples": samples},
        train={"batch": 4},
    )


def test_it_is_trained_beside_a_unet_distilled_and_restored(registered, tmp_path):
    config = prepare_config(_config("cases"))
    objective = build_objective(config, None)
    state = tiny_state(objective)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((4, 12, 12, 12, 4)).astype(np.float32),
        "label": rng.integers(0, 4, (4, 12, 12, 12)).astype(np.uint8),
    }
    params = state.teacher.params, {name: student.params for name, student in state.students.items()}
    (total, parts), (_, of_students) = jax.jit(
        jax.value_and_grad(lambda p: joint_objective(objective, p, batch, 0), has_aux=True)
    )(params)
    assert np.isfinite(total) and parts["student/barlow_twins/loss"] > 0
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_students["student"]["network"]["encoder"]))
    with Checkpoints(tmp_path) as checkpoints:
        save_best(checkpoints, state, {"step": 0}, config, frozenset({"student"}))
    restored = restore_network(tmp_path, "student")
    assert restored.module == objective.students["student"]
    output = restored.module.apply({"params": restored.params}, batch["image"][..., 1:4:2])
    assert output.logits[0].shape == (4, 12, 12, 12, 4) and output.bottleneck.shape == (4, 4, 4, 4, 6)


def test_a_term_that_cannot_compare_the_two_refuses_before_training(registered):
    with pytest.raises(InputError, match=r"differ in shape \(\(6, 6, 6\) and \(4, 4, 4\) of a patch\)"):
        prepare_config(_config("voxels"))


def test_a_patch_that_does_not_fit_and_unknown_names_are_refused(registered):
    config = tiny_config(student={"architecture": "pooled", "options": {"width": 6}})
    with pytest.raises(InputError, match=r"data.patch \(16, 16, 16\): does not fit pooled; .* stride \(3, 3, 3\)"):
        build_objective(config, None)
    with pytest.raises(InputError, match="architecture transformer: not known; allowed: unet, pooled"):
        build_objective(tiny_config(student={"architecture": "transformer"}), None)
    with pytest.raises(InputError, match="options width: a unet has none"):
        build_objective(tiny_config(student={"options": {"width": 6}}), None)
