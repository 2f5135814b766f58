"""From a TOML or JSON file, and values that are laid over it, to a checked `Config`."""

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_pipeline.errors import InputError
from kd_jax.config.distillation import StudentDistillation
from kd_jax.config.schema import Config, StudentConfig

PRESETS = Path(__file__).parent / "presets"
"""Configurations that ship with the package: `--config NAME` is PRESETS/NAME.toml."""
_ADAPTER = TypeAdapter(Config)


def load_config(
    file: str | Path | None = None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    layers: Sequence[Mapping[str, Any]] = (),
) -> Config:
    """The configuration of a file (TOML, or a run's config.json), of tables over it, and of overrides over all.

    Args:
      file: a path, or the name of a preset; None is the defaults.
      overrides: values by dotted key, or nested tables; of a nested table only the values in it are replaced.
      layers: nested tables, whose sections are laid over those of the file; a later one wins.

    Raises:
      InputError: the file cannot be read, a key is unknown, a value is impossible.

    Examples:
      >>> import kd_jax
      >>> config = kd_jax.load_config("paper", {"data.fold": 2, "student.modalities": ["flair"]})
      >>> config.train.epochs, config.data.fold, config.student.modalities
      (1000, 2, ('flair',))
    """
    source = "settings" if file is None else str(file)
    values = {} if file is None else _read(Path(file))
    for layer in layers:
        for section, table in layer.items():
            is_table = isinstance(table, Mapping)
            values[section] = {**_table(values, section, source), **table} if is_table else table
    for key, value in overrides.items():
        table = _nested(key, value)
        _refuse_new_students(table, values, source)
        values = _laid_over(values, table, source)
    return parse_config(values, source)


def _nested(key: str, value: Any) -> dict[str, Any]:
    """A value as it stands in tables.

    The name of a term may be a module or a file, which has dots. Its table is [distillation.TERM], which wins over
    [distillation.terms.TERM].
    """
    *sections, leaf = key.split(".")
    if "distillation" in sections:
        start = sections.index("distillation") + 1
        term = ".".join(sections[start:]).removeprefix("terms.")
        sections[start:] = [term] if term else []
    table = {leaf: value}
    for section in reversed(sections):
        table = {section: table}
    return table


def _table(values: Mapping[str, Any], section: str, source: str) -> Mapping[str, Any]:
    """One of the tables, empty where there is none.

    Raises:
      InputError: there is something else.
    """
    table = values.get(section)
    if table is not None and not isinstance(table, Mapping):
        raise InputError(f"{source}: {section}: expected a table of settings, found {table!r}")
    return table or {}


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Nested tables with the values of both; those of `above` win."""
    merged = dict(below)
    for key, value in above.items():
        merged[key] = _laid_over(_table(merged, key, source), value, source) if isinstance(value, Mapping) else value
    return merged


def _refuse_new_students(overrides: Mapping[str, Any], values: Mapping[str, Any], source: str) -> None:
    """Checks that single settings are for students of the file: a misspelt name would be one more student.

    Raises:
      InputError: a student is not in the file.
    """
    given = overrides.get("students")
    known = _table(values, "students", source)
    for name in given if isinstance(given, Mapping) else ():
        if name not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(
                f"{source}: students.{name}: no such student; {there}; define it as a table [students.{name}] of a "
                "TOML file for --config"
            )


def parse_config(values: Mapping[str, Any], source: str) -> Config:
    """A checked configuration from nested values.

    Raises:
      InputError: names every offending key and what is allowed.
    """
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        problems = list(dict.fromkeys(_explain(problem) for problem in error.errors()))
        raise InputError(f"{source}: " + "; ".join(problems)) from error


def dump_config(config: Config) -> str:
    """The configuration as JSON that `load_config` reads back."""
    return _ADAPTER.dump_json(config, indent=2).decode() + "\n"


def _locate(file: Path) -> Path:
    """The file itself, or the preset of that name where there is no such file."""
    if file.is_file():
        return file
    preset = PRESETS / f"{file}.toml"
    if preset.parent == PRESETS and preset.is_file():
        return preset
    presets = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.toml")))
    raise InputError(
        f"{file}: no such configuration file or preset; give the path of a TOML file or one of the presets {presets}"
    )


def _read(file: Path) -> dict[str, Any]:
    file = _locate(file)
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a readable {file.suffix or 'TOML'} file ({error}); correct that line") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: expected tables of settings, found {type(values).__name__}")
    return values


def _explain(problem: Mapping[str, Any]) -> str:
    path: list[str] = []
    table: Any = Config()
    for part in problem["loc"]:
        inner = _inside(table, str(part), path)
        if inner is not None:
            table = inner
            path.append(str(part))
        elif problem["type"] == "unexpected_keyword_argument":
            return _unknown(path, str(part), table)
    key = ".".join(path)
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message}, found {problem['input']!r}"


def _inside(table: Any, part: str, path: Sequence[str]) -> Any:
    """What a table of the default configuration has under a key; None where it has no such key."""
    if list(path) == ["students"]:
        return StudentConfig()
    if not dataclasses.is_dataclass(table) or part not in {field.name for field in dataclasses.fields(table)}:
        return None
    if part == "distillation" and isinstance(table, StudentConfig):
        return StudentDistillation()
    value = getattr(table, part)
    return () if value is None else value  # there is such a key, and nothing inside


def _unknown(path: Sequence[str], name: str, table: Any) -> str:
    allowed = [f.name for f in dataclasses.fields(table)] if dataclasses.is_dataclass(table) else []
    near = difflib.get_close_matches(name, allowed, n=1)
    section = ".".join(path)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"unknown key {'.'.join([*path, name])}{hint}; allowed in [{section or 'top level'}]: {', '.join(allowed)}"
