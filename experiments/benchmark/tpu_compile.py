"""Compiles the joint step for a TPU without having one: `python -m experiments.benchmark.tpu_compile TOPOLOGY`.

Reads the configuration as JSON from standard input and writes one JSON line of `Compiled`'s fields to standard output.
It runs in a process of its own, because libtpu reads its environment once and locks itself to one process.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.benchmark.tpu import Compiled, roofline
from experiments.benchmark.tpu_hlo import collective_bytes, traffic
from kd_jax.config.load import parse_config
from kd_jax.config.schema import Config
from kd_jax.objective.joint import build_objective
from kd_jax.training.devices import AXIS
from kd_jax.training.state import init_state
from kd_jax.training.step import make_train_step


def main(topology: str) -> None:
    """Reads the configuration, compiles, answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libtpu and XLA write to standard output
    config = parse_config(json.load(sys.stdin), "the configuration on standard input")
    compiled, _ = compile_here(config, topology)
    answers.write(json.dumps(asdict(compiled)) + "\n")
    answers.close()


def compile_here(config: Config, topology: str) -> tuple[Compiled, str]:
    """Compiles in this process; also the optimised program as text."""
    devices = topology_devices(topology)
    start = time.perf_counter()
    program = lower_step(config, devices).compile()
    seconds = time.perf_counter() - start
    memory, cost, text = program.memory_analysis(), program.cost_analysis(), program.as_text()
    flops, accessed = float(cost["flops"]), float(cost["bytes accessed"])
    compiled = Compiled(
        temporaries=memory.temp_size_in_bytes,
        arguments=memory.argument_size_in_bytes,
        flops=flops,
        bytes_accessed=accessed,
        roofline_seconds=roofline(flops, accessed),
        compile_seconds=seconds,
        collective_bytes=collective_bytes(text, len(devices)),
        traffic=traffic(text),
    )
    return compiled, text


def topology_devices(topology: str) -> list[Any]:
    """The chips of a topology such as "v5e:2x2"; "v5e:1x1" is a single chip."""
    single = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **single).devices)


def lower_step(config: Config, devices: list[Any]) -> Any:
    """The train step of a run mapped over chips, state replicated and donated, the batch shared between them."""
    objective = build_objective(config, AXIS)
    step = make_train_step(objective)
    mesh = Mesh(np.array(devices), (AXIS,))
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(AXIS)), out_specs=PartitionSpec(), check_vma=False
    )
    replicated, shared = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    state = jax.eval_shape(lambda: init_state(objective))
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), state)
    cases = config.train.batch, *config.data.patch
    batch = {
        "image": jax.ShapeDtypeStruct((*cases, 4), jnp.float32, sharding=shared),
        "label": jax.ShapeDtypeStruct(cases, jnp.uint8, sharding=shared),
    }
    return jax.jit(mapped, donate_argnums=0).lower(state, batch)


if __name__ == "__main__":
    main(sys.argv[1])
