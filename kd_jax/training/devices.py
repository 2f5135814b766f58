"""Hosts, devices and placement, and the only wrapper that maps a step over devices."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # the coordinator's client has no public name; Orbax takes it from here as well
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from data_pipeline.errors import InputError

AXIS = "data"
"""Name of the device axis; batches are split over it, state is replicated."""
_KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""Option of the CPU compiler that keeps `lax.optimization_barrier`."""
_PATIENCE_MS = 24 * 3_600_000
_DONE = "done"


def connect_hosts(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins this process to the others of a multi-host run.

    Without arguments the cluster (SLURM, Open MPI, Cloud TPU, Kubernetes) is detected. Must run before
    anything else touches JAX.

    Raises:
      InputError: no cluster was found, or the coordinator cannot be reached.
    """
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--distributed: {str(error).splitlines()[0]} Start under SLURM, Open MPI, Cloud TPU or Kubernetes, "
            "or give --coordinator HOST:PORT --processes N --process I"
        ) from error


def on_first_host(name: str, work: Callable[[], object]) -> None:
    """Does `work` on the first host while the others wait, however long it takes.

    The hosts meet at the coordinator, not in a device collective, which gives up after half a minute.

    Args:
      name: unique in the run.
      work: called on the first host only.

    Raises:
      InputError: the error that `work` raised, on every host.
    """
    if jax.process_count() == 1:
        work()
        return
    client, key = distributed.global_state.client, f"kd_jax/{name}"
    assert client is not None
    if jax.process_index() > 0:
        outcome = client.blocking_key_value_get(key, _PATIENCE_MS)
        if outcome != _DONE:
            raise InputError(outcome)
        return
    outcome = "the first host failed; see its messages"
    try:
        work()
        outcome = _DONE
    except InputError as error:
        outcome = str(error)
        raise
    finally:
        client.key_value_set(key, outcome)


def local_batch(batch: int) -> int:
    """Patches per device of a global batch.

    Raises:
      InputError: the batch cannot be divided over all devices.
    """
    devices = jax.device_count()
    if batch % devices:
        raise InputError(
            f"train.batch is {batch}, which {devices} devices cannot share evenly: set it to a multiple of {devices} "
            "(it counts patches over all devices), or show fewer devices to the program (CUDA_VISIBLE_DEVICES)"
        )
    return batch // devices


def map_over_devices(step: Callable[..., Any], donate: bool) -> Callable[..., Any]:
    """`pmap` of `step(state, batch)`: one compiled program on all devices of all hosts.

    State comes in and goes out replicated, without a device axis; the batch carries the local devices
    as its leading axis. With `donate` the state passed in is consumed.
    """
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0 if donate else ())
    alone_on_cpu = jax.default_backend() == "cpu" and jax.process_count() == 1
    return _keeping_barriers(mapped) if alone_on_cpu else mapped


def _keeping_barriers(mapped: Any) -> Callable[..., Any]:
    """The same, compiled so that a CPU, too, computes the networks one after the other.

    XLA's CPU compiler drops optimisation barriers in its first pass, and with them the order that lets one network
    reuse the memory of another: half the memory of a step with one student.
    """
    programs: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def run(state: Any, batch: Any) -> Any:
        key = tuple(leaf.shape for leaf in jax.tree.leaves((state, batch)))
        if key not in programs:
            programs[key] = mapped.lower(state, batch).compile(compiler_options=_KEEP_BARRIERS)
        return programs[key](state, batch)

    return run


def replicate(tree: Any) -> Any:
    """Places every leaf on all local devices."""
    return jax.device_put(tree, replicated())


def replicated() -> NamedSharding:
    """The placement of state: whole on every local device."""
    return NamedSharding(_mesh(jax.local_devices()), PartitionSpec())


def shard(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Places a batch whose leading axis counts the local devices, one entry on each; returns at once.

    A process among several hands over host arrays: `pmap` itself joins the hosts' shares.
    """
    if jax.process_count() > 1:
        return batch
    return jax.device_put(batch, NamedSharding(_mesh(jax.local_devices()), PartitionSpec(AXIS)))


def globally_replicated(tree: Any) -> Any:
    """Replicated state as arrays of the whole cluster, which is what Orbax writes from several hosts."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.host_local_array_to_global_array(tree, _mesh(jax.devices()), PartitionSpec())


def must_block_every_step() -> bool:
    """Whether to wait for every step: collectives of virtual CPU devices can deadlock when steps queue (jax 0.10)."""
    return jax.default_backend() == "cpu" and jax.device_count() > 1


def _mesh(devices: list[Any]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def say(text: str) -> None:
    """Prints a line once, whatever the number of hosts, without tearing a progress bar."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
