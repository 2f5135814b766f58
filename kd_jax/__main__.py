"""`kd-jax COMMAND`, or `python -m kd_jax COMMAND`: one entrance to all commands.

A command's module is imported when the command is chosen, and runs as under `python -m MODULE`, so worker processes
find the same main module either way.
"""

import argparse
import difflib
import runpy
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from kd_jax import __version__

COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "train": ("kd_jax.train", "train a teacher on all modalities and students on subsets"),
        "evaluate": ("kd_jax.evaluate", "score the networks of a run on labelled cases"),
        "predict": ("kd_jax.predict", "segment patients: NIfTI in, NIfTI out"),
        "plan": ("kd_jax.plan", "choose networks and patches by nnU-Net's rules"),
        "postprocess": ("kd_jax.postprocess", "decide on held-out cases which post-processing helps"),
        "import-nnunet": ("kd_jax.import_nnunet", "make a run from a network that nnU-Net trained"),
        "native": ("kd_jax.native", "compile faster operators for this machine's processor"),
        "check": ("data_pipeline.check", "report everything that is wrong with a data set"),
        "prepare": ("data_pipeline.prepare", "crop, normalise and resample a data set before training"),
        "phantom": ("data_pipeline.phantom", "write a data set of brain-tumour phantoms"),
    }
)
"""Module and purpose of each command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command named first with the arguments that follow.

    Returns:
      2 where no command is named; the command itself ends the process with its own exit status.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    if not given:
        parser.print_help(sys.stderr)
        return 2
    name = parser.parse_args(given[:1]).command
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        parser.error(f"unknown command {name}{f' (did you mean {near[0]}?)' if near else ''}; --help lists all")
    module, _ = COMMANDS[name]
    sys.argv[1:] = given[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    """Knows the command's name only: each command parses its own arguments."""
    parser = argparse.ArgumentParser(
        prog="kd-jax",
        usage="kd-jax [--help] [--version] COMMAND ...",
        description="Segment brain tumours from incomplete MRI: a teacher sees all modalities, students see a subset.",
        epilog="commands:\n"
        + "".join(f"  {name:<15} {purpose}\n" for name, (_, purpose) in COMMANDS.items())
        + "\nkd-jax COMMAND --help explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kd-jax {__version__}")
    parser.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
