"""Compiles the joint step ahead of time for a TPU v5e: memory, arithmetic, traffic, and the time they allow.

No TPU is needed: libtpu compiles for a described topology on any Linux host.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from experiments.benchmark.figures import Figure, Options, Part
from kd_jax.config.load import dump_config, load_config
from kd_jax.config.schema import Config

PEAK_FLOPS = 197e12
"""bf16 operations a second of a v5e chip (Google Cloud, "TPU v5e")."""
PEAK_BYTES = 819e9
"""Bytes a second of its HBM (same source)."""


_COMPILE_ONLY = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
"""No chip is looked for, and a program that uses one is not disturbed."""
_QUICKLY = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}
"""JAX's own setting, which a caller may have set otherwise: the compiler searches less for the best tiles."""
ON_A_TPU: Mapping[str, Any] = {"train.remat": "norms", "train.fold": 4, "train.precision": "bfloat16"}
"""Values of a run's `auto` settings on a TPU; this host has none to choose them by."""
SMALL: Mapping[str, Any] = {
    "data.patch": [16, 16, 16],
    **{f"{network}.features": [8, 16] for network in ("teacher", "student")},
    **{f"{network}.{part}": 1 for network in ("teacher", "student") for part in ("convs_encoder", "convs_decoder")},
}
"""Two stages of one convolution."""


@dataclass(frozen=True)
class Compiled:
    """The compiler's figures for one step, per chip.

    Attributes:
      temporaries: bytes of HBM for intermediate values.
      arguments: bytes of HBM for state and batch; the new state takes the old one's place.
      flops: operations per step, zeros of folded kernels included.
      bytes_accessed: bytes of memory read and written per step.
      roofline_seconds: the larger of arithmetic and traffic at the chip's peaks.
      compile_seconds: on this host.
      collective_bytes: bytes sent to other chips per step.
      traffic: bytes read and written by kind of instruction, as counted from the program's text.
    """

    temporaries: int
    arguments: int
    flops: float
    bytes_accessed: float
    roofline_seconds: float
    compile_seconds: float
    collective_bytes: float
    traffic: Mapping[str, float]


def measure(options: Options) -> Part:
    """Memory, arithmetic and traffic of the step of the preset `paper`, two patches a chip; minutes of compilation.

    Raises:
      InputError: libtpu is missing, or it refuses the program.
    """
    config = load_config(Path("paper"), {"train.batch": 2, **ON_A_TPU, **(SMALL if options.small else {})})
    compiled = compile_step(config, "v5e:1x1")
    memory = compiled.temporaries + compiled.arguments
    counted = sum(compiled.traffic.values())
    shares = ", ".join(f"{kind} {moved / counted:.0%}" for kind, moved in compiled.traffic.items())
    size = f"{config.data.patch[0]}³, batch {config.train.batch}"
    return Part(
        "tpu",
        [
            Figure(f"memory of the joint step on a v5e chip, {size}", "GB", memory / 1e9),
            Figure("of it temporaries", "GB", compiled.temporaries / 1e9),
            Figure("operations per step", "TFLOP", compiled.flops / 1e12),
            Figure("memory traffic per step", "GB", compiled.bytes_accessed / 1e9),
            Figure("time per step at the chip's peaks (roofline)", "s", compiled.roofline_seconds),
            Figure("compilation on this host", "s", compiled.compile_seconds),
        ],
        notes=[
            "figures of XLA's compiler (memory_analysis, cost_analysis); nothing ran on a TPU",
            f"peaks: {PEAK_FLOPS / 1e12:.0f} TFLOP/s in bf16, {PEAK_BYTES / 1e9:.0f} GB/s",
            f"operations include the zeros of folded kernels; traffic by kind: {shares}",
        ],
    )


def roofline(flops: float, traffic: float) -> float:
    """Seconds a v5e chip needs at least."""
    return max(flops / PEAK_FLOPS, traffic / PEAK_BYTES)


def compile_step(config: Config, topology: str) -> Compiled:
    """Compiles the joint step of a run for a TPU topology.

    A full-size network takes minutes; with JAX_EXEC_TIME_OPTIMIZATION_EFFORT=0 in the environment, the compiler's own
    default, half an hour.

    Args:
      config: `train.batch` counts patches over all chips.
      topology: libtpu's name, e.g. "v5e:1x1", "v5e:2x2", "v5e:4x4".

    Raises:
      InputError: libtpu is missing, or it refuses the program or the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("compiling for a TPU needs libtpu, which is not installed: pip install 'kd_jax[tpu]'")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark.tpu_compile", topology],
        input=dump_config(config),
        capture_output=True,
        text=True,
        env={**_QUICKLY, **os.environ, **_COMPILE_ONLY},
    )
    if done.returncode:
        raise InputError(f"compiling for {topology} failed: {done.stderr[-2000:]}")
    return Compiled(**json.loads(done.stdout))
