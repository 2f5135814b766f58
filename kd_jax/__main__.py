"""`kd-jax COMMAND`, or `python -m kd_jax COMMAND`: one entrance to all commands.

A command's module is imported when the command is chosen, and runs as under `python -m MODULE`, so worker processes
find the same main module either way.
"""

import runpy
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Annotated

from cyclopts import App, Group, Parameter, UnknownCommandError

from data_pipeline.command_line import COMMAND_ERROR, explain, run_command
from data_pipeline.errors import InputError
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
      2 where no command or none of `COMMANDS` is named; the command itself ends the process with its own exit status.
    """
    return run_command(_run, arguments)


def _run(arguments: Sequence[str]) -> int:
    app = _app()
    try:
        app(arguments or ["--help"])
    except UnknownCommandError as error:
        raise InputError(f"{explain(error)} `kd-jax --help` lists all.") from error
    return 0 if arguments else COMMAND_ERROR


def _app() -> App:
    app = App(
        name="kd-jax",
        help="Segment brain tumours from incomplete MRI: a teacher sees all modalities, students see a subset.",
        help_epilogue="kd-jax COMMAND --help explains a command.",
        help_format="plaintext",
        version=f"kd-jax {__version__}",
        group_commands=Group("Commands", sort_key=0),
        result_action="return_value",
        print_error=False,
        exit_on_error=False,
        verbose=False,
    )
    options = Group("Options", sort_key=1)
    for flag, meaning in (("--help", "show this help and exit"), ("--version", "show the version and exit")):
        app[flag].group, app[flag].help = (options,), meaning
    for number, (name, (module, purpose)) in enumerate(COMMANDS.items()):
        # A command parses its own arguments, --help among them.
        app.command(partial(_start, module), name=name, help=purpose, help_flags=(), version_flags=(), sort_key=number)
    return app


def _start(module: str, /, *arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.exit(main())
