"""The error shown to the person at the keyboard."""

from pathlib import Path
from typing import Any


class InputError(ValueError):
    """A file or setting of the user's that cannot be used.

    The message is for a person, in one line or in one line and a list: which file or setting, what was found, what was
    expected, what to do next. Commands print it without a traceback and exit with status 2.
    """


def one_line(message: object) -> str:
    """The message without line breaks."""
    return " ".join(str(message).split())


class FileError(InputError):
    """A file that cannot be used.

    The parts of the message are attributes, so that a check can list them in its own form.
    """

    def __init__(self, file: Path, found: str, remedy: str, command: str | None = None) -> None:
        super().__init__(f"{file}: {found}; {remedy}")
        self.file, self.found, self.remedy, self.command = file, found, remedy, command

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.file, self.found, self.remedy, self.command)
