"""Segments a case by sliding window: ours, nnU-Net's predictor and MONAI's, with the same weights."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmark import machine
from experiments.benchmark.figures import Figure, Options, Part
from experiments.benchmark.inference_task import EVERY, TASKS, Task
from experiments.benchmark.sides import OURS, Measured, Side, compare, size_figure, time_figure

NNUNET, MONAI = "nnU-Net", "MONAI"
ORIGINALS = {
    "torch": "torch",
    "nnunetv2": "nnunetv2",
    "dynamic_network_architectures": "dynamic-network-architectures",
    "monai": "monai",
}
CPU_ROUNDS = {"teacher": 1, "student": 1, "teacher, mirrored": 2, "student, mirrored": 2}
"""Rounds at most where one takes minutes on a CPU; a whole case is 18 windows, an average in itself."""


def measure(options: Options) -> Part:
    """Seconds per case, teacher and student, plain and mirrored; memory; and the same with hardly any network."""
    platform = machine.jax_platform()
    peers = not (lacking := machine.missing(ORIGINALS)) and platform != "tpu"
    figures: list[Figure] = []
    memory: list[Figure] = []
    notes = [_what_is_done(platform)]
    if not peers:
        reason = f"{', '.join(lacking)} not installed" if lacking else "PyTorch does not run on a TPU here"
        notes.append(f"without a ratio: {reason}")
    for name, task in TASKS.items():
        if name.startswith("small") != options.small:
            continue
        rounds = min(options.rounds, CPU_ROUNDS.get(name, options.rounds)) if platform == "cpu" else options.rounds
        with tempfile.TemporaryDirectory() as folder:
            measured = compare(_sides(name, task, peers, platform, options.seed, folder), rounds)
            notes += [_agreement(name, peer, Path(folder)) for peer in measured if peer != OURS]
        figures.append(time_figure(_describe(name, task), measured))
        memory += _memory(name, measured)
    return Part("inference", [*figures, *memory], notes)


def _sides(name: str, task: Task, peers: bool, platform: str, seed: int, folder: str) -> dict[str, Side]:
    """Peers first: nnU-Net's side leaves its weights for ours."""
    settings: dict[str, Any] = {"task": name, "folder": folder, "seed": seed}
    sides = {}
    if peers:
        on_device = {**settings, "device": "cuda" if platform == "gpu" else "cpu"}
        sides[NNUNET] = Side("experiments.benchmark.inference_peers:nnunet", on_device)
        if not task.mirror and not task.is_unet:
            sides[MONAI] = Side("experiments.benchmark.inference_peers:monai", on_device)
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return {**sides, OURS: Side("experiments.benchmark.inference_jax:segment", settings, environment)}


def _describe(name: str, task: Task) -> str:
    size, patch = (" x ".join(map(str, part)) for part in (task.shape, task.patch))
    times = f", {2 ** len(task.mirror)} mirrorings" if task.mirror else ""
    return f"{name.removesuffix(', mirrored')}, case of {size}, windows of {patch}{times}"


def _memory(name: str, measured: Mapping[str, Measured]) -> list[Figure]:
    figures = [size_figure(f"peak host memory, {name}", "GB", {side: m.peak / 1e9 for side, m in measured.items()})]
    if measured[OURS].device_peak is not None:
        on_device = {side: (m.device_peak or 0) / 1e9 for side, m in measured.items()}
        figures.append(size_figure(f"peak device memory, {name}", "GB", on_device))
    return figures


def _agreement(name: str, peer: str, folder: Path) -> str:
    ours, theirs = (np.load(folder / f"{side}.npy") for side in (OURS, peer))
    apart = np.abs(ours - theirs)
    labels = np.mean(ours.argmax(-1) != theirs.argmax(-1))
    return (
        f"{name}: logits of up to {np.abs(theirs).max():.1f} differ from {peer}'s by {np.median(apart):.1e} in the "
        f"median and {apart.max():.1e} at most, labels at {labels:.2%} of voxels (of one in {EVERY} along each axis)"
    )


def _what_is_done(platform: str) -> str:
    precision = "float32" if platform == "cpu" else "bfloat16 here, autocast there"
    return (
        f"images in memory to logits in memory, {precision}; U-Nets of six stages, 32 to 320 features, their weights "
        "as initialised; a convolution of nnU-Net's first stage with norm, LeakyReLU and head; and a head alone, which "
        "shows the work around a network. "
        "nnU-Net rounds weights and sums to float16, coarsely in the corners of a case, and an untrained network's "
        "labels are close: experiments.parity compares both in float32. MONAI lays windows a little differently"
    )
