"""The options that all commands with a trained network share."""

import argparse
from collections.abc import Sequence
from typing import Any

from kd_jax.config.network import AXES, Axis


def add_network_options(parser: argparse.ArgumentParser, checkpoints: Sequence[str], *, several: bool = False) -> None:
    """Add --network (None: each run's default), --checkpoint (the first of those given) and --mirror (axes)."""
    more = "; several with commas between them, both for student and teacher, or all" if several else ""
    parser.add_argument(
        "--network",
        metavar="NAME",
        help=f"teacher, student, or the name of one of several students{more} (default: the student, or the teacher of "
        "a run that has no student)",
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
