"""Files and folders that appear complete or not at all, whenever the process or the machine stops.

A run, a cache or a table that is half written looks like a whole one to the next command, which would then train or
score on it without a word.
"""

import io
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.owner import is_dead, this_process

_TEMPORARY = re.compile(r"\..+?\.(?P<owner>[0-9a-f]{8}-\d+-\d+)\.[0-9a-f]{12}\.tmp")
_PROBE_BYTES = 1 << 20  # an empty file fits on a full disk


def _temporary_name(path: Path) -> Path:
    """A free hidden name in the same folder, so that the final rename stays on one file system."""
    return path.with_name(f".{path.name}.{this_process()}.{uuid.uuid4().hex[:12]}.tmp")


def remove_abandoned(folder: Path, older_than: float) -> None:
    """Remove the unfinished folders that killed processes left in `folder`.

    Folders of processes that are known to be dead go at once. Whether a process on another host still runs cannot be
    known: its folders go when they have not been touched for `older_than` seconds.
    """
    for left in folder.glob(".*.tmp"):
        name = _TEMPORARY.fullmatch(left.name)
        if name is None:
            continue
        with suppress(OSError):  # another process may be removing it too
            if is_dead(name["owner"]) or time.time() - left.stat().st_mtime > older_than:
                shutil.rmtree(left)


def write_error(path: Path, error: OSError) -> InputError:
    """A failed write in the user's terms: read-only folder, full disk, a file where a folder is needed."""
    return InputError(
        f"{path}: cannot be written ({error.strerror or error}); choose a folder you may write to, with free space"
    )


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` and replace an existing file; a failure changes nothing and leaves nothing behind.

    Raises:
      InputError: the folder is read-only or full.
    """
    with file_atomically(path) as file:
        file.write(content)


def write_json(path: Path, content: object) -> None:
    """Write indented JSON atomically; NaN and infinities, which JSON cannot express, become null.

    Raises:
      InputError: the file cannot be written.
    """
    text = json.dumps(_for_json(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def _for_json(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _for_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_for_json(value) for value in content]
    if isinstance(content, Path):
        return str(content)
    return None if isinstance(content, float) and not math.isfinite(content) else content


def ensure_writable(folder: Path) -> None:
    """Write 1 MiB to a folder and remove it again, before hours of work whose result is to be written there.

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
        with suppress(OSError):  # it was never made, or another process is using it by now
            for empty in made:
                empty.rmdir()


@contextmanager
def file_atomically(path: Path) -> Iterator[io.BufferedWriter]:
    """A temporary file, open for writing, that becomes `path` if the block ends without an error.

    Raises:
      InputError: the folder is read-only or full; an OSError raised inside the block becomes one, too.
    """
    temporary = _temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):  # the clean-up must not hide the error that made it necessary
            temporary.unlink(missing_ok=True)


@contextmanager
def folder_atomically(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` if the block ends without an error.

    If another process has finished the same folder in the meantime, its version stays. An error or interruption leaves
    nothing behind.

    Raises:
      InputError: the parent is read-only or full; an OSError raised inside the block becomes one, too.
    """
    temporary = _temporary_name(folder)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if not folder.exists():
            for file in filter(Path.is_file, temporary.rglob("*")):
                _to_disk(file)
            _rename_unless_taken(temporary, folder)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _to_disk(file: Path) -> None:
    """Without this, a loss of power may leave a renamed folder whose files never reached the disk."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_unless_taken(temporary: Path, folder: Path) -> None:
    try:
        temporary.replace(folder)
    except OSError:
        if not folder.is_dir():  # renaming onto a folder that is not empty fails: someone else was first
            raise
