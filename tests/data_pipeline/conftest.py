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


@pytest.fixture
def quick(head, monkeypatch):
    """Skip the seconds of reading the template."""
    monkeypatch.setattr(data_set, "load_anatomy", lambda: head)
