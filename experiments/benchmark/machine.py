"""The machine and the versions that figures were measured on."""

import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "scipy",
    "torch",
    "nnunetv2",
    "dynamic-network-architectures",
    "batchgeneratorsv2",
    "monai",
    "medpy",
    "libtpu",
)
_ASK_JAX = """
import json, jax
print(json.dumps([[device.platform, device.device_kind] for device in jax.devices()]))
"""


def describe() -> dict[str, Any]:
    """CPU, cores this process may use, memory, what JAX computes on, and how many other programs run."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "platform": jax_platform(),
        "devices": [kind for _, kind in _devices()],
        "load": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of each package that a part uses; None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def jax_platform() -> str:
    """The platform that JAX computes on: cpu, gpu or tpu. Another process asks: a device may have one user only."""
    return "gpu" if _devices()[0][0] in ("cuda", "rocm") else _devices()[0][0]


def missing(modules: Mapping[str, str]) -> list[str]:
    """The packages of {module: package} that are not installed."""
    return [package for module, package in modules.items() if find_spec(module) is None]


def cpu_flags() -> set[str]:
    """Instruction sets of the CPU as Linux names them; empty where it does not tell."""
    return set(_cpu_info("flags").split())


@functools.cache
def _devices() -> list[list[str]]:
    answer = subprocess.run([sys.executable, "-c", _ASK_JAX], capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(f"JAX does not start: {answer.stderr.strip().splitlines()[-1]}")
    return json.loads(answer.stdout.splitlines()[-1])


def _cpu_model() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
