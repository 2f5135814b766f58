"""What the documentation must hold: it builds, its links lead somewhere, and the README stays short."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kd_jax.config.load import parse_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = {"contributing.md", "changelog.md", "settings.md"}
"""Pages that docs/hooks.py makes when the site is built."""
MOST_WORDS = 900
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
_TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PATH = re.compile(r"`((?:kd_jax|data_pipeline|experiments|tests|docs)/[\w./-]+)`")


def _ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= MOST_WORDS


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_links_and_paths_exist(page):
    text = page.read_text()
    linked = [target for target in _LINK.findall(text) if "://" not in target]
    lost = [target for target in linked if not (page.parent / target).exists() and target not in GENERATED]
    lost += [path for path in _PATH.findall(text) if not (ROOT / path).exists()]
    assert not lost


SETTINGS = [(page, block) for page in PAGES for block in _TOML.findall(page.read_text())]


@pytest.mark.parametrize(("page", "block"), SETTINGS, ids=lambda value: _ids(value) if isinstance(value, Path) else "")
def test_settings_that_are_shown_are_accepted(page, block):
    parse_config({"data": {"patch": (128, 128, 128)}, **tomllib.loads(block)}, str(page))


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    settings = (tmp_path / "settings.html").read_text()
    assert "Nesterov momentum" in settings and "lambda of Barlow Twins" in settings
