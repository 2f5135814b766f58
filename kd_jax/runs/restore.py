"""Restores one network of a run, to apply it; reads nothing that only training needs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from pydantic import TypeAdapter, ValidationError

from data_pipeline.conventions import MODALITIES, Modality
from data_pipeline.errors import InputError
from kd_jax.config.network import NetworkConfig
from kd_jax.config.schema import Config
from kd_jax.models.build import build_network
from kd_jax.models.protocol import Network, Params
from kd_jax.runs.store import JSON_ITEMS, Which, find_checkpoint, load_items, networks_of


@dataclass(frozen=True)
class Restored:
    """One network of a run, ready to apply: `module.apply({"params": params}, image)`."""

    config: Config
    network: str
    module: Network
    params: Params
    step: int

    @property
    def settings(self) -> NetworkConfig:
        """The configuration of this network."""
        return self.config.networks[self.network]

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities that the network sees, in channel order."""
        return tuple(MODALITIES[i] for i in self.settings.channels)


def restore_network(run: Path, network: str, which: Which = "best") -> Restored:
    """Restores one network of a run, on one device, and reads nothing of the others.

    Raises:
      InputError: `run` is no run folder, has no such checkpoint, or the checkpoint lacks this network or is damaged.
    """
    held = networks_of(run, which)
    if network not in held:
        raise InputError(
            f"{find_checkpoint(run, which).parent}: this checkpoint holds no {network}, only "
            f"{', '.join(held) or 'no network'}"
            + (f"; choose --network {held[0]}, or another run" if held else "; choose another run")
        )
    checkpoint = find_checkpoint(run, which, network)
    items = load_items(checkpoint, dict.fromkeys(JSON_ITEMS))
    config = _read_config(checkpoint, items["config"])
    # A CPU emulates bfloat16 with float32, slowly, so there a network is applied in the precision of its parameters.
    precision = "float32" if jax.default_backend() == "cpu" else config.train.precision
    applied = replace(config, train=replace(config.train, precision=precision))
    settings = config.networks[network]
    module = build_network(settings, applied)
    image = jax.ShapeDtypeStruct((1, *config.data.patch, len(settings.channels)), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
    params = load_items(checkpoint, {network: target})[network]
    return Restored(config, network, module, params, items["position"]["step"])


def default_network(run: Path, which: Which = "best") -> str:
    """The network to apply if none is named: the student, or the teacher of a run without a student.

    Raises:
      InputError: `run` is no run folder or has no such checkpoint, or it has several students.
    """
    held = networks_of(run, which)
    students = [name for name in held if name != "teacher"]
    if len(students) > 1:
        raise InputError(f"{run}: has {len(students)} students; choose one with --network: {', '.join(held)}")
    return students[0] if students else "teacher"


def _read_config(checkpoint: Path, values: Mapping[str, Any]) -> Config:
    try:
        return TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        raise InputError(
            f"{checkpoint.parent}: its configuration does not fit this version of kd_jax "
            f"({error.error_count()} problems, first: {error.errors()[0]['loc']}); use the version that trained it"
        ) from error
