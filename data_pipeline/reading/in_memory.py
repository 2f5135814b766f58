"""Images that are in memory already, opened as files are: a nibabel image, or an array with an affine.

They pass the same checks as files. A name takes the place of the path in messages.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from data_pipeline.errors import FileError, one_line
from data_pipeline.reading.stored import Stored, as_stored, check_placement


def open_image(name: Path, image: SpatialImage) -> Stored:
    """A nibabel image of any format; results are written as NIfTI with its affine.

    Raises:
      FileError: its voxels cannot be read, or as `open_array`.
    """
    try:
        values = np.asanyarray(image.dataobj)
    except Exception as error:  # whatever nibabel trips over is the file's fault
        raise FileError(
            name, f"its voxels cannot be read ({one_line(error)})", "copy or download the file again"
        ) from error
    header = image.header if isinstance(image.header, nib.Nifti1Header) else None
    return _open(name, values, image.affine, header)


def open_array(name: Path, values: np.ndarray, affine: np.ndarray) -> Stored:
    """An array whose axes the affine takes to mm in RAS+, as those of `nibabel.load(path)` are.

    Args:
      name: of the image, for messages.
      values: [X, Y, Z]; not changed.
      affine: voxel indices to mm, [4, 4].

    Raises:
      FileError: as `check_placement` and `as_stored`.
    """
    return _open(name, values, affine, None)


def _open(name: Path, values: np.ndarray, affine: object, header: nib.Nifti1Header | None) -> Stored:
    shape = np.asarray(affine).shape
    if shape != (4, 4):
        raise FileError(name, f"an affine of shape {shape}, expected (4, 4)", "give one that takes voxels to mm")
    matrix = check_placement(name, values.shape, affine)
    if header is None:
        # Zeros that take no memory: only their shape and place go into the header.
        header = nib.Nifti1Image(np.broadcast_to(np.uint8(0), values.shape[:3]), matrix).header
    return as_stored(name, values, matrix, header)
