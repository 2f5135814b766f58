"""Read NIfTI in one canonical orientation.

Everything inside the project is RAS+ (nibabel's closest canonical orientation), so that no other code asks how a file
is oriented. `Geometry` carries the way back to the file's own grid, for `write_back`.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float32, Float64, Integer, UInt8
from nibabel import orientations

from data_pipeline.conventions import LabelConvention, Shape3, Spacing
from data_pipeline.errors import FileError
from data_pipeline.reading.stored import Stored, open_nifti, wrong_shape

_INTEGER_TOLERANCE = 1e-3  # labels stored as scaled integers come back as 0.99999


@dataclass(frozen=True, eq=False, kw_only=True)
class Geometry:
    """The positions of a file's voxels, in canonical orientation and on disk.

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
    spacing: Spacing
    shape: Shape3
    source: Path
    shape_on_disk: tuple[int, ...]
    affine_on_disk: Float64[np.ndarray, "4 4"]
    header_on_disk: nib.Nifti1Header


@dataclass(frozen=True, eq=False, kw_only=True)
class Volume(Geometry):
    """An image in canonical orientation.

    Attributes:
      data: intensities.
      range: smallest and largest of them.
      channel: index of the volume in a 4-D file; None for a 3-D file.
    """

    data: Float32[np.ndarray, "d h w"]
    range: tuple[float, float]
    channel: int | None = None

    @property
    def name(self) -> str:
        """The file's name, for display; with the volume if the file is 4-D."""
        return self.source.name if self.channel is None else f"{self.source.name} volume {self.channel}"

    def geometry(self) -> Geometry:
        """The volume without its voxels."""
        return Geometry(**{name: getattr(self, name) for name in Geometry.__dataclass_fields__})


def read_image(path: Path, channel: int | None = None) -> Volume:
    """One modality in canonical orientation, intensities as stored (scaling applied).

    Args:
      path: the file.
      channel: index of the volume in a 4-D file; None expects one 3-D volume.

    Raises:
      FileError: as `open_nifti` and `image_of`.
    """
    return image_of(open_nifti(path), channel)


def image_of(stored: Stored, channel: int | None = None) -> Volume:
    """One volume of a file as an image.

    Raises:
      FileError: the file is not one 3-D volume or has no such channel; the volume contains NaN or Inf, or has the same
        value everywhere.
    """
    values, geometry = _canonical(stored, channel)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 becomes Inf, which is reported
        data = np.ascontiguousarray(values, np.float32)
    low, high = float(data.min()), float(data.max())  # NaN and Inf propagate into one of the two
    which = "" if channel is None else f"volume {channel}: "
    if not (np.isfinite(low) and np.isfinite(high)):
        count = np.count_nonzero(~np.isfinite(data))
        raise FileError(stored.path, f"{which}{count} voxels are NaN or Inf", "repeat the preprocessing of this file")
    if low == high:
        found = "the image is empty: every voxel is 0" if low == 0 else f"the image is constant: every voxel is {low:g}"
        remedy = "replace the file, or remove it to treat the modality as missing"
        raise FileError(stored.path, f"{which}{found}", remedy)
    return Volume(data=data, range=(low, high), channel=channel, **vars(geometry))


def grid_of(stored: Stored, channel: int | None = None) -> Geometry:
    """The grid of one volume of a file.

    Raises:
      FileError: the file is not one 3-D volume, or has no such channel.
    """
    return _canonical(stored, channel)[1]


def read_label(path: Path, convention: LabelConvention) -> tuple[UInt8[np.ndarray, "d h w"], Geometry]:
    """A label file as internal classes, including the cavity, in canonical orientation.

    Raises:
      FileError: as `open_nifti`; also for values that are not integers or that the convention does not know.
    """
    values, geometry = _canonical(open_nifti(path), None)
    small, counts = _small_integers(path, values, convention)
    unknown = [int(value) for value in np.flatnonzero(counts) if int(value) not in convention.to_class]
    if unknown:
        raise _unknown_labels(path, unknown, convention)
    return np.ascontiguousarray(convention.decode(small)), geometry


def _small_integers(
    path: Path, values: np.ndarray, convention: LabelConvention
) -> tuple[UInt8[np.ndarray, "d h w"], Integer[np.ndarray, "256"]]:
    """Label values as bytes, with the number of voxels of each; no convention has larger values."""
    if values.dtype.kind == "f":
        values = _rounded(path, values)
    if values.dtype != np.uint8 and not (values.min() >= 0 and values.max() <= 255):
        raise _unknown_labels(
            path, [int(v) for v in np.unique(values) if int(v) not in convention.to_class], convention
        )
    small = values.astype(np.uint8, copy=False)
    return small, np.bincount(small.ravel(order="K"), minlength=256)


def _rounded(path: Path, values: np.ndarray) -> np.ndarray:
    rounded = np.rint(values)
    with np.errstate(invalid="ignore"):  # Inf − Inf; written so that NaN fails the comparison
        if np.isfinite(values.min()) and np.isfinite(values.max()) and np.array_equal(rounded, values):
            return rounded
        integer = np.abs(values - rounded) <= _INTEGER_TOLERANCE
    if not integer.all():
        raise FileError(
            path,
            f"found the label value {values[~integer][0]:g}, expected integers",
            "a label map must be resampled with nearest-neighbour interpolation: use the original file",
        )
    return rounded


def _unknown_labels(path: Path, unknown: list[int], convention: LabelConvention) -> FileError:
    remedy = 'pass --label-map with the meaning of the values, as in "1=NCR,2=ED,4=ET" (for training: --data.label_map)'
    if convention.name == "brats2023" and unknown == [4]:
        remedy = (
            "from 2024 on, 4 is the resection cavity: pass --layout brats2024 (for training: --data.layout brats2024) "
            "if this is such a data set, else --label-map (for training: --data.label_map)"
        )
    expected = _listed(sorted(convention.to_class))
    return FileError(path, f"found label {_listed(unknown)}, expected one of {expected} ({convention.name})", remedy)


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _canonical(stored: Stored, channel: int | None) -> tuple[np.ndarray, Geometry]:
    """A view of one volume in canonical orientation, in the file's own data type."""
    values, shape = _volume(stored, channel)
    orientation = orientations.io_orientation(stored.affine)
    canonical = orientations.apply_orientation(values, orientation)
    affine = stored.affine @ orientations.inv_ornt_aff(orientation, values.shape)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return canonical, Geometry(
        affine=affine,
        spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        shape=canonical.shape,
        source=stored.path,
        shape_on_disk=shape,
        affine_on_disk=stored.affine,
        header_on_disk=stored.header,
    )


def _volume(stored: Stored, channel: int | None) -> tuple[np.ndarray, tuple[int, ...]]:
    """One volume of a file, and the shape of a file that holds this volume alone."""
    shape = tuple(int(n) for n in stored.values.shape)
    if channel is None:
        if any(n != 1 for n in shape[3:]):
            raise wrong_shape(stored.path, shape)
        return stored.values.reshape(shape[:3], order="A"), shape
    if len(shape) < 4 or any(n != 1 for n in shape[4:]) or not channel < shape[3]:
        raise FileError(
            stored.path,
            f"shape {shape}, expected a 4-D file with a volume {channel}",
            "compare the file with the channels of dataset.json",
        )
    return stored.values.reshape(shape[:4], order="A")[..., channel], shape[:3]
