"""One restored network, compiled for whole volumes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, PyTree
from tqdm import tqdm

from data_pipeline.conventions import Modality, Spacing
from data_pipeline.preprocessing.subject import Subject
from kd_jax.config.network import AXES, Axis
from kd_jax.config.schema import Config
from kd_jax.inference.sliding_window import Predictor, make_predictor, windows_per_batch
from kd_jax.inference.windows import window_count
from kd_jax.models.protocol import Params
from kd_jax.runs.restore import Restored

Reading = tuple[Spacing, tuple[Modality, ...]]
"""A way to read a case: voxel size in mm, and modalities in channel order."""


@dataclass(frozen=True, eq=False)
class Member:
    """A restored network, compiled once for all cases and all networks of its architecture.

    Attributes:
      run: folder it was restored from.
      name: of the network in its run.
      config: of the run.
      step: training step of the checkpoint.
      modalities: what the network sees, in channel order.
      params: of the network.
      predict: parameters and images [D, H, W, M] of `MODALITIES` to logits [D, H, W, K].
    """

    run: Path
    name: str
    config: Config
    step: int
    modalities: tuple[Modality, ...]
    params: Params
    predict: Predictor

    @property
    def reading(self) -> Reading:
        """The voxel size and the modalities in which this network sees a case."""
        return self.config.data.spacing, self.modalities


def compile_network(restored: Restored, mirror: Sequence[Axis]) -> Predictor:
    """A predictor for the network's architecture; it takes the parameters of any network of that architecture."""
    module, patch = restored.module, restored.config.data.patch
    axes = [1 + axis for axis in _reversed_axes(restored.config, restored.network)]

    def forward(params: PyTree, x: Float[Array, "n d h w c"]) -> Float[Array, "n d h w k"]:
        return jnp.flip(module.apply({"params": params}, jnp.flip(x, axes)).logits[0], axes)

    return make_predictor(
        forward,
        patch,
        inputs=restored.settings.channels,
        outputs=restored.config.output_channels,
        batch=windows_per_batch(patch, jax.default_backend()),
        mirror_axes=[AXES.index(axis) for axis in mirror],
    )


def apply_member(member: Member, subject: Subject, progress: bool) -> Float32[np.ndarray, "d h w k"]:
    """Logits on the subject's grid.

    Args:
      member: the network.
      subject: the case as `member.reading` says.
      progress: show the windows as a bar, on a terminal.
    """
    # A network that sees volumes reversed has learnt from windows laid over reversed volumes: windows are not placed
    # and weighted symmetrically, so the whole volume is reversed here, and the network's own reversal undone above.
    axes = _reversed_axes(member.config, member.name)
    count = window_count(subject.images.shape[:3], member.config.data.patch)
    # None: tqdm shows nothing where stderr is not a terminal.
    disable = None if progress else True
    with tqdm(total=count, desc=subject.case.id, unit="window", leave=False, disable=disable) as bar:
        return np.flip(member.predict(member.params, np.flip(subject.images, axes), bar.update), axes)


def _reversed_axes(config: Config, network: str) -> tuple[int, ...]:
    settings = config.networks[network]
    return tuple(AXES.index(axis) for axis in settings.reversed_axes)
