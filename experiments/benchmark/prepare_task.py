"""Cases for both sides of a comparison that reads patients, and the one thread each side may use."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import nibabel as nib
import numpy as np

from data_pipeline.conventions import CONVENTIONS, MODALITIES
from data_pipeline.phantom.data_set import case_name, make_phantoms
from experiments.benchmark.metrics_cases import make_pair

ONE_THREAD: Mapping[str, str] = MappingProxyType(
    {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "BLOSC_NTHREADS": "1",
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    }
)
"""Environment variables of a side whose figure is per core."""

SPACING = 1.0
SMALL_SHAPE = 48, 44, 40
_AIR = 4  # voxels around noise
_SMALL_TUMOUR_ML = 3.0


def write_cases(folder: Path, count: int, seed: int, *, small: bool) -> None:
    """Phantoms on BraTS's grid as BraTS 2021 writes its cases; or, made in no time, small boxes of noise."""
    if not small:
        make_phantoms(folder, count, seed, SPACING, progress=False)
        return
    for number in range(count):
        write_noise(folder / case_name(number), SMALL_SHAPE, _SMALL_TUMOUR_ML, seed + number)


def write_noise(folder: Path, shape: tuple[int, int, int], tumour_ml: float, seed: int) -> None:
    """A case as BraTS 2021 writes it: noise with a tumour in it, and air around."""
    classes, rng = make_pair(shape, tumour_ml, seed).reference, np.random.default_rng(seed)
    inside = np.pad(np.ones([size - 2 * _AIR for size in shape], np.int16), _AIR)
    folder.mkdir(parents=True)
    volumes: dict[str, np.ndarray]
    volumes = {m: (200 + 100 * classes + rng.normal(0, 20, shape)).clip(1).astype(np.int16) for m in MODALITIES}
    volumes["seg"] = CONVENTIONS["brats2018"].encode(classes).astype(np.int16)
    for name, values in volumes.items():
        nib.save(nib.Nifti1Image(values * inside, np.eye(4)), folder / f"{folder.name}_{name}.nii.gz")
