"""Pages of the site that are generated: CONTRIBUTING.md, CHANGELOG.md, and tables of all settings."""

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from griffe import Docstring, DocstringSectionAttributes, Parser
from mkdocs.structure.files import File, Files
from pydantic import TypeAdapter

from kd_jax.config.schema import Config
from kd_jax.objective.terms import TERMS

ROOT = Path(__file__).resolve().parents[1]
_INTRODUCTION = """# Settings

Every setting is a key of a TOML file (`kd-jax train --config FILE`) and an option of `kd-jax train`: the key `weight`
in the table `[distillation]` is `--distillation.weight`. `kd-jax train --help-all` prints the same. These tables are
generated from the code.

"""
_HEAD = "| setting | value | default | meaning |\n| --- | --- | --- | --- |\n"
_TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true` or `false`"}


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages; MkDocs calls this hook once per build."""
    for page, content in _pages().items():
        files.append(File.generated(config, page, content=content))
    return files


def _pages() -> dict[str, str]:
    """Generated pages by file name. Links of the two root files start at the root of the repository."""
    copied = {
        f"{name.lower()}.md": (ROOT / f"{name}.md")
        .read_text(encoding="utf-8")
        .replace("](docs/", "](")
        .replace("](CHANGELOG", "](changelog")
        for name in ("CONTRIBUTING", "CHANGELOG")
    }
    return copied | {"settings.md": settings_page()}


def settings_page() -> str:
    """One table per section of the configuration and per distillation term, in the order of the code."""
    schema = TypeAdapter(Config).json_schema()
    tables = dict(_tables(schema, schema, ""))
    for name, module in TERMS.items():
        term = TypeAdapter(importlib.import_module(module).Settings).json_schema()
        tables |= dict(_tables(term, term, f"distillation.{name}"))
    return _INTRODUCTION + "\n".join(f"## {name}\n\n{_HEAD}{rows}" for name, rows in tables.items())


def _tables(schema: Mapping[str, Any], root: Mapping[str, Any], section: str) -> Iterator[tuple[str, str]]:
    """The rows of a table of settings by its heading, then those of the tables inside it."""
    documented = _attributes(schema.get("description", ""))
    rows, inner = "", []
    for name, setting in schema["properties"].items():
        if reference := setting.get("$ref"):
            inner.append((root["$defs"][reference.rpartition("/")[2]], f"{section}.{name}".lstrip(".")))
            continue
        meaning = setting.get("description") or documented.get(name, "")
        default = json.dumps(setting.get("default")).replace("null", "none")
        rows += f"| `{name}` | {_value(setting)} | `{default}` | {meaning} |\n".replace("[]", "empty")
    if rows:
        yield section or "top level", rows
    for table, heading in inner:
        yield from _tables(table, root, heading)


def _attributes(docstring: str) -> dict[str, str]:
    """Meaning of each attribute by the "Attributes:" section of a docstring."""
    sections = Docstring(docstring).parse(Parser.google, warnings=False)
    found = [item for part in sections if isinstance(part, DocstringSectionAttributes) for item in part.value]
    return {item.name: " ".join(item.description.split()).rstrip(".") for item in found}


def _value(setting: Mapping[str, Any]) -> str:
    """What a setting may be, in words."""
    if "enum" in setting:
        return ", ".join(f"`{value}`" for value in setting["enum"])
    if "const" in setting:
        return f"`{setting['const']}`"
    if "anyOf" in setting:
        return " or ".join(_value(option) for option in setting["anyOf"] if option.get("type") != "null")
    if setting.get("type") == "array":
        items = setting.get("prefixItems")
        return f"{len(items)} {_value(items[0])}s" if items else f"list: {_value(setting['items'])}"
    if setting.get("format") == "path":
        return "path"
    return _TYPES.get(setting.get("type", ""), "table")
