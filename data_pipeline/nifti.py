"""Read NIfTI in one canonical orientation; write results back on the grid they came from.

Everything inside the project is RAS+ (nibabel's closest canonical orientation). What is needed to
return to the file's own grid travels in `Geometry`.
"""

import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np
from jaxtyping import Float32, Float64, UInt8
from nibabel import orientations
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from data_pipeline.conventions import CLASSES, LabelConvention
from data_pipeline.errors import InputError
from data_pipeline.files import file_atomically

_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_INTEGER_TOLERANCE = 1e-3  # labels stored as scaled integers come back as 0.99999


@dataclass(frozen=True, eq=False, kw_only=True)
class Geometry:
    """Where the voxels of a file are, in canonical orientation and on disk.

    Attributes:
      affine: canonical voxel indices to mm.
      spacing: mm per canonical axis.
      shape: canonical shape.
      source: the file.
      shape_on_disk: as stored, trailing singleton dimensions included.
      affine_on_disk: voxel indices on disk to mm.
      header_on_disk: nibabel's header of the file (qform and sform with their codes, units).
    """

    affine: Float64[np.ndarray, "4 4"]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    source: Path
    shape_on_disk: tuple[int, ...]
    affine_on_disk: Float64[np.ndarray, "4 4"]
    header_on_disk: nib.Nifti1Header


@dataclass(frozen=True, eq=False, kw_only=True)
class Volume(Geometry):
    """An image in canonical orientation."""

    data: Float32[np.ndarray, "d h w"]

    def geometry(self) -> Geometry:
        """The volume without its voxels."""
        return Geometry(**{name: getattr(self, name) for name in Geometry.__dataclass_fields__})


def read_image(path: Path) -> Volume:
    """One modality in canonical orientation, intensities as stored (scaling applied).

    Raises:
      InputError: the file is missing, truncated, not NIfTI, not one 3-D volume, contains NaN or
        Inf, or has the same value everywhere.
    """
    values, geometry = _read(path)
    with np.errstate(over="ignore"):  # beyond float32 becomes Inf, which is reported
        data = np.ascontiguousarray(values, np.float32)
    low, high = data.min(), data.max()  # NaN and Inf propagate into one of the two
    if not (np.isfinite(low) and np.isfinite(high)):
        count = np.count_nonzero(~np.isfinite(data))
        raise InputError(f"{path}: {count} voxels are NaN or Inf; repeat the preprocessing of this file")
    if low == high:
        found = "is empty: every voxel is 0" if low == 0 else f"is constant: every voxel is {low:g}"
        raise InputError(f"{path}: the image {found}; replace the file, or remove it to treat the modality as missing")
    return Volume(data=data, **vars(geometry))


def read_label(path: Path, convention: LabelConvention) -> tuple[UInt8[np.ndarray, "d h w"], Geometry]:
    """A label file as internal classes 0 to 3 in canonical orientation.

    Raises:
      InputError: as `read_image` for files that cannot be read, and for values that are not
        integers or that the convention does not know.
    """
    values, geometry = _read(path)
    rounded = np.rint(values)
    with np.errstate(invalid="ignore"):  # Inf − Inf; written so that NaN fails the comparison
        integer = np.abs(values - rounded) <= _INTEGER_TOLERANCE
    if not integer.all():
        raise InputError(
            f"{path}: found the label value {values[~integer][0]:g}, expected integers; "
            "a label map must be resampled with nearest-neighbour interpolation: use the original file"
        )
    unknown = [int(v) for v in np.unique(rounded) if int(v) not in convention.to_class]
    if unknown:
        raise InputError(
            f"{path}: found label {_listed(unknown)}, expected one of {_listed(sorted(convention.to_class))} "
            f"({convention.name}); pass --label-map (to train: --data.label_map) with what the values mean, as in "
            '"1=NCR,2=ED,4=ET"'
        )
    return convention.decode(np.ascontiguousarray(rounded, np.int32)), geometry


def write_label(path: Path, classes: UInt8[np.ndarray, "d h w"], like: Geometry, convention: LabelConvention) -> None:
    """Write internal classes on the original grid of `like`, in the values of `convention`, as uint8.

    Shape, affine, orientation, and the qform and sform codes are those of the source. Gzip'd by name.

    Raises:
      InputError: the folder cannot be written to; nothing is left behind.
      ValueError: the classes are not on the grid of `like` or not 0 to 3.
    """
    if classes.max() >= len(CLASSES):
        raise ValueError(f"classes must be 0 to {len(CLASSES) - 1}, got {classes.max()}")
    on_disk = _to_disk(convention.encode(classes), like).reshape(like.shape_on_disk)
    _write(path, on_disk, like, compression=6)


