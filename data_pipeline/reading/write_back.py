"""Write results as NIfTI, on the grid of the file that they were computed from."""

import gzip
import io
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float32, UInt8
from nibabel import orientations

from data_pipeline.conventions import CLASSES, LabelConvention
from data_pipeline.files import file_atomically
from data_pipeline.reading.nifti import Geometry

_RAS = np.array([[0, 1], [1, 1], [2, 1]])


def write_label(path: Path, classes: UInt8[np.ndarray, "d h w"], like: Geometry, convention: LabelConvention) -> None:
    """Write internal classes on the original grid of `like`, in the values of `convention`, as uint8.

    Shape, affine, orientation, and the qform and sform codes are the source's. Names in .gz are compressed.

    Raises:
      InputError: the folder cannot be written to; nothing is left behind.
      ValueError: the classes are not on the grid of `like` or not 0 to 3.
    """
    write_label_as_stored(path, to_stored_axes(classes, like), like, convention)


def write_label_as_stored(
    path: Path, classes: UInt8[np.ndarray, "i j k"], like: Geometry, convention: LabelConvention
) -> None:
    """`write_label` of classes in the order of axes that `like` has on disk.

    Raises:
      InputError: the folder cannot be written to; nothing is left behind.
      ValueError: the classes are not on the grid of `like` or not 0 to 3.
    """
    if classes.max() >= len(CLASSES):
        raise ValueError(f"classes must be 0 to {len(CLASSES) - 1}, got {classes.max()}")
    _write(path, convention.encode(classes).reshape(like.shape_on_disk), like, compression=6)


def write_probabilities(
    path: Path, probabilities: Float32[np.ndarray, "d h w k"], like: Geometry, channels: Sequence[str]
) -> None:
    """Write one volume per channel as 4-D float32 NIfTI on the original grid of `like`.

    The header's description names the channels. Values are written plane by plane, to save memory.

    Raises:
      InputError: the folder cannot be written to; nothing is left behind.
      ValueError: the probabilities are not on the grid of `like`.
    """
    # Noise-like mantissas hardly compress: a higher level costs minutes and saves a few per cent.
    _write(path, to_stored_axes(probabilities, like), like, compression=1, description=" ".join(channels))


def to_stored_axes(values: np.ndarray, like: Geometry) -> np.ndarray:
    """A view of canonical values [D, H, W, ...] in the order and direction of axes that `like` has on disk.

    Raises:
      ValueError: the values are not on the grid of `like`.
    """
    if values.shape[:3] != like.shape:
        raise ValueError(f"values of shape {values.shape} are not on the grid {like.shape} of {like.source}")
    orientation = orientations.ornt_transform(_RAS, orientations.io_orientation(like.affine_on_disk))
    return orientations.apply_orientation(values, orientation)


def _write(path: Path, on_disk: np.ndarray, like: Geometry, *, compression: int, description: str = "") -> None:
    header = like.header_on_disk.copy()
    header.set_data_dtype(on_disk.dtype)
    header.set_slope_inter(1, 0)
    header.set_intent("none")
    header["cal_min"] = header["cal_max"] = 0  # the image's display window would hide the labels
    if description:
        header["descrip"] = description.encode()
    header.extensions.clear()  # they may identify the patient
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    # nibabel brings shape, affine and header into agreement for an image, here one of zeros that takes no memory.
    image = kind(np.broadcast_to(on_disk.dtype.type(0), on_disk.shape), like.affine_on_disk, header)
    image.update_header()
    with file_atomically(path) as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", compression, file, mtime=0) as stream:
                _stream(stream, on_disk, image.header)
        else:
            _stream(file, on_disk, image.header)


def _stream(file: io.BufferedIOBase, on_disk: np.ndarray, header: nib.Nifti1Header) -> None:
    """Header and voxels, plane by plane: memory stays small for volumes of any size."""
    start = io.BytesIO()
    header.write_to(start)
    file.write(start.getvalue().ljust(header.get_data_offset(), b"\0"))
    for place in np.ndindex(*on_disk.shape[:1:-1]):
        plane = on_disk[(..., *place[::-1])]
        file.write(plane.astype(header.get_data_dtype(), copy=False).tobytes(order="F"))
