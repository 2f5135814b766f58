"""Every setting of a run by its dotted key, with its type, default and description."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from kd_jax.config.schema import Config

_MOST_CHOICES = 3
"""More values than these are listed in the description, not in place of the value."""
_WORDS = {Path: "PATH", int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false"}
_OF_LENGTH = {2: "FROM TO", 3: "X Y Z"}


@dataclass(frozen=True)
class Setting:
    """One leaf of the configuration: its dotted key, type without annotations, default and description."""

    key: str
    type: Any
    default: Any
    description: str

    @property
    def is_optional(self) -> bool:
        """Whether the value may be none."""
        return type(None) in _alternatives(self.type)

    @property
    def is_sequence(self) -> bool:
        """Whether the value is a list."""
        return any(get_origin(option) is tuple for option in _alternatives(self.type))

    @property
    def is_nested(self) -> bool:
        """Whether the value is a list of lists."""
        lists = [option for option in _alternatives(self.type) if get_origin(option) is tuple]
        return any(get_origin(_bare(item)) is tuple for option in lists for item in get_args(option))

    @property
    def placeholder(self) -> str:
        """What stands for the value in the help."""
        return "|".join(_placeholder(option) for option in _alternatives(self.type) if option is not type(None))

    @property
    def meaning(self) -> str:
        """The description, with what may be chosen where the placeholder does not say it."""
        choices = [value for option in _alternatives(self.type) for value in _choices(option)]
        listed = f": {', '.join(choices)}" if len(choices) > _MOST_CHOICES else ""
        return f"{self.description}{listed} [default: {in_words(self.default)}]"


def settings(table: Any = None, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a table, in the order of the configuration, with the values of this table as defaults.

    Left out are settings whose keys are not known here: those of terms, of several students, and `options`.

    Args:
      table: an instance of a class of the schema; None is the whole default configuration.
      prefix: what keys begin with.
    """
    table = Config() if table is None else table
    hints = get_type_hints(type(table), include_extras=True)
    for field in fields(table):
        value, hint = getattr(table, field.name), hints[field.name]
        if is_dataclass(value):
            yield from settings(value, f"{prefix}{field.name}.")
        elif not (isinstance(value, Mapping) or field.name == "distillation"):
            yield Setting(f"{prefix}{field.name}", _bare(hint), value, _description(type(table), field.name, hint))


def config_values(config: Config) -> dict[str, Any]:
    """Every value of a configuration by dotted key; tables whose keys are not known here are one value each."""
    known = {setting.key: setting.default for setting in settings(config)}
    return known | {
        "teacher.options": config.teacher.options,
        "student.options": config.student.options,
        "student.distillation": config.student.distillation,
        "students": config.students,
        "distillation.terms": config.distillation.terms,
    }


def in_words(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, tuple):
        return " ".join(",".join(map(str, v)) if isinstance(v, tuple) else in_words(v) for v in value) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _description(owner: type, name: str, hint: Any) -> str:
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, FieldInfo) and note.description:
            return note.description
    # Data classes of data_pipeline know nothing of pydantic: theirs is the line in the class's docstring.
    found = re.search(rf"^ +{name}: (.+(?:\n {{8,}}.+)*)", owner.__doc__ or "", re.MULTILINE)
    return " ".join(found.group(1).split()).rstrip(".") if found else ""


def _bare(hint: Any) -> Any:
    return _bare(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _alternatives(hint: Any) -> list[Any]:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [_bare(option) for option in options]


def _choices(hint: Any) -> list[str]:
    """Values of a Literal, or of the items of a list of them."""
    if get_origin(hint) is tuple:
        return _choices(_bare(get_args(hint)[0]))
    return [str(value) for value in get_args(hint)] if get_origin(hint) is Literal else []


def _placeholder(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(_choices(hint)) if len(_choices(hint)) <= _MOST_CHOICES else "NAME"
    if get_origin(hint) is tuple:
        first, *others = [_bare(item) for item in get_args(hint)]
        if others == [Ellipsis]:
            return "A,B,C..." if get_origin(first) is tuple else f"{_placeholder(first)}..."
        return _OF_LENGTH[len(others) + 1]
    return _WORDS[hint]
