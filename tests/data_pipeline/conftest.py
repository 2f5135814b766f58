from pathlib import Path

import numpy as np
import pytest

from data_pipeline.phantom import anatomy, data_set


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def head() -> anatomy.Anatomy:
    """The template every phantom starts from: seconds to read."""
    return anatomy.load_anatomy()


@pytest.fixture(scope="session")
def phantoms(head, tmp_path_factory) -> Path:
    """A folder of three phantoms at 2 mm. Tests that change files take a copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_set, "load_anatomy", lambda: head)
        return data_set.make_phantoms(tmp_path_factory.mktemp("phantoms"), 3, 0, workers=1, progress=False)


@pytest.fixture
def quick(head, monkeypatch):
    """Skip the seconds of reading the template."""
    monkeypatch.setattr(data_set, "load_anatomy", lambda: head)
