"""The protocol through which the rest of kd_jax uses an architecture.

To add an architecture, write a Linen module that follows it into this folder and add a line to `build.ARCHITECTURES`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

from data_pipeline.conventions import Shape3

Params = Mapping[str, Any]
"""Parameters of a network or of a term: nested dicts of arrays, as Linen's `init` returns them."""


class NetworkOutput(NamedTuple):
    """The output of a network for a batch of patches [N, D, H, W, C].

    Attributes:
      logits: one array per supervised level, finest first, float32; level i has shape [N, D/s, H/s, W/s, K] with the
        stride s of `Network.level_strides[i]`. The first has full resolution and is the prediction.
      encoder: features of every encoder stage, finest first; the last are the bottleneck.
      decoder: features of every decoder stage, finest first; empty for a network without a decoder.
    """

    logits: Sequence[Float[Array, "n _d _h _w k"]]
    encoder: Sequence[Float[Array, "n _d _h _w _f"]]
    decoder: Sequence[Float[Array, "n _d _h _w _f"]]

    @property
    def bottleneck(self) -> Float[Array | jax.ShapeDtypeStruct, "n p q r f"]:
        """The latent: features [N, D/S, H/S, W/S, F] of the coarsest stage, S the network's total stride."""
        return self.encoder[-1]


@runtime_checkable
class Network(Protocol):
    """A stateless Linen module that maps patches to a `NetworkOutput`.

    Modules are compared and hashed by their settings, so networks that are equal share one compiled program.
    """

    @property
    def level_strides(self) -> Sequence[Shape3]:
        """Voxels of the input per voxel of each level of logits, finest first; the first is (1, 1, 1)."""

    @property
    def total_stride(self) -> Shape3:
        """Voxels of the input per voxel of the bottleneck. Each size of a patch is a multiple of it."""

    def init(self, key: Any, image: Float[Array, "n d h w c"]) -> Mapping[str, Params]:
        """Initial variables, {"params": …}."""

    def apply(self, variables: Mapping[str, Params], image: Float[Array, "n d h w c"]) -> NetworkOutput:
        """Segments a batch; `image` holds the network's modalities in the order of `conventions.MODALITIES`."""
