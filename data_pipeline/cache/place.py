"""Folders of the cache."""

from pathlib import Path

import platformdirs


def cache_home(cache: Path | None) -> Path:
    """`cache` or, if None, this project's folder in the user's cache."""
    return cache or Path(platformdirs.user_cache_dir("kd_jax"))


def prepared_folder(cache: Path | None) -> Path:
    """The folder of prepared cases in the cache."""
    return cache_home(cache) / "prepared"
