"""The smallest run that has everything: three stages of one convolution, 16³ patches, two modalities for the student.

Compilation is what tests spend their time on, so networks are shallow and few, and states are drawn without it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.config.load import parse_config
from kd_jax.config.schema import Config
from kd_jax.objective.joint import Objective
from kd_jax.training.state import TrainState, init_state

PATCH = (16, 16, 16)


def tiny_config(**overrides: Any) -> Config:
    """A tiny configuration; overrides by section, e.g. distillation={"weight": 0}."""
    values: dict[str, Any] = {
        "data": {"patch": PATCH, "folds": 2, "phantom_cases": 2, "spacing": (6.0, 6.0, 6.0)},
        "teacher": {"features": (4, 6, 8), "convs_encoder": 1, "convs_decoder": 1},
        "student": {"features": (4, 6, 8), "convs_encoder": 1, "convs_decoder": 1},
        "train": {"epochs": 2, "iterations": 2, "validation_iterations": 1, "batch": 2},
        "optimiser": {"momentum": 0.9},
    }
    for section, settings in overrides.items():
        values[section] = {**values[section], **settings} if isinstance(values.get(section), dict) else settings
    return parse_config(values, "test")


def tiny_batch(seed: int, *leading: int) -> dict[str, np.ndarray]:
    """Image [*leading, 16, 16, 16, 4] with a label [*leading, 16, 16, 16] that depends on it."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((*leading, *PATCH, 4)).astype(np.float32)
    label = np.digitize(image[..., 1] + 0.3 * image[..., 3], [0.5, 1.0, 1.5]).astype(np.uint8)
    return {"image": image, "label": label}


def tiny_state(objective: Objective, seed: int = 0) -> TrainState:
    """A state like an initial one: kernels of unit gain, scales one, everything else zero."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name, in_optimiser = jax.tree_util.keystr(path[-1:], simple=True), "optimiser" in jax.tree_util.keystr(path)
        if in_optimiser or not (name == "kernel" or name.endswith("scale")):
            return jnp.zeros(leaf.shape, leaf.dtype)
        if name.endswith("scale"):
            return jnp.ones(leaf.shape, leaf.dtype)
        return jnp.asarray(rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: init_state(objective)))
