"""What the commands of networks share: the check that results can be written, and their options."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.files import write_atomically
from kd_jax.config.network import AXES, Axis

_PROBE_BYTES = 1 << 20  # an empty file fits on a full disk


def ensure_writable(folder: Path) -> None:
    """Try to write 1 MiB to a folder, before hours go into what is to be written. Leaves no trace.

    Raises:
      InputError: the folder cannot be created or written to.
    """
    made = [f for f in (folder, *folder.parents) if not f.exists()]
    probe = folder / ".write-test"
    try:
        write_atomically(probe, bytes(_PROBE_BYTES))
        probe.unlink()
    except InputError as error:
        raise InputError(f"{folder}{str(error).removeprefix(str(probe))}") from error
    finally:
        with suppress(OSError):  # not made at all, or in use by somebody else already
            for empty in made:
                empty.rmdir()


def add_network_options(parser: argparse.ArgumentParser, networks: Sequence[str], checkpoints: Sequence[str]) -> None:
    """Add --network (None: each run's default), --checkpoint (the first of those given) and --mirror (axes)."""
    parser.add_argument(
        "--network", choices=networks, help="(default: the student, or the teacher of a run that has no student)"
    )
    parser.add_argument("--checkpoint", choices=checkpoints, default=checkpoints[0], help="(default: %(default)s)")
    parser.add_argument(
        "--mirror",
        nargs="*",
        type=_axis,
        action=_MirrorAxes,
        default=(),
        metavar="AXIS",
        help="average over mirror images along the axes given, of x (left and right), y (front and back) and z; "
        "alone along all three: 8 times the work",
    )


def _axis(name: str) -> Axis:
    for axis in AXES:
        if name == axis:
            return axis
    raise argparse.ArgumentTypeError(
        f"{name!r} is no axis; give some of {', '.join(AXES)}, or none to mirror along all, after the other arguments"
    )


class _MirrorAxes(argparse.Action):
    """The axes given, each once; all of them where the option stands alone."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: object = None) -> None:
        setattr(namespace, self.dest, tuple(axis for axis in AXES if not values or axis in values))
