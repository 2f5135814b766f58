"""Settings of a run as options of a command: `--section.key VALUE`.

The options form a typed dictionary that holds what was given and nothing else, as text: it is laid over the file, and
all values are checked together, wherever they come from. Two kinds of keys are not known before the command line is
seen: settings of a distillation term, which only the term knows, and names of students, which a file defines.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

from cyclopts import CoercionError, Group, Parameter, Token

from kd_jax.config.distillation import StudentDistillation
from kd_jax.config.schema import StudentConfig
from kd_jax.config.settings import Setting, settings

COMMON: Mapping[str, Sequence[str]] = {
    "Data": (
        "data.root",
        "data.fold",
        "data.layout",
        "data.spacing",
        "data.patch",
        "data.cache",
        "data.workers",
        "data.skip_bad",
    ),
    "Networks": ("student.modalities", "student.features", "teacher.features"),
    "Loss and distillation": ("loss.segmentation", "distillation.weight", "distillation.update"),
    "Training": ("seed", "train.epochs", "train.batch", "train.precision", "optimiser.learning_rate"),
}
"""Settings that most people need, by the heading they have in the help; `--help-all` shows the others as well."""
_SHORT = {"data.fold": "--fold"}
"""Settings that are given so often that they have a short name."""
_FIRST = 2  # place of the first heading among those of the command
_STUDENT = re.compile(r"--students\.([^.=]+)\..+", re.DOTALL)
_TERM = re.compile(
    r"--((?:student\.|students\.[^.=]+\.)?distillation)\.(?:terms\.)?([^=]+)\.([^.=]+)(?:=.*)?", re.DOTALL
)

Tree = dict[str, Any]
"""Options by section and key; a leaf is the annotation of one option."""


def settings_type(arguments: Sequence[str], *, everything: bool) -> Any:
    """The type of the settings on a command line: a typed dictionary, for a parameter of a cyclopts command.

    Args:
      arguments: the command line, which may name students and terms.
      everything: whether the help shows all settings or only `COMMON`.
    """
    titles = {key: title for title, keys in COMMON.items() for key in keys}
    groups = {title: Group(title, sort_key=_FIRST + number / 1000) for number, title in enumerate(COMMON)}
    tree: Tree = {}
    for number, setting in enumerate(settings()):
        section = setting.key.rpartition(".")[0]
        title = f"Settings: {section or 'run'}" if everything else titles.get(setting.key, "")
        group = groups.setdefault(title, Group(title, sort_key=_FIRST + number / 1000)) if title else None
        _place(tree, setting.key.split("."), _option(setting, group))
    students = {match[1] for match in map(_STUDENT.fullmatch, arguments) if match}
    for place in ("student", *(f"students.{name}" for name in sorted(students))):
        for setting in (*settings(StudentConfig()), *settings(StudentDistillation(), "distillation.")):
            _place(tree, f"{place}.{setting.key}".split("."), _option(setting, None), keep=True)
    for match in filter(None, map(_TERM.fullmatch, arguments)):
        section, term, key = match.groups()  # a term may be a module or a file, with dots in its name
        _place(tree, [*section.split("."), term, key.replace("-", "_")], _free_option())
    return _typed("Settings", tree)


def _place(tree: Tree, path: Sequence[str], option: Any, *, keep: bool = False) -> None:
    *sections, leaf = path
    for section in sections:
        tree = tree.setdefault(section, {})
    if not (keep and leaf in tree):
        tree[leaf] = option


def _typed(name: str, tree: Tree) -> Any:
    fields = {
        key: Annotated[_typed(key, value), Parameter(name=key)] if isinstance(value, dict) else value
        for key, value in tree.items()
    }
    return TypedDict(name, fields, total=False)  # type: ignore[operator]


def _option(setting: Setting, group: Group | None) -> Any:
    """One setting; without a group it is not shown."""
    name = setting.key.rpartition(".")[2]
    short = _SHORT.get(setting.key)

    def convert(_: Any, tokens: Sequence[Token]) -> Any:
        given = _last_given(tokens, name, short)
        return _as_lists(given, setting) if setting.is_sequence else _or_none(given[0], setting)

    return Annotated[
        Any,
        Parameter(
            name=(name, short) if short else name,
            converter=convert,
            n_tokens=-1 if setting.is_sequence else 1,
            consume_multiple=(1, None) if setting.is_sequence else None,
            accepts_keys=False,
            metavar=setting.placeholder,
            help=setting.meaning,
            group=group,
            show=group is not None,
        ),
    ]


def _free_option() -> Any:
    """One setting of a term: numbers, truth values and lists as in TOML, anything else as text."""

    def convert(_: Any, tokens: Sequence[Token]) -> Any:
        values = [_toml_value(text) for text in _last_given(tokens, "", None)]
        return values if len(values) > 1 else values[0]

    return Annotated[
        Any,
        Parameter(converter=convert, n_tokens=-1, consume_multiple=(1, None), accepts_keys=False, show=False),
    ]


def _last_given(tokens: Sequence[Token], name: str, short: str | None) -> list[str]:
    """The values of an option where it was given last.

    Raises:
      CoercionError: not the option was named but a table that it is in.
    """
    keyword = (tokens[0].keyword or "").replace("-", "_")
    if not keyword.endswith(name.replace("-", "_")):
        raise CoercionError(msg=f"it is a table of settings; give one of them, such as {tokens[0].keyword}.{name}")
    start = max(place for place, token in enumerate(tokens) if token.index == 0)
    return [token.value for token in tokens[start:]]


def _or_none(text: str, setting: Setting) -> str | None:
    return None if text == "none" and setting.is_optional else text


def _as_lists(given: Sequence[str], setting: Setting) -> Any:
    """Values divided by spaces or commas; in a list of lists, spaces divide the lists and commas the values in each."""
    if list(given) == ["none"]:
        return None if setting.is_optional else []
    lists = [item.split(",") for item in given]
    return lists if setting.is_nested else [part for parts in lists for part in parts if part]


def _toml_value(text: str) -> Any:
    if text == "none":
        return None
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, bool | int | float | str | list) else text
