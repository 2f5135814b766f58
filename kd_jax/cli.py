"""What commands share: how errors end them, the check that results can be written, and the options of networks."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.files import write_atomically
from kd_jax.config import AXES, Axis

COMMAND_ERROR = 2
"""Exit status when the command itself cannot do its work; argparse uses the same."""
CASES_FAILED = 1
"""Exit status when the command ran but not for every case."""
_INTERRUPTED = 128 + 2  # as the shell reports SIGINT
_BROKEN_PIPE = 128 + 13  # and SIGPIPE

# What the environment refuses, beside what the program gets wrong: these are for the person at the keyboard.
_ENVIRONMENT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PROBE_BYTES = 1 << 20  # an empty file fits on a full disk


def run_command(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Run a command and turn what ends it into an exit status.

    Args:
      main: takes the command line and returns an exit status.
      arguments: the command line; that of the process if None.

    Returns:
      What `main` returns; 2 for an `InputError` or a full or read-only disk, after `error: …` on stderr, in as
      many lines as the error has; 130 when interrupted; 141 when the reader of stdout has gone away. Other
      exceptions are faults of the program and keep their traceback.
    """
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit; there must be somewhere for that to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:
        if error.errno not in _ENVIRONMENT:
            raise
        message = f"{error.filename or 'a file'}: {error.strerror}; free space or change permissions, then try again"
    print(f"error: {_tidy_lines(message)}", file=sys.stderr)
    return COMMAND_ERROR


def one_line(message: object) -> str:
    """The message without line breaks."""
    return " ".join(str(message).split())


def _tidy_lines(message: str) -> str:
    """The message's own lines, which list several problems, without empty ones and trailing spaces."""
    return "\n".join(line.rstrip() for line in message.splitlines() if line.strip())


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
