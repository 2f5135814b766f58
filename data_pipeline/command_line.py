"""What commands share: how errors end them, and the options that describe a data set."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence

from data_pipeline.errors import InputError
from data_pipeline.layouts.table import LAYOUT_HELP, LAYOUTS
from data_pipeline.workers import available_cores

COMMAND_ERROR = 2
"""Exit status when the command cannot do its work; argparse uses the same."""
CASES_FAILED = 1
"""Exit status when the command ran but some cases failed."""
_INTERRUPTED = 128 + 2  # as the shell reports SIGINT
_BROKEN_PIPE = 128 + 13  # and SIGPIPE

# Refusals of the environment, which the person at the keyboard can mend; other errors are faults of the program.
_ENVIRONMENT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def run_command(
    main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None, *, interrupted: str = "interrupted"
) -> int:
    """Run a command and turn the way it ends into an exit status.

    Args:
      main: takes the command line and returns an exit status.
      arguments: the command line; that of the process if None.
      interrupted: message after Ctrl-C.

    Returns:
      The status that `main` returns; 2 for an `InputError` or a full or read-only disk, after `error: …` on stderr in
      as many lines as the error has; 130 when interrupted; 141 when the reader of stdout has gone away. Other
      exceptions are faults of the program and keep their traceback.
    """
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        message = str(error)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:
        if error.errno not in _ENVIRONMENT:
            raise
        message = f"{error.filename or 'a file'}: {error.strerror}; free space or change permissions, then try again"
    print(f"error: {_tidy_lines(message)}", file=sys.stderr)
    return COMMAND_ERROR


def _tidy_lines(message: str) -> str:
    """The lines of a message that lists several problems, without empty lines and trailing spaces."""
    return "\n".join(line.rstrip() for line in message.splitlines() if line.strip())


def add_naming_options(parser: argparse.ArgumentParser) -> None:
    """Add --layout, --label-map and --ignore-affine."""
    parser.add_argument("--layout", choices=tuple(LAYOUTS), metavar="NAME", help=LAYOUT_HELP)
    parser.add_argument(
        "--label-map", metavar="MAP", help='meaning of label values, e.g. "1=NCR,2=ED,4=ET" (default: by names)'
    )
    parser.add_argument("--ignore-affine", action="store_true", help="accept files of a case whose affines differ")


def add_workers_option(parser: argparse.ArgumentParser) -> None:
    """Add --workers, by default one per core."""
    parser.add_argument(
        "--workers",
        type=int,
        default=available_cores(),
        metavar="N",
        help="processes (default: one per core, %(default)s)",
    )
