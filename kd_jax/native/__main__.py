"""`kd-jax native`: compiles the 3-D operators for this machine's processor.

Training and inference on a CPU use them from then on; GPU and TPU do not. It needs a C++ compiler (g++, or the one
named in CXX). KD_JAX_NATIVE=0 in the environment ignores them; deleting the printed file removes them.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.command_line import parse_options, run_command


@dataclass(frozen=True)
class NativeOptions:
    """Compile the 3-D operators for this machine's processor.

    Training and inference on a CPU use them from then on; GPU and TPU do not. It needs a C++ compiler (g++, or the one
    named in CXX). KD_JAX_NATIVE=0 in the environment ignores them; deleting the printed file removes them.
    """


def main(arguments: Sequence[str]) -> int:
    """Builds, loads, and says where the library is."""
    parse_options(NativeOptions, arguments, name="kd-jax native")
    # Imported when work begins: --help does not wait for JAX.
    from kd_jax.native import library

    path = library.build()
    if os.environ.get(library.SWITCH) == "0":
        print(f"built {path}, but {library.SWITCH}=0 leaves it unused")
    else:
        library.available()
        print(f"built {path}; programs on this machine's CPU use it from now on")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
