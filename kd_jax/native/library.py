"""Builds the compiled operators and loads them.

They are C++ for XLA's CPU backend, called through `jax.ffi`. They are not part of an installation: `kd-jax native`
compiles them for this processor into the user's cache. From then on every program on this machine uses them; without
them, everything runs on XLA's own operators.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib
from platformdirs import user_cache_path

from data_pipeline.errors import InputError

SWITCH = "KD_JAX_NATIVE"
"""Environment variable: 0 ignores the compiled operators."""
COMPILER = "CXX"
"""Environment variable: the C++ compiler, g++ if not set."""

_SOURCES = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")
_TARGETS = "kd_convolution", "kd_input_gradient", "kd_kernel_gradient", "kd_norm", "kd_norm_gradient"


def library_path() -> Path:
    """Path of the library for these sources, this jaxlib and this processor, whether or not it is built."""
    digest = hashlib.sha256("\n".join([*_FLAGS, jaxlib.__version__, platform.machine(), _processor()]).encode())
    for source in sorted([*_SOURCES.glob("*.h"), *_SOURCES.glob("*.cc")]):
        digest.update(source.read_bytes())
    return user_cache_path("kd_jax") / "native" / f"{digest.hexdigest()[:16]}.so"


def build() -> Path:
    """Compiles the library, which takes some fifteen seconds, unless that was done before.

    Raises:
      InputError: there is no compiler, or it fails.
    """
    target = library_path()
    if target.exists():
        return target
    compiler = shutil.which(os.environ.get(COMPILER, "g++"))
    if compiler is None:
        raise InputError(
            f"no C++ compiler {os.environ.get(COMPILER, 'g++')!r}: install one (Debian: apt-get install g++) or name "
            f"it in {COMPILER}; without the compiled operators everything still runs, only slower"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [compiler, *_FLAGS, "-isystem", jax.ffi.include_dir(), str(_SOURCES / "module.cc"), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise InputError(f"{compiler} could not compile the operators: {done.stderr.strip()[-2000:]}")
        made.replace(target)
    return target


def available() -> bool:
    """Whether this process uses the compiled operators on a CPU; the first call loads them.

    True where `build` was done for this version and processor, unless `KD_JAX_NATIVE=0`.
    """
    return os.environ.get(SWITCH) != "0" and lanes() > 0


@functools.cache
def lanes() -> int:
    """Floats in a vector of the library, of which channels must be a multiple; 0 where it was not built."""
    if not library_path().exists():
        return 0
    library = ctypes.cdll.LoadLibrary(str(library_path()))
    for target in _TARGETS:
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    return library.kd_lanes()


def _processor() -> str:
    """Everything that a program compiled for this processor depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
