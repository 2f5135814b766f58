"""Builds the module of a network from its settings, and selects the channels that it sees."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_pipeline.conventions import MODALITIES
from data_pipeline.errors import InputError
from kd_jax.config.network import NetworkConfig
from kd_jax.config.schema import Config, Remat
from kd_jax.models.protocol import Network
from kd_jax.models.unet import UNet

FOLD_ON_TPU = 4
"""Neighbours that fill 128 lanes with the 32 channels of nnU-Net's finest stage."""


def _build_unet(network: NetworkConfig, channels: int, dtype: Any, remat: Remat, fold: int) -> UNet:
    if network.options:
        raise InputError(f"options {', '.join(network.options)}: a unet has none; remove them, or change architecture")
    return UNet(network, channels, dtype, remat, fold)


ARCHITECTURES: Mapping[str, Callable[[NetworkConfig, int, Any, Remat, int], Network]] = MappingProxyType(
    {"unet": _build_unet}
)
"""Builder of each architecture by name: (settings, channels of the logits, precision, remat, fold) to a module."""


def build_network(network: NetworkConfig, config: Config) -> Network:
    """The module of one network of a run; the backend that JAX runs on decides `auto` settings.

    Raises:
      InputError: the architecture is not known, its options are wrong, or patches do not fit it.
    """
    if network.architecture not in ARCHITECTURES:
        raise InputError(f"architecture {network.architecture}: not known; allowed: {', '.join(ARCHITECTURES)}")
    settings = config.train
    on_tpu = "auto" in (settings.remat, settings.fold) and jax.default_backend() == "tpu"
    remat: Remat = ("norms" if on_tpu else "none") if settings.remat == "auto" else settings.remat
    fold = (FOLD_ON_TPU if on_tpu else 1) if settings.fold == "auto" else settings.fold
    dtype = jnp.dtype(settings.precision)
    module = ARCHITECTURES[network.architecture](network, config.output_channels, dtype, remat, fold)
    if any(size % stride for size, stride in zip(config.data.patch, module.total_stride, strict=True)):
        raise InputError(
            f"data.patch {config.data.patch}: does not fit {network.architecture}; each size must be a multiple of its "
            f"total stride {module.total_stride}"
        )
    return module


def select_modalities(image: Float[Array | np.ndarray, "*n c"], network: NetworkConfig) -> Float[Array, "*n m"]:
    """The channels that a network sees, by the names of its modalities."""
    if len(network.channels) == len(MODALITIES):
        return jnp.asarray(image)
    return jnp.stack([image[..., channel] for channel in network.channels], axis=-1)  # a TPU would gather in a loop
