"""One case in memory, ready for a network: cropped to the brain, normalised, resampled; and the way back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from data_pipeline.case import Case
from data_pipeline.conventions import MODALITIES, OUTSIDE_BRAIN, Modality, Slices3, without_cavity
from data_pipeline.preprocessing.resample import (
    Spacing,
    as_spacing,
    resample_image,
    resample_label,
    resample_linear_rows,
    resample_mask,
    resampled_shape,
    slice_axis,
)
from data_pipeline.preprocessing.scratch import slabs, zeros
from data_pipeline.reading.findings import Finding
from data_pipeline.reading.nifti import Geometry
from data_pipeline.reading.scan import OpenFile, read_scan
from data_pipeline.reading.stored import open_nifti


@dataclass(frozen=True, eq=False)
class Subject:
    """One case in memory.

    Attributes:
      case: its files.
      images: all of `MODALITIES`, in that order; z-scored per modality inside `mask`, 0 outside it, and 0 everywhere
        for a modality that is absent or was not requested.
      mask: the brain: union of the read modalities' non-background voxels, holes filled.
      label: internal classes, background in the resection cavity, `OUTSIDE_BRAIN` outside `mask`; None without a
        label file.
      modalities: those that were read, in channel order.
      spacing: mm; the requested one, or the file's own where they agree within 0.001 mm.
      crop: the bounding box of the mask in the canonical original volume, before resampling.
      reference: the grid of the first modality read, for writing back.
      findings: repairs and suspicions; no errors.
    """

    case: Case
    images: Float32[np.ndarray, "d h w c"]
    mask: Bool[np.ndarray, "d h w"]
    label: UInt8[np.ndarray, "d h w"] | None
    modalities: tuple[Modality, ...]
    spacing: Spacing
    crop: Slices3
    reference: Geometry
    findings: tuple[Finding, ...]


def load_subject(
    case: Case,
    spacing: float | Sequence[float],
    modalities: Sequence[Modality] = MODALITIES,
    *,
    ignore_affine: bool = False,
    refuse_raw: bool = False,
    open_file: OpenFile = open_nifti,
) -> Subject:
    """Read, check, crop, normalise and resample one case (nnU-Net's preprocessing with one mask per case).

    Args:
      case: from `layouts.find.find_cases`.
      spacing: target in mm, one number for all axes or one per canonical axis.
      modalities: only these are read, and only they make the mask; the others' channels are 0.
      ignore_affine: take files whose affines differ to lie on one grid all the same.
      refuse_raw: a raw clinical scan is an error, not a warning.
      open_file: opens an image; one that remembers lets several readings of a case share its files.

    Raises:
      InputError: none of `modalities` has a file, or files cannot be used: all errors, one per line (see
        `reading.nifti` and `reading.checks`).
    """
    target = as_spacing(spacing)
    scan = read_scan(
        case, modalities, ignore_affine=ignore_affine, label=True, refuse_raw=refuse_raw, open_file=open_file
    )
    reference, crop, mask = scan.reference, scan.crop, scan.mask
    present = tuple(scan.images)

    shape = resampled_shape(mask.shape, reference.spacing, target)
    coarse_axis = slice_axis(reference.spacing, target)
    small_mask = resample_mask(mask, shape, coarse_axis)
    images = zeros((*shape, len(MODALITIES)))
    for m in present:
        normal = resample_image(_z_score(scan.images.pop(m), mask), shape, coarse_axis)
        images[..., MODALITIES.index(m)] = np.where(small_mask, normal, 0)
    label = None
    if scan.classes is not None:
        classes = without_cavity(scan.classes[crop])
        label = np.where(small_mask, resample_label(classes, shape, coarse_axis), np.uint8(OUTSIDE_BRAIN))
    same = shape == mask.shape
    return Subject(
        case, images, small_mask, label, present, reference.spacing if same else target, crop, reference, scan.findings
    )


def to_original_grid(
    values: Float32[np.ndarray, "d h w k"], subject: Subject, outside: Sequence[float]
) -> Iterator[tuple[slice, Float32[np.ndarray, "rows full_h full_w k"]]]:
    """Logits from the subject's grid to the canonical original volume, slab by slab.

    Args:
      values: on the subject's grid; linear interpolation inside the crop.
      subject: the one they were computed for.
      outside: the value of each channel outside the crop.

    Yields:
      Rows of the volume's first axis, first to last, and their values.

    Raises:
      ValueError: `values` are not on the subject's grid.
    """
    if values.shape[:3] != subject.mask.shape:
        raise ValueError(f"values of shape {values.shape} are not on the subject's grid {subject.mask.shape}")
    crop, coarse_axis = subject.crop, slice_axis(subject.spacing, subject.reference.spacing)
    d, h, w = (s.stop - s.start for s in crop)
    full = *subject.reference.shape, values.shape[3]
    for rows in slabs(full):
        slab = np.empty((rows.stop - rows.start, *full[1:]), np.float32)
        slab[:] = outside
        inside = slice(max(rows.start, crop[0].start), min(rows.stop, crop[0].stop))
        if inside.start < inside.stop:
            in_slab = slice(inside.start - rows.start, inside.stop - rows.start)
            in_crop = slice(inside.start - crop[0].start, inside.stop - crop[0].start)
            slab[in_slab, crop[1], crop[2]] = resample_linear_rows(values, (d, h, w), in_crop, coarse_axis)
        yield rows, slab


def _z_score(image: Float32[np.ndarray, "d h w"], mask: Bool[np.ndarray, "d h w"]) -> Float32[np.ndarray, "d h w"]:
    """Mean 0 and standard deviation 1 inside the mask, 0 outside."""
    inside = image[mask]
    mean, deviation = np.float32(inside.mean(dtype=np.float64)), np.float32(inside.std(dtype=np.float64))
    # A single bright value over a whole crop leaves no spread: nnU-Net's floor keeps the result finite.
    return np.where(mask, (image - mean) / max(deviation, np.float32(1e-8)), np.float32(0))
