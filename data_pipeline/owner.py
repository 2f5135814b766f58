"""Names of processes, for temporary files: other processes can tell from them whether the writer has died."""

import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path

# Fields of /proc/PID/stat, counted from 1 (proc(5)).
_STATE, _START = 3, 22
_ENDED = "Z", "X"
"""States of a process that has ended but that its parent has not collected yet; in a container it may never do so."""
_HOST_DIGITS = 8


def this_process() -> str:
    """HOST-PID-START of this process: a digest of its host, its number, and clock ticks from boot to its start.

    The start distinguishes a process from a later one with the same number. It is 0 where the system has no /proc.
    """
    _, start = _state_and_start(os.getpid()) or ("", 0)
    return f"{_host()}-{os.getpid()}-{start}"


def is_dead(owner: str) -> bool:
    """Whether the process of this name has certainly ended. Processes on other hosts are never certain."""
    host, pid, start = owner.split("-")
    if host != _host() or os.name == "nt":  # on Windows, signal 0 would end the process
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it runs as another user
        pass
    found = _state_and_start(int(pid))
    return found is not None and (found[0] in _ENDED or found[1] != int(start))


def _host() -> str:
    """A digest of the host and its PID namespace: two containers may share a host's name."""
    with suppress(OSError):
        numbering = Path("/proc/self/ns/pid").stat().st_ino
        return _digest(f"{socket.gethostname()} {numbering}")
    return _digest(socket.gethostname())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HOST_DIGITS]


def _state_and_start(pid: int) -> tuple[str, int] | None:
    with suppress(OSError, IndexError, ValueError):
        # The name, field 2 in parentheses, may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[_STATE - 3], int(fields[_START - 3])
    return None
