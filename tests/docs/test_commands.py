"""Commands that the documentation shows exist, and know every option that they are shown with."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from kd_jax.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OPTION = re.compile(r"--[a-zA-Z][\w.-]*")
_MODULES = ("kd_jax.", "data_pipeline.", "experiments.")


def _shown() -> Iterator[tuple[str, str]]:
    """Module and option of every command in a fenced block; an empty option stands for the command itself."""
    for page in PAGES:
        blocks = [block for language, block in _FENCE.findall(page.read_text()) if not language]
        for block in blocks:
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                for module, arguments in _commands(words):
                    yield module, ""
                    yield from ((module, option.group()) for word in arguments if (option := _OPTION.match(word)))


def _commands(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Our commands in a line of a shell, also inside a quoted command of another program."""
    for i, word in enumerate(words):
        if " " in word:
            yield from _commands(shlex.split(word))
        elif word == "kd-jax" and not words[i + 1].startswith("-"):
            yield COMMANDS[words[i + 1]][0], words[i + 2 :]
        elif word == "-m" and words[i + 1].startswith(_MODULES):
            yield words[i + 1], words[i + 2 :]


SHOWN: dict[str, set[str]] = {}
for _module, _name in _shown():
    SHOWN.setdefault(_module, set()).add(_name)


@cache
def _help(module: str) -> str:
    """Everything a command says about its options; those that most people do not need have a help of their own."""
    text = _output(module, "--help")
    return text + _output(module, "--help-all") if "--help-all" in text else text


def _output(module: str, option: str) -> str:
    environment = {**os.environ, "COLUMNS": "400", "NO_COLOR": "1"}
    command = [sys.executable, "-m", module, option]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("module", sorted(SHOWN))
def test_commands_know_the_options_they_are_shown_with(module):
    known = set(_OPTION.findall(_help(module)))
    assert SHOWN[module] - {""} <= known


def test_the_commands_of_the_documentation_are_found():
    assert SHOWN["kd_jax.train"] >= {"--config", "--data.root", "--distillation.weight"}
    assert {"kd_jax.evaluate", "kd_jax.predict", "data_pipeline.check", "experiments.benchmark"} <= SHOWN.keys()
