"""What may be wrong with the images of a case, and what to do about it.

Errors are for what would make a result meaningless; notes are for what was repaired or recognised
and the user should know.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from data_pipeline.conventions import Modality
from data_pipeline.errors import InputError
from data_pipeline.nifti import Geometry, Volume

AFFINE_TOLERANCE = 1e-3  # mm; registered images agree to rounding
SPACING_TOLERANCE = 0.05  # mm around the 1 mm of BraTS
SKULL_STRIPPED_FRACTION = 0.6  # a brain fills about 18 % of BraTS's volume and half of its own bounding box
BORDER_SHARE = 0.5  # of the outermost voxels must share a value for it to be the background
VOLUME_SHARE = 0.05  # the same for the whole volume, where the image is cropped to the head
# Interpolation leaves a few per cent of negative voxels; of a z-scored image about half are.
NORMALISED_NEGATIVE_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class CheckedImage:
    """An image ready to be normalised: clipped where needed, with its own mask of non-background voxels."""

    data: Float32[np.ndarray, "d h w"]
    foreground: Bool[np.ndarray, "d h w"]
    notes: tuple[str, ...]


def background_value(data: Float32[np.ndarray, "d h w"]) -> float:
    """The constant around the brain: 0 in most data sets, another one in images that are already z-scored.

    The most frequent value of the outermost voxels; where they share none (cropped to the head), the
    most frequent of the volume; where that is rare too (no background at all), 0.
    """
    faces = [data.take(end, axis).ravel() for axis in range(3) for end in (0, -1)]
    for voxels, share in ((np.concatenate(faces), BORDER_SHARE), (data.ravel(), VOLUME_SHARE)):
        values, counts = np.unique(voxels, return_counts=True)
        if counts.max() >= share * voxels.size:
            return float(values[counts.argmax()])
    return 0.0


def check_image(volume: Volume) -> CheckedImage:
    """Find the background of one modality, clip negative voxels, and note what is unusual."""
    data, name = volume.data, volume.source.name
    notes: list[str] = []
    background = background_value(data)
    foreground = _differs(data, background)
    if background != 0:
        notes.append(f"{name}: the background is the constant {background:.4g}, the image is already normalised")
    elif (negative := np.count_nonzero(data < 0)) > NORMALISED_NEGATIVE_SHARE * np.count_nonzero(foreground):
        notes.append(f"{name}: {negative} voxels are negative, the image is already normalised with background 0")
    elif negative:
        notes.append(f"{name}: {negative} negative voxels clipped to 0")
        data = np.maximum(data, 0)
        foreground = _differs(data, 0)
    if (share := foreground.mean()) > SKULL_STRIPPED_FRACTION:
        notes.append(f"{name}: {share:.0%} of the voxels are not background, is the skull stripped?")
    if max(abs(s - 1) for s in volume.spacing) > SPACING_TOLERANCE:
        spacing = " x ".join(f"{s:.3g}" for s in volume.spacing)
        notes.append(f"{name}: spacing {spacing} mm, not the 1 mm of BraTS")
    return CheckedImage(data, foreground, tuple(notes))


def _differs(data: Float32[np.ndarray, "d h w"], background: float) -> Bool[np.ndarray, "d h w"]:
    # Interpolated float images wobble around a background that is not exactly representable.
    tolerance = 1e-6 * (float(data.max()) - float(data.min()))
    return np.abs(data - np.float32(background)) > tolerance


def check_same_grid(first: Geometry, other: Geometry, *, ignore_affine: bool = False) -> tuple[str, ...]:
    """Two files of a case must describe the same voxels.

    Raises:
      InputError: the shapes differ, or the affines by more than 0.001 unless `ignore_affine`, which
        makes a note of it.
    """
    if first.shape != other.shape:
        raise InputError(
            f"{other.source}: shape {other.shape} differs from {first.shape} of {first.source.name}; "
            "register and resample the case's files to one grid"
        )
    if np.allclose(first.affine, other.affine, rtol=0, atol=AFFINE_TOLERANCE):
        return ()
    difference = (
        f"{other.source}: affine {_rows(other)} differs from {_rows(first)} of {first.source.name} "
        f"by more than {AFFINE_TOLERANCE}"
    )
    if not ignore_affine:
        raise InputError(
            f"{difference}; register the case's files, or pass --ignore-affine (to train: --data.ignore_affine true) "
            "if only the header is wrong"
        )
    return (f"{difference}, ignored as asked",)


def _rows(geometry: Geometry) -> str:
    rows = ([f"{value:.6g}" for value in row] for row in geometry.affine[:3])
    return "[" + "; ".join(" ".join(row) for row in rows) + "]"


def check_distinct(volumes: Mapping[Modality, Volume]) -> tuple[str, ...]:
    """Two modalities with the same voxels are one file under two names."""
    return tuple(
        f"{volumes[a].source.name} and {volumes[b].source.name} are identical: is one a copy under a wrong name?"
        for a, b in combinations(volumes, 2)
        if np.array_equal(volumes[a].data, volumes[b].data)
    )


def check_label(
    classes: UInt8[np.ndarray, "d h w"],
    crop: tuple[slice, slice, slice],
    mask: Bool[np.ndarray, "d2 h2 w2"],
    name: str,
) -> tuple[str, ...]:
    """Notes on a label: no tumour at all, or tumour where no image shows brain (`mask`, inside `crop`)."""
    tumour = np.count_nonzero(classes)
    if tumour == 0:
        return (f"{name}: no tumour is labelled",)
    outside = tumour - np.count_nonzero(classes[crop][mask])
    return (f"{name}: {outside} tumour voxels are outside the brain mask and not trained on",) if outside else ()
