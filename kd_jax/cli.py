"""What all commands share: how errors end them, and the check that results can be written."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data_pipeline.errors import InputError
from data_pipeline.files import write_atomically

COMMAND_ERROR = 2
"""Exit status when the command itself cannot do its work; argparse uses the same."""
CASES_FAILED = 1
"""Exit status when the command ran but not for every case."""
_INTERRUPTED = 128 + 2  # as the shell reports SIGINT
_BROKEN_PIPE = 128 + 13  # and SIGPIPE

# What the environment refuses, beside what the program gets wrong: these are for the person at the keyboard.
_ENVIRONMENT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


def run_command(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Run a command and turn what ends it into an exit status.

    Args:
      main: takes the command line and returns an exit status.
      arguments: the command line; that of the process if None.

    Returns:
      What `main` returns; 2 for an `InputError` or a full or read-only disk, after `error: …` in one line on
      stderr; 130 when interrupted; 141 when the reader of stdout has gone away. Other exceptions are
      faults of the program and keep their traceback.
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
    print(f"error: {one_line(message)}", file=sys.stderr)
    return COMMAND_ERROR


def one_line(message: object) -> str:
    """The message without line breaks."""
    return " ".join(str(message).split())


def ensure_writable(folder: Path) -> None:
    """Create a folder and try to write to it, before hours go into what is to be written.

    Raises:
      InputError: the folder cannot be created or written to.
    """
    probe = folder / ".write-test"
    write_atomically(probe, b"")
    probe.unlink()
