"""Where prepared cases are kept."""

from pathlib import Path

import platformdirs


def cache_home(cache: Path | None) -> Path:
    """The folder given or, without one, the user's cache of this project."""
    return cache or Path(platformdirs.user_cache_dir("kd_jax"))


def prepared_folder(cache: Path | None) -> Path:
    """Where under it prepared cases are."""
    return cache_home(cache) / "prepared"