def write_probabilities(
    path: Path, probabilities: Float32[np.ndarray, "d h w k"], like: Geometry, channels: Sequence[str]
) -> None:
    """Write one volume per channel as 4-D float32 NIfTI on the original grid of `like`.

    The header's description names the channels. The values are gone through plane by plane.

    Raises:
      InputError: the folder cannot be written to; nothing is left behind.
      ValueError: the probabilities are not on the grid of `like`.
    """
    # Noise-like mantissas hardly compress: more effort costs minutes and saves a few per cent.
    _write(path, _to_disk(probabilities, like), like, compression=1, description=" ".join(channels))


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read(path: Path) -> tuple[np.ndarray, Geometry]:
    """Voxels [D, H, W] in canonical orientation, in the data type that the file implies."""
    image = _parse(path, _content(path))
    shape = image.shape
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise InputError(
            f"{path}: shape {shape}, expected one 3-D volume; split multi-channel files into one file per modality"
        )
    affine = np.asarray(image.affine, np.float64)
    if not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(f"{path}: the affine {affine[:3].tolist()} is not invertible; repair the header")
    try:
        values = np.asanyarray(image.dataobj).reshape(shape[:3])
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: the voxel data are incomplete ({_one_line(error)}); copy or download the file again"
        ) from error
    if values.dtype.kind not in "biuf":
        raise InputError(f"{path}: voxels of type {values.dtype}, expected real numbers; convert to a scalar image")
    orientation = orientations.io_orientation(affine)
    canonical = orientations.apply_orientation(values, orientation)
    canonical_affine = affine @ orientations.inv_ornt_aff(orientation, values.shape)
    spacing = np.linalg.norm(canonical_affine[:3, :3], axis=0)
    return canonical, Geometry(
        affine=canonical_affine,
        spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        shape=canonical.shape,
        source=Path(path),
        shape_on_disk=tuple(int(n) for n in shape),
        affine_on_disk=affine,
        header_on_disk=image.header,
    )


def _content(path: Path) -> bytes:
    """The bytes of the NIfTI stream; gzip is read to its end, so that its checksum is verified."""
    try:
        content = Path(path).read_bytes()
        if not content:
            raise InputError(f"{path}: the file has zero bytes; copy or download it again")
        return gzip.decompress(content) if Path(path).name.lower().endswith(".gz") else content
    except gzip.BadGzipFile as error:
        raise InputError(
            f"{path}: not a valid gzip file ({error}); "
            "copy or download it again, or rename it to .nii if it is not compressed"
        ) from error
    except (EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: the gzip data are truncated or damaged ({error}); copy or download the file again"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and permissions"
        ) from error


def _parse(path: Path, content: bytes) -> nib.Nifti1Image:
    # The format's first field is the size of its header, in either byte order. Looking first keeps nibabel from
    # logging its attempts to repair what was never NIfTI.
    sizes = {int.from_bytes(content[:4], order) for order in ("little", "big")}
    if not sizes & {348, 540}:
        raise InputError(f"{path}: not a NIfTI file (no NIfTI header); convert it, for example with dcm2niix")
    kind = nib.Nifti2Image if 540 in sizes else nib.Nifti1Image
    try:
        return kind.from_bytes(content)
    except (ImageFileError, HeaderDataError, WrapStructError, ValueError, OSError) as error:
        raise InputError(
            f"{path}: not a NIfTI file ({_one_line(error)}); convert it, for example with dcm2niix"
        ) from error


def _to_disk(values: np.ndarray, like: Geometry) -> np.ndarray:
    """From canonical orientation to the order of axes on disk; trailing axes stay."""
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
    header.extensions.clear()  # may carry what identifies the patient
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    # As an image of zeros that take no memory: it brings shape, affine and header into agreement.
    image = kind(np.broadcast_to(on_disk.dtype.type(0), on_disk.shape), like.affine_on_disk, header)
    image.update_header()
    with file_atomically(path) as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", compression, file, mtime=0) as stream:
                _stream(stream, on_disk, image.header)
        else:
            _stream(file, on_disk, image.header)


def _stream(file: IO[bytes] | gzip.GzipFile, on_disk: np.ndarray, header: nib.Nifti1Header) -> None:
    """Header and voxels, plane by plane: memory stays small for volumes of any size."""
    start = io.BytesIO()
    header.write_to(start)
    file.write(start.getvalue().ljust(header.get_data_offset(), b"\0"))
    for place in np.ndindex(*on_disk.shape[:1:-1]):
        plane = on_disk[(..., *place[::-1])]
        file.write(plane.astype(header.get_data_dtype(), copy=False).tobytes(order="F"))
