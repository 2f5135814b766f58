"""The files of one phantom: BraTS 2021 names and NIfTI, so that a phantom goes through the same reader as a patient."""

import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Shaped

from data_pipeline.conventions import CONVENTIONS, MODALITIES
from data_pipeline.phantom.make import Phantom, image_grid


def write_files(folder: Path, name: str, phantom: Phantom, spacing: float) -> None:
    """Write the four images and the label of a case into its folder.

    Args:
      folder: exists and is empty.
      name: of the case, the stem of its files.
      phantom: the case.
      spacing: isotropic voxel edge, mm.

    Raises:
      OSError: a file cannot be written.
    """
    for modality in MODALITIES:
        write_volume(folder / f"{name}_{modality}.nii.gz", phantom.images[modality], spacing)
    write_volume(folder / f"{name}_seg.nii.gz", CONVENTIONS["brats2018"].encode(phantom.label), spacing)


def write_volume(path: Path, values: Shaped[np.ndarray, "d h w"], spacing: float) -> None:
    """Write one volume as BraTS stores it (x and y reversed); the bytes depend on the voxels alone.

    Raises:
      OSError: the file cannot be written.
    """
    # Reversing x and y and negating their axes describes the same points: BraTS files are stored LPS.
    origin = image_grid(spacing).origin
    last = [o + spacing * (n - 1) for o, n in zip(origin, values.shape, strict=True)]
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    affine[:3, 3] = last[0], last[1], origin[2]
    image = nib.Nifti1Image(np.ascontiguousarray(values[::-1, ::-1]), affine)
    image.header.set_xyzt_units("mm", "sec")
    buffer = io.BytesIO()
    # No file name and no time in the gzip header.
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=1, mtime=0) as stream:
        stream.write(image.to_bytes())
    path.write_bytes(buffer.getvalue())
