"""For every test: two virtual CPU devices, set before JAX is imported; checked types; the same random examples."""

import os
from pathlib import Path

import jaxtyping
from hypothesis import settings

from tests import typechecker

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["KD_JAX_NATIVE"] = "0"  # whether or not this machine has them; test_native turns them on
os.environ.setdefault("NPROC", "4")  # collectives of two virtual devices deadlock on two cores without it (jax 0.10)
_FLAGS = (
    "--xla_force_host_platform_device_count=2",
    # Tests spend their time on compiling tiny networks; optimised code would not win it back.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Annotations of these packages are executed: a wrong type or shape in a call is an error in the tests.
jaxtyping.install_import_hook(["data_pipeline", "kd_jax"], f"{typechecker.__name__}.check")

settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")
