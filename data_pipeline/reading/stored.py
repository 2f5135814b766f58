"""A NIfTI file from disk to voxels: every byte is read, and files that cannot be an image of a head are refused."""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float64

from data_pipeline.errors import FileError, one_line
from data_pipeline.reading import mending

_CONVERT = "convert it, for example with dcm2niix"
SMALLEST_EDGE = 0.01  # mm; a header in metres, or torn, has smaller ones
LARGEST_EXTENT = 2000.0  # mm; a scanner's field of view ends at 500


@dataclass(frozen=True, eq=False)
class Stored:
    """A file, read and decompressed once for all of its volumes.

    Attributes:
      path: the file.
      values: voxels as on disk, in the data type that the file implies.
      affine: voxel indices on disk to mm.
      header: nibabel's.
    """

    path: Path
    values: np.ndarray
    affine: Float64[np.ndarray, "4 4"]
    header: nib.Nifti1Header


def open_nifti(path: Path) -> Stored:
    """Every byte of a file, with its checksum verified.

    Raises:
      FileError: the file is missing, truncated or not NIfTI; or as `check_placement` and `as_stored`.
    """
    path = Path(path)
    image = _parse(path, _content(path))
    # A grid that cannot be used is reported before its voxels are unpacked.
    affine = check_placement(path, image.shape, image.affine)
    return as_stored(path, _voxels(path, image), affine, image.header)


def check_placement(path: Path, shape: tuple[int, ...], affine: object) -> Float64[np.ndarray, "4 4"]:
    """The affine of an image as float64, if it and the shape can be those of a head.

    Raises:
      FileError: fewer than three axes, an affine that is not an invertible matrix, or an extent that no head has.
    """
    if len(shape) < 3 or min(shape) < 1:
        raise wrong_shape(path, shape)
    matrix = np.asarray(affine, np.float64)
    if not np.all(np.isfinite(matrix)) or not abs(np.linalg.det(matrix[:3, :3])) >= 1e-9:
        raise FileError(path, f"the affine {matrix[:3].tolist()} is not invertible", "repair the header")
    _check_extent(path, matrix, shape)
    return matrix


def as_stored(path: Path, values: np.ndarray, affine: Float64[np.ndarray, "4 4"], header: nib.Nifti1Header) -> Stored:
    """An image whose voxels are real numbers.

    Raises:
      FileError: they are not.
    """
    if values.dtype.kind not in "biuf":
        raise FileError(path, f"voxels of type {values.dtype}, expected real numbers", "convert to a scalar image")
    return Stored(path, values, affine, header)


def wrong_shape(path: Path, shape: tuple[int, ...]) -> FileError:
    """The error for a file that is not one 3-D volume."""
    remedy = "split multi-channel files into one file per modality"
    command = mending.split(path) if len(shape) == 4 and shape[3] > 1 else None
    return FileError(path, f"shape {shape}, expected one 3-D volume", remedy, command)


def _check_extent(path: Path, affine: Float64[np.ndarray, "4 4"], shape: tuple[int, ...]) -> None:
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if edges.min() < SMALLEST_EDGE or (edges * shape[:3]).max() > LARGEST_EXTENT:
        spacing = " x ".join(f"{edge:.4g}" for edge in edges)
        raise FileError(
            path,
            f"{' x '.join(map(str, shape[:3]))} voxels of {spacing} mm are not an image of a head",
            "repair the header, whose unit must be mm",
        )


def _voxels(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    # A damaged header may claim terabytes: compare with the bytes that exist before allocating memory.
    proxy = image.dataobj
    try:
        available = len(proxy.file_like.getbuffer()) - proxy.offset
        needed = math.prod(image.shape) * proxy.dtype.itemsize
        if available < needed:
            raise OSError(f"expected {needed} bytes, got {max(available, 0)}")
        with np.errstate(all="ignore"):
            return np.asanyarray(proxy)
    except Exception as error:  # whatever nibabel trips over is the file's fault
        raise FileError(
            path, f"the voxel data are incomplete ({one_line(error)})", "copy or download the file again"
        ) from error


def _content(path: Path) -> bytes:
    """The bytes of the NIfTI stream; gzip is read to its end, so that its checksum is verified."""
    try:
        content = path.read_bytes()
        if not content:
            raise FileError(path, "the file has zero bytes", "copy or download it again")
        if path.name.lower().endswith(".gz") and _is_nifti(content):
            remedy, plain = "rename it to .nii", path.name[: -len(".gz")]
            raise FileError(
                path, "the file is not compressed, although its name says so", remedy, mending.rename(path, plain)
            )
        return gzip.decompress(content) if path.name.lower().endswith(".gz") else content
    except gzip.BadGzipFile as error:
        raise FileError(
            path,
            f"not a valid gzip file ({error})",
            "copy or download it again",
        ) from error
    except (EOFError, zlib.error) as error:
        raise FileError(
            path, f"the gzip data are truncated or damaged ({error})", "copy or download the file again"
        ) from error
    except OSError as error:
        raise FileError(
            path, f"cannot be read ({error.strerror or error})", "check the path and permissions"
        ) from error


def _parse(path: Path, content: bytes) -> nib.Nifti1Image:
    # Looking first keeps nibabel from logging its attempts to repair a file that never was NIfTI.
    if content[:2] == b"\x1f\x8b":
        command = mending.rename(path, path.name + ".gz")
        found = "the file is compressed with gzip, but its name does not end in .gz"
        raise FileError(path, found, "rename it to .nii.gz", command)
    if not _is_nifti(content):
        raise FileError(path, "not a NIfTI file (no NIfTI header)", _CONVERT)
    kind = nib.Nifti2Image if 540 in _header_sizes(content) else nib.Nifti1Image
    try:
        return kind.from_bytes(content)
    except Exception as error:  # whatever nibabel trips over is the file's fault
        raise FileError(path, f"not a NIfTI file ({one_line(error)})", _CONVERT) from error


def _is_nifti(content: bytes) -> bool:
    return bool(_header_sizes(content) & {348, 540})


def _header_sizes(content: bytes) -> set[int]:
    """The format's first field is the size of its header, in either byte order."""
    return {int.from_bytes(content[:4], order) for order in ("little", "big")}
