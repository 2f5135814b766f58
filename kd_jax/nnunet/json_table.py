"""Reads nnU-Net's JSON files key by key; errors name the key, the value found, and the values that are understood."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_pipeline.errors import InputError

UNDERSTOOD = "the form of nnU-Net 2.0 to 2.8 is understood"


@dataclass(frozen=True)
class JsonTable:
    """A JSON object and where it is.

    Attributes:
      file: for messages.
      place: dotted keys down to the object, "" for the file itself.
      values: its content.
    """

    file: Path
    place: str
    values: Mapping[str, Any]

    def get(self, key: str, kind: Any) -> Any:
        """A value of the type `kind`, any that pydantic knows.

        Raises:
          InputError: the key is missing or its value is of another type.
        """
        if key not in self.values:
            found = ", ".join(list(self.values)[:12]) or "nothing"
            raise InputError(f"{self.file}: has no {self.name(key)} (found {found}); {UNDERSTOOD}")
        try:
            return TypeAdapter(kind).validate_python(self.values[key])
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise InputError(
                f"{self.file}: {self.name(key)} is {_short(self.values[key])}: {problem.lower()}; {UNDERSTOOD}"
            ) from error

    def table(self, key: str) -> "JsonTable":
        """An object in this one."""
        return JsonTable(self.file, self.name(key), self.get(key, dict[str, Any]))

    def expect(self, key: str, allowed: tuple[Any, ...], why: str) -> None:
        """Raises InputError unless the value is one of those allowed; a key that is not there is fine."""
        if key in self.values and self.values[key] not in allowed:
            listed = " or ".join(_short(value) for value in allowed)
            raise InputError(f"{self.file}: {self.name(key)} is {_short(self.values[key])}, expected {listed}: {why}")

    def name(self, key: str) -> str:
        """The key with its place."""
        return f"{self.place}.{key}" if self.place else key


def read_table(file: Path) -> JsonTable:
    """A JSON file that holds an object.

    Raises:
      InputError: it is not there or not such a file.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); give the folder that nnU-Net wrote") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not readable as JSON ({error}); copy it again from nnU-Net's results") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: holds a {type(values).__name__}, expected an object; {UNDERSTOOD}")
    return JsonTable(file, "", values)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
