"""From a TOML file and the command line to a `Config`.

Every setting is reached as `--section.key value`; the same checks apply wherever a value comes from.
"""

import argparse
import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from data_pipeline.errors import InputError
from kd_jax.config.schema import Config

PRESETS = Path(__file__).parent / "presets"
"""Configurations that ship with the package: `--config NAME` is PRESETS/NAME.toml."""
_ADAPTER = TypeAdapter(Config)
_SHORT = {"data.fold": ("--fold",)}
"""Settings that are given so often that they have a short name as well."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One leaf of the configuration: its dotted key, type without annotations, default and description."""

    key: str
    type: Any
    default: Any
    description: str

    @property
    def is_sequence(self) -> bool:
        """Whether the value is a list."""
        return any(get_origin(option) is tuple for option in _options(self.type))

    @property
    def is_nested(self) -> bool:
        """Whether the value is a list of lists."""
        sequences = [option for option in _options(self.type) if get_origin(option) is tuple]
        return any(get_origin(_bare(item)) is tuple for option in sequences for item in get_args(option))

    @property
    def kind(self) -> str:
        """The type as --help shows it."""
        return _describe(self.type)


class SettingsHelp(argparse.HelpFormatter):
    """Shows a list's type once, where argparse would repeat it."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(action.metavar) if action.nargs == "+" else super()._format_args(action, default_metavar)


def settings() -> Iterator[Setting]:
    """Every setting of a run, in the order of the configuration."""
    yield from _leaves(Config(), "")


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--section.key` for every setting; what is given ends up in `overrides_from`."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for setting in settings():
        section = setting.key.rpartition(".")[0] or "run"
        group = groups.setdefault(section, parser.add_argument_group(f"[{section}]"))
        group.add_argument(
            f"--{setting.key}",
            *_SHORT.get(setting.key, ()),
            dest=f"setting:{setting.key}",
            nargs="+" if setting.is_sequence else None,
            metavar=setting.kind,
            default=None,
            help=f"{setting.description} (default: {_show(setting.default)})".replace("%", "%%").strip(),
        )


def refuse_unknown(arguments: Sequence[str]) -> None:
    """What argparse could not place: names the nearest setting and what the section allows.

    Raises:
      InputError: there is such an argument.
    """
    if not arguments:
        return
    name = next((a for a in arguments if a.startswith("-")), arguments[0]).partition("=")[0]
    keys = [f"--{setting.key}" for setting in settings()]
    near = difflib.get_close_matches(name, keys, n=1)
    section = name.rpartition(".")[0]
    allowed = [key for key in keys if section and key.rpartition(".")[0] == section]
    raise InputError(
        f"unknown option {name}{f' (did you mean {near[0]}?)' if near else ''}; "
        + (f"allowed there: {', '.join(allowed)}" if allowed else "--help lists every setting")
    )


def overrides_from(args: argparse.Namespace) -> dict[str, Any]:
    """The settings given on the command line, by dotted key, as text."""
    given = {}
    for setting in settings():
        value = getattr(args, f"setting:{setting.key}")
        if value is not None:
            given[setting.key] = _parse(setting, value)
    return given


def load_config(
    file: str | Path | None = None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    layers: Sequence[Mapping[str, Any]] = (),
) -> Config:
    """The configuration of a file (TOML, or a run's config.json), of tables over it, and of overrides over all.

    Args:
      file: a path, or the name of a preset; None is the defaults.
      overrides: values by dotted key.
      layers: nested tables; a later one wins.

    Raises:
      InputError: the file cannot be read, a key is unknown, a value is impossible.

    Examples:
      >>> import kd_jax
      >>> config = kd_jax.load_config("paper", {"data.fold": 2, "student.modalities": ["flair"]})
      >>> config.train.epochs, config.data.fold, config.student.modalities
      (1000, 2, ('flair',))
    """
    values = {} if file is None else _read(Path(file))
    for layer in layers:
        for section, table in layer.items():
            values[section] = {**values.get(section, {}), **table} if isinstance(table, Mapping) else table
    for key, value in overrides.items():
        *sections, leaf = key.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    return parse_config(values, source="settings" if file is None else str(file))


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


def config_values(config: Config) -> dict[str, Any]:
    """Every setting's value by dotted key."""
    return {setting.key: setting.default for setting in _leaves(config, "")}


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


def _leaves(instance: Any, prefix: str) -> Iterator[Setting]:
    hints = get_type_hints(type(instance), include_extras=True)
    for field in dataclasses.fields(instance):
        value, hint = getattr(instance, field.name), hints[field.name]
        if isinstance(value, Mapping) or (field.name == "distillation" and value is None):
            continue  # tables whose keys are not known here
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield Setting(f"{prefix}{field.name}", _bare(hint), value, _description(type(instance), field.name, hint))


def _description(owner: type, name: str, hint: Any) -> str:
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, FieldInfo) and note.description:
            return note.description
    # Data classes of data_pipeline know nothing of pydantic: theirs is the line in the class's docstring.
    found = re.search(rf"^ +{name}: (.+(?:\n {{8,}}.+)*)", owner.__doc__ or "", re.MULTILINE)
    return " ".join(found.group(1).split()).rstrip(".") if found else ""


def _bare(hint: Any) -> Any:
    return _bare(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _options(hint: Any) -> list[Any]:
    if get_origin(hint) in (Union, UnionType):
        return [_bare(option) for option in get_args(hint)]
    return [hint]


def _describe(hint: Any) -> str:
    hint = _bare(hint)
    if get_origin(hint) in (Union, UnionType):
        return "|".join(_describe(option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return "|".join(str(value) for value in get_args(hint))
    if get_origin(hint) is tuple:
        items = get_args(hint)
        nested = get_origin(_bare(items[0])) is tuple
        parts = ["A,B,C" if nested else _describe(item) for item in items if item is not Ellipsis]
        return " ".join(parts) + (" [...]" if Ellipsis in items else "")
    return "none" if hint is type(None) else {Path: "PATH"}.get(hint, hint.__name__)


def _parse(setting: Setting, value: str | Sequence[str]) -> Any:
    if isinstance(value, str):
        return None if value == "none" and type(None) in get_args(setting.type) else value
    if list(value) == ["none"]:
        return None if type(None) in get_args(setting.type) else []
    lists = [item.split(",") for item in value]
    return lists if setting.is_nested else [part for parts in lists for part in parts if part]


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(",".join(map(str, v)) if isinstance(v, tuple) else _show(v) for v in value) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _explain(problem: Mapping[str, Any]) -> str:
    path: list[str] = []
    instance: Any = Config()
    for part in problem["loc"]:
        if dataclasses.is_dataclass(instance) and part in {f.name for f in dataclasses.fields(instance)}:
            instance = getattr(instance, str(part))
            path.append(str(part))
        elif problem["type"] == "unexpected_keyword_argument":
            return _unknown(path, str(part), instance)
    key = ".".join(path)
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message}, found {problem['input']!r}"


def _unknown(path: Sequence[str], name: str, table: Any) -> str:
    allowed = [f.name for f in dataclasses.fields(table)] if dataclasses.is_dataclass(table) else []
    near = difflib.get_close_matches(name, allowed, n=1)
    section = ".".join(path)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"unknown key {'.'.join([*path, name])}{hint}; allowed in [{section or 'top level'}]: {', '.join(allowed)}"
