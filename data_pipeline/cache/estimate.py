"""How much disk space a prepared case takes, from the headers alone: a full disk is better noticed at the start."""

import gzip
import math
from pathlib import Path

import nibabel as nib
import numpy as np

from data_pipeline.cache.entry import FOREGROUND_VOXELS
from data_pipeline.case import Case
from data_pipeline.conventions import CLASSES, MODALITIES, Spacing

BRAIN_BOX = 4.2e6
"""mm³; bounding boxes of skull-stripped brains are smaller on average.

3.3e6 at the median of BraTS 2021 (140 x 171 x 137), 2.7e6 to 3.6e6 in four cases of BraTS 2013 and BraTS-TCGA,
4.1e6 for the ICBM152 template, which is larger than life.
"""

_BYTES_PER_VOXEL = len(MODALITIES) * np.dtype(np.float32).itemsize + np.dtype(np.uint8).itemsize
_BYTES_PER_CASE = (len(CLASSES) - 1) * FOREGROUND_VOXELS * 3 * np.dtype(np.int32).itemsize + (16 << 10)
"""The voxels for foreground sampling, array headers and meta.json."""
_HEADER_BYTES = 540  # of NIfTI-2, the longer one


def prepared_bytes(case: Case, spacing: Spacing) -> int:
    """Bytes for a case, an upper estimate; 0 if its header cannot be read, because nothing will be written then."""
    volume = _volume(next(iter(case.images.values())))
    if volume is None:
        return 0
    return math.ceil(min(volume, BRAIN_BOX) / math.prod(spacing)) * _BYTES_PER_VOXEL + _BYTES_PER_CASE


def _volume(path: Path) -> float | None:
    """Volume of an image in mm³; None for a broken file, which is reported when it is read."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
        long = _HEADER_BYTES in (int.from_bytes(start[:4], order) for order in ("little", "big"))
        kind = nib.Nifti2Header if long else nib.Nifti1Header
        header = kind(start[: kind.sizeof_hdr], check=False)
        volume = math.prod(header.get_data_shape()[:3]) * abs(np.linalg.det(header.get_best_affine()[:3, :3]))
    except Exception:
        return None
    return float(volume) if math.isfinite(volume) else None
