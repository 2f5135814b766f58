"""Bytes that chips of a TPU slice send each other per step: as compiled, and the least that data parallelism needs."""

import math
from collections.abc import Sequence

import jax

from data_pipeline.errors import InputError
from experiments.benchmark import step_task
from experiments.benchmark.figures import Figure
from experiments.benchmark.scaling_task import make_config
from experiments.benchmark.tpu import compile_step
from kd_jax.config.schema import Config
from kd_jax.objective.joint import build_objective
from kd_jax.training.state import init_state

TOPOLOGIES = {4: "v5e:2x2", 16: "v5e:4x4"}
"""Topologies by number of chips. One chip sends nothing."""
FLOAT32 = 4
LINK_BYTES = 200e9
"""Bytes a second between a v5e chip and its neighbours, all four links (Google Cloud, "TPU v5e": 1,600 Gbit/s)."""


def network_figures(features: Sequence[int], patch: int, seed: int) -> list[Figure]:
    """Bytes for each topology; the ratio divides the bytes that must be sent by the bytes that are sent.

    Raises:
      InputError: libtpu is missing, or it refuses the program.
    """
    figures = []
    for chips, topology in TOPOLOGIES.items():
        config = make_config(features, patch, chips, seed, "bfloat16")
        sent, must = compile_step(config, topology).collective_bytes, ring_bytes(exchanged_bytes(config), chips)
        name = f"sent by each of {chips} v5e chips per step, features {' '.join(map(str, features))}"
        figures.append(Figure(name, "MB", sent / 1e6, {"ring all-reduce": must / 1e6}, must / sent))
    return figures


def exchanged_bytes(config: Config) -> int:
    """Numbers that a step sums over devices: gradients, and the moments of the Barlow Twins term.

    Forward, the moments are mean and variance of every feature of both networks, and the correlation; backward, the
    correlation and the student's variance and mean.
    """
    objective = build_objective(config, None)
    state = jax.eval_shape(lambda: init_state(objective))
    parameters = sum(
        math.prod(leaf.shape) for network in state.networks.values() for leaf in jax.tree.leaves(network.params)
    )
    features = config.teacher.features[-1]
    return FLOAT32 * (parameters + 2 * features**2 + 6 * features)


def ring_bytes(exchanged: int, chips: int) -> float:
    """Bytes each chip sends where a ring sums them: 2 (n - 1) / n of all (Patarasuk and Yuan 2009)."""
    return 2 * (chips - 1) / chips * exchanged


def full_size_note() -> str:
    """The bytes that nnU-Net's networks for BraTS send, and the least time it takes."""
    chips = max(TOPOLOGIES)
    sent = ring_bytes(exchanged_bytes(step_task.make_config("accelerator", "bfloat16", 0)), chips)
    return (
        f"bytes depend on parameters alone, so the networks compiled are small; nnU-Net's for BraTS send "
        f"{sent / 1e6:.0f} MB per step on {chips} chips, {1000 * sent / LINK_BYTES:.1f} ms at {LINK_BYTES / 1e9:.0f} "
        "GB/s; one chip sends nothing"
    )


def network_part(features: Sequence[int], patch: int, seed: int) -> tuple[list[Figure], list[str]]:
    """Figures and notes; only a note where libtpu is missing or does not compile."""
    try:
        return network_figures(features, patch, seed), [full_size_note()]
    except InputError as error:
        return [], [f"no bytes between TPU chips: {str(error).splitlines()[0]}", full_size_note()]
