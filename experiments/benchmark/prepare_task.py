"""Cases for both sides of a comparison that reads patients, and the one thread each side may use."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from data_pipeline.formats import Case, find_cases
from data_pipeline.phantom.write import make_phantoms

ONE_THREAD: Mapping[str, str] = MappingProxyType(
    {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "BLOSC_NTHREADS": "1",
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    }
)
"""For the environment of a side whose figure is per core."""


def write_cases(folder: Path, count: int, *, spacing: float, seed: int) -> None:
    """Phantoms on BraTS's field of view, 240 x 240 x 155 voxels at 1 mm, as BraTS writes its cases."""
    make_phantoms(folder, count, seed, spacing, progress=False)


def cases_in(folder: Path) -> list[Case]:
    """What `write_cases` wrote."""
    return find_cases(folder)
