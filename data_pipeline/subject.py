"""One case in memory, ready for a network: cropped to the brain, normalised, resampled, and the way back."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

from data_pipeline.checks import check_distinct, check_image, check_label, check_same_grid
from data_pipeline.conventions import MODALITIES, OUTSIDE_BRAIN, Modality
from data_pipeline.errors import InputError
from data_pipeline.formats import Case
from data_pipeline.nifti import Geometry, read_image, read_label
from data_pipeline.resample import (
    Spacing,
    as_spacing,
    resample_image,
    resample_label,
    resample_linear_rows,
    resample_mask,
    resampled_shape,
    slice_axis,
)
from data_pipeline.storage import slabs, zeros

Crop = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Subject:
    """One case in memory.

    Attributes:
      case: where it came from.
      images: all of `MODALITIES`, in that order; z-scored per modality inside `mask`, 0 outside it,
        and 0 everywhere for a modality that is absent or was not asked for.
      mask: the brain: union of the read modalities' non-background voxels, holes filled.
      label: internal classes, `OUTSIDE_BRAIN` outside `mask`; None without a label file.
      modalities: those that were read, in channel order.
      spacing: mm; what was asked for, or the file's own where they agree within 0.001 mm.
      crop: the bounding box of the mask in the canonical original volume, before resampling.
      reference: the grid of the first modality read, for writing back.
      notes: what was clipped, recognised or looks suspicious; for display.
    """

    case: Case
    images: Float32[np.ndarray, "d h w c"]
    mask: Bool[np.ndarray, "d h w"]
    label: UInt8[np.ndarray, "d h w"] | None
    modalities: tuple[Modality, ...]
    spacing: Spacing
    crop: Crop
    reference: Geometry
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Scan:
    """The modalities of one case as their files have them, cropped to the brain.

    Attributes:
      images: by modality, in channel order; intensities as stored, but for repairs that `notes` name.
      mask: as `Subject.mask`, on the files' own grid.
      crop: as `Subject.crop`.
      reference: as `Subject.reference`.
      notes: as `Subject.notes`.
    """

    images: dict[Modality, Float32[np.ndarray, "d h w"]]
    mask: Bool[np.ndarray, "d h w"]
    crop: Crop
    reference: Geometry
    notes: tuple[str, ...]


def read_scan(case: Case, modalities: Sequence[Modality] = MODALITIES, *, ignore_affine: bool = False) -> Scan:
    """Read and check the modalities of a case and crop them to their union of non-background voxels.

    Args:
      case: from `formats.find_cases`.
      modalities: only these are read, and only they make the mask.
      ignore_affine: files whose affines differ are taken to be on one grid all the same.

    Raises:
      InputError: as `load_subject`.
    """
    present = tuple(m for m in MODALITIES if m in modalities and m in case.images)
    if not present:
        raise InputError(
            f"{case.id}: none of the modalities {', '.join(modalities)} has a file "
            f"(found {', '.join(case.images) or 'none'}); add one or choose other modalities"
        )
    volumes = {m: read_image(case.images[m]) for m in present}
    reference = volumes[present[0]].geometry()
    notes = [n for m in present[1:] for n in check_same_grid(reference, volumes[m], ignore_affine=ignore_affine)]
    notes += check_distinct(volumes)
    checked = {m: check_image(volumes.pop(m)) for m in present}
    notes += [note for image in checked.values() for note in image.notes]
    crop, mask = _brain([image.foreground for image in checked.values()])
    # Copies, so that what lies outside the crop is freed volume by volume.
    images = {m: checked.pop(m).data[crop].copy() for m in present}
    return Scan(images, mask, crop, reference, tuple(notes))


def load_subject(
    case: Case,
    spacing: float | Sequence[float],
    modalities: Sequence[Modality] = MODALITIES,
    *,
    ignore_affine: bool = False,
) -> Subject:
    """Read, check, crop, normalise and resample one case (nnU-Net's preprocessing with one mask per case).

    Args:
      case: from `formats.find_cases`.
      spacing: target in mm, one number for all axes or one per canonical axis.
      modalities: only these are read, and only they make the mask; the others' channels are 0.
      ignore_affine: files whose affines differ are taken to be on one grid all the same.

    Raises:
      InputError: none of `modalities` has a file, or a file cannot be used (see `nifti` and `checks`).
    """
    target = as_spacing(spacing)
    scan = read_scan(case, modalities, ignore_affine=ignore_affine)
    reference, crop, mask, notes = scan.reference, scan.crop, scan.mask, list(scan.notes)
    present = tuple(scan.images)

    shape = resampled_shape(mask.shape, reference.spacing, target)
    apart = slice_axis(reference.spacing, target)
    small_mask = resample_mask(mask, shape, apart)
    images = zeros((*shape, len(MODALITIES)))
    for m in present:
        normal = resample_image(_z_score(scan.images.pop(m), mask), shape, apart)
        images[..., MODALITIES.index(m)] = np.where(small_mask, normal, 0)
    label = None
    if case.label is not None:
        classes, geometry = read_label(case.label, case.convention)
        notes += check_same_grid(reference, geometry, ignore_affine=ignore_affine)
        notes += check_label(classes, crop, mask, case.label.name)
        label = np.where(small_mask, resample_label(classes[crop], shape, apart), np.uint8(OUTSIDE_BRAIN))
    same = shape == mask.shape
    return Subject(
        case, images, small_mask, label, present, reference.spacing if same else target, crop, reference, tuple(notes)
    )


def to_original_grid(
    values: Float32[np.ndarray, "d h w k"], subject: Subject, outside: Sequence[float]
) -> Iterator[tuple[slice, Float32[np.ndarray, "rows full_h full_w k"]]]:
    """Logits from the subject's grid to the canonical original volume, slab by slab.

    Args:
      values: on the subject's grid; linear interpolation inside the crop.
      subject: whose.
      outside: one value per channel for what lies outside the crop.

    Yields:
      Rows of the volume's first axis, first to last, and the values there.

    Raises:
      ValueError: `values` are not on the subject's grid.
    """
    if values.shape[:3] != subject.mask.shape:
        raise ValueError(f"values of shape {values.shape} are not on the subject's grid {subject.mask.shape}")
    crop, apart = subject.crop, slice_axis(subject.spacing, subject.reference.spacing)
    d, h, w = (s.stop - s.start for s in crop)
    full = *subject.reference.shape, values.shape[3]
    for rows in slabs(full):
        slab = np.empty((rows.stop - rows.start, *full[1:]), np.float32)
        slab[:] = outside
        inside = slice(max(rows.start, crop[0].start), min(rows.stop, crop[0].stop))
        if inside.start < inside.stop:
            there = slice(inside.start - rows.start, inside.stop - rows.start)
            of_crop = slice(inside.start - crop[0].start, inside.stop - crop[0].start)
            slab[there, crop[1], crop[2]] = resample_linear_rows(values, (d, h, w), of_crop, apart)
        yield rows, slab


def _brain(foregrounds: Sequence[Bool[np.ndarray, "d h w"]]) -> tuple[Crop, Bool[np.ndarray, "d2 h2 w2"]]:
    """Bounding box of the union, and inside it the union with its holes filled."""
    union = np.logical_or.reduce(foregrounds)
    crop = ndimage.find_objects(union.astype(np.uint8))[0]
    # A hole is background that is not connected to the outside: one labelling instead of the many
    # dilations of scipy's binary_fill_holes. The padding joins everything outside into one component.
    background, _ = ndimage.label(~np.pad(union[crop], 1))
    return crop, (background != background[0, 0, 0])[1:-1, 1:-1, 1:-1]


def _z_score(image: Float32[np.ndarray, "d h w"], mask: Bool[np.ndarray, "d h w"]) -> Float32[np.ndarray, "d h w"]:
    """Mean 0 and standard deviation 1 inside the mask, 0 outside."""
    inside = image[mask]
    mean, deviation = np.float32(inside.mean(dtype=np.float64)), np.float32(inside.std(dtype=np.float64))
    # A single bright value over a whole crop leaves no spread: nnU-Net's floor keeps the result finite.
    return np.where(mask, (image - mean) / max(deviation, np.float32(1e-8)), np.float32(0))
