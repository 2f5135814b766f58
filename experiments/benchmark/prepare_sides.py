"""A case from NIfTI to cache on one core, ours and nnU-Net's. The output of a run is removed before the next."""

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from data_pipeline.cache.fill import prepare_cases
from data_pipeline.case import Case
from data_pipeline.check.checked_case import check_case
from data_pipeline.layouts.find import find_cases
from experiments.benchmark.prepare_task import SPACING
from experiments.benchmark.workload import Workload


def ours(*, folder: str, patch: int) -> Workload:
    """`prepare_cases`, in this process."""
    del patch

    def prepare(case: Case, out: Path) -> int:
        (prepared,) = prepare_cases([case], SPACING, out, workers=0, progress=False)
        return math.prod(prepared.shape)

    return _each_case(folder, prepare)


def check(*, folder: str, patch: int) -> Workload:
    """Checks a case as `kd-jax check` does, picture included."""
    del patch

    def inspect(case: Case, out: Path) -> int:
        del out
        return math.prod(check_case(case).shape or ())

    return _each_case(folder, inspect)


def nnunet(*, folder: str, patch: int) -> Workload:
    """`DefaultPreprocessor.run_case_save`."""
    from experiments.benchmark.prepare_nnunet import open_cases, preprocess

    def prepare(case: Case, out: Path) -> int:
        preprocess(case, out, patch)
        image, *_ = open_cases(out).load_case(case.id)
        return math.prod(image.shape[1:])

    return _each_case(folder, prepare)


def _each_case(folder: str, prepare: Callable[[Case, Path], int]) -> Workload:
    """Goes through all cases and returns how many voxels the last one has left."""
    cases = find_cases(Path(folder) / "raw")

    def run() -> float:
        voxels = 0
        for case in cases:
            with TemporaryDirectory(dir=folder) as out:
                voxels = prepare(case, Path(out))
        return float(voxels)

    return Workload(run)
