"""The run whose step is distributed: small networks that exchange everything that large ones do."""

from collections.abc import Sequence
from typing import Literal

from kd_jax.config.schema import Config, DataConfig, StudentConfig, TeacherConfig, TrainConfig


def make_config(
    features: Sequence[int], patch: int, batch: int, seed: int, precision: Literal["float32", "bfloat16"] = "float32"
) -> Config:
    """Both networks alike, with the Barlow Twins term, whose moments are summed over devices."""
    return Config(
        seed=seed,
        data=DataConfig(patch=(patch,) * 3),
        teacher=TeacherConfig(features=tuple(features)),
        student=StudentConfig(features=tuple(features)),
        train=TrainConfig(batch=batch, precision=precision),
    )
