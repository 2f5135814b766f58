"""Checks of one file of a case, or of two of them together."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from nibabel.spatialimages import HeaderDataError

from data_pipeline.conventions import CLASSES, Slices3
from data_pipeline.reading import mending
from data_pipeline.reading.findings import Finding, Refusal
from data_pipeline.reading.nifti import Geometry, Volume

AFFINE_TOLERANCE = 1e-3  # mm; registered images agree to rounding
SPACING_TOLERANCE = 0.05  # mm around the 1 mm of BraTS
SKULL_STRIPPED_FRACTION = 0.6  # a brain fills about 18 % of BraTS's volume and half of its own bounding box
SMALLEST_BRAIN = 0.4  # litres; tissues of a smaller fragment are not compared, because it has too few of them
LARGEST_BRAIN = 2.5  # litres; an adult brain with its CSF has 1.0 to 1.9
BORDER_SHARE = 0.5  # share of the outermost voxels with one value for it to be the background
VOLUME_SHARE = 0.05  # the same for the whole volume, if the image is cropped to the head
# Interpolation makes a few per cent of the voxels negative, z-scoring about half of them.
NORMALISED_NEGATIVE_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class CheckedImage:
    """An image ready to be normalised.

    Attributes:
      data: clipped where needed.
      foreground: voxels that are not background.
      skull: there are more of them than a brain can have.
      findings: everything unusual.
    """

    data: Float32[np.ndarray, "d h w"]
    foreground: Bool[np.ndarray, "d h w"]
    skull: bool
    findings: tuple[Finding, ...]


def background_value(data: Float32[np.ndarray, "d h w"]) -> float:
    """The constant around the brain: 0 in most data sets, another one in images that are already z-scored.

    The most frequent value of the outermost voxels; if they share none (cropped to the head), the most frequent of the
    volume; if that is rare too (no background at all), 0.
    """
    border = np.concatenate([data.take(end, axis).ravel() for axis in range(3) for end in (0, -1)])
    # Mostly one value fills nearly all of the border, and nothing has to be sorted.
    if np.count_nonzero(border == border[0]) > 0.5 * border.size:
        return float(border[0])
    for voxels, share in ((border, BORDER_SHARE), (data.ravel(), VOLUME_SHARE)):
        values, counts = np.unique(voxels, return_counts=True)
        if counts.max() >= share * voxels.size:
            return float(values[counts.argmax()])
    return 0.0


def check_image(volume: Volume) -> CheckedImage:
    """Find the background of one modality, clip negative voxels, and report everything unusual."""
    data, found = volume.data, []
    which = "" if volume.channel is None else f"volume {volume.channel}: "
    lowest, highest = volume.range
    background = background_value(data)
    foreground = _differs(data, background, highest - lowest)
    count = np.count_nonzero(foreground)
    negative = np.count_nonzero(data < 0) if lowest < 0 else 0
    if background != 0:
        found.append(f"the background is the constant {background:.4g}: the image is already normalised")
    elif negative > NORMALISED_NEGATIVE_SHARE * count:
        found.append(f"{negative} voxels are negative: the image is already normalised, with background 0")
    elif negative:
        found.append(f"{negative} negative voxels clipped to 0")
        data = np.maximum(data, 0)
        foreground = _differs(data, 0, highest)
        count = np.count_nonzero(foreground)
    notes = [Finding("note", volume.source, which + text, "") for text in found]
    skull = _skull(volume, int(count))
    return CheckedImage(data, foreground, skull is not None, (*notes, *([skull] if skull else [])))


def _differs(data: Float32[np.ndarray, "d h w"], background: float, span: float) -> Bool[np.ndarray, "d h w"]:
    # Interpolated float images wobble around a background that is not exactly representable.
    tolerance = np.float32(1e-6 * span)
    if background == 0:
        return (data > tolerance) | (data < -tolerance)
    distance = data - np.float32(background)
    return np.abs(distance, out=distance) > tolerance


def _skull(volume: Volume, foreground: int) -> Finding | None:
    share = foreground / volume.data.size
    litres = foreground * float(np.prod(volume.spacing)) * 1e-6
    if share > SKULL_STRIPPED_FRACTION:
        found = f"{share:.0%} of the voxels are not background: is the skull stripped?"
    elif litres > LARGEST_BRAIN:
        found = f"{litres:.1f} litres are not background, more than a brain has: is the skull stripped?"
    else:
        return None
    which = "" if volume.channel is None else f"volume {volume.channel}: "
    command = None if volume.channel is not None else mending.strip(volume.source)
    remedy = "strip it, for example with mri_synthstrip or HD-BET"
    return Finding("warning", volume.source, which + found, remedy, command)


def check_spacing(geometry: Geometry) -> list[Finding]:
    """Warn of a spacing other than 1 mm, on which networks of this field are trained."""
    if max(abs(s - 1) for s in geometry.spacing) <= SPACING_TOLERANCE:
        return []
    return [
        Finding(
            "warning",
            geometry.source,
            f"spacing {' x '.join(f'{s:.3g}' for s in geometry.spacing)} mm, not the 1 mm of BraTS",
            "the case will be resampled to the run's spacing, which cannot restore detail that the file lacks",
        )
    ]


def check_header(geometry: Geometry) -> list[Finding]:
    """Warn if the fields of a header that place the voxels disagree; nibabel prefers the sform."""
    header = geometry.header_on_disk
    used = np.linalg.norm(geometry.affine_on_disk[:3, :3], axis=0)
    edges = np.asarray(header["pixdim"][1:4], np.float64)
    try:
        with np.errstate(all="ignore"):
            sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError) as error:
        found = f"the qform cannot be read ({error}); the sform is used"
        return [Finding("warning", geometry.source, found, "repair the header", mending.agree(geometry.source))]
    if sform is not None and qform is not None and not np.allclose(sform, qform, rtol=0, atol=AFFINE_TOLERANCE):
        found = f"sform {_rows(sform)} and qform {_rows(qform)} differ by more than {AFFINE_TOLERANCE} mm"
    elif not np.allclose(edges, used, rtol=0, atol=AFFINE_TOLERANCE):
        found = f"pixdim gives {_edges(edges)} mm per voxel, the affine {_edges(used)} mm"
    else:
        return []
    remedy = "the sform is used here; make them agree, because other programs may use the other"
    return [Finding("warning", geometry.source, found, remedy, mending.agree(geometry.source))]


def _edges(values: np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def check_same_grid(first: Geometry, other: Geometry, *, ignore_affine: bool = False) -> list[Finding]:
    """Two files of a case must describe the same voxels.

    Raises:
      InputError: the shapes differ, or the affines differ by more than 0.001 mm; with `ignore_affine` the latter is a
        warning.
    """
    findings = compare_grids(first, other, ignore_affine=ignore_affine)
    if any(finding.severity == "error" for finding in findings):
        raise Refusal(findings)
    return findings


def compare_grids(
    first: Geometry, other: Geometry, *, ignore_affine: bool = False, label: bool = False
) -> list[Finding]:
    """An error if two files of a case do not describe the same voxels; a warning with `ignore_affine`.

    Args:
      first: the grid that counts.
      other: of another file.
      ignore_affine: equal shapes are enough.
      label: the other file is a label.
    """
    command = mending.regrid(other.source, first.source, label=label)
    if first.shape != other.shape:
        found = f"shape {other.shape} differs from {first.shape} of {first.source.name}"
        return [Finding("error", other.source, found, "register and resample the case's files to one grid", command)]
    if np.allclose(first.affine, other.affine, rtol=0, atol=AFFINE_TOLERANCE):
        return []
    found = (
        f"affine {_rows(other.affine)} differs from {_rows(first.affine)} of {first.source.name} "
        f"by more than {AFFINE_TOLERANCE}"
    )
    if ignore_affine:
        return [Finding("warning", other.source, found, "ignored as requested")]
    remedy = (
        "register the case's files, or pass --ignore-affine (for training: --data.ignore_affine true) "
        "if only the header is wrong"
    )
    return [Finding("error", other.source, found, remedy, command)]


def _rows(affine: np.ndarray) -> str:
    rows = ([f"{value:.6g}" for value in row] for row in affine[:3])
    return "[" + "; ".join(" ".join(row) for row in rows) + "]"


def check_label(
    classes: UInt8[np.ndarray, "d h w"],
    crop: Slices3,
    mask: Bool[np.ndarray, "d2 h2 w2"],
    file: Path,
) -> list[Finding]:
    """Report a label without tumour, or with tumour where no image shows brain (`mask`, inside `crop`)."""
    tumour = (classes > 0) & (classes < len(CLASSES))
    count = np.count_nonzero(tumour)
    if count == 0:
        return [Finding("warning", file, "no tumour is labelled", "leave the case out if it should have one")]
    outside = count - np.count_nonzero(tumour[crop] & mask)
    if not outside:
        return []
    found = f"{outside} tumour voxels lie outside the brain mask and are not trained on"
    return [Finding("note", file, found, "compare the label with the images if there are many")]
