"""All files of one case: every voxel read once, and everything that is wrong with them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

from data_pipeline.case import Case
from data_pipeline.conventions import MODALITIES, Modality, Slices3
from data_pipeline.errors import FileError
from data_pipeline.reading.alignment import check_alignment
from data_pipeline.reading.checks import (
    CheckedImage,
    check_header,
    check_image,
    check_label,
    check_spacing,
    compare_grids,
)
from data_pipeline.reading.clinical import raw_scan
from data_pipeline.reading.contrast import check_contrast, check_distinct
from data_pipeline.reading.findings import Finding, Refusal, error_of
from data_pipeline.reading.nifti import Geometry, Volume, image_of, read_label
from data_pipeline.reading.stored import Stored, open_nifti

OpenFile = Callable[[Path], Stored]


@dataclass(frozen=True, eq=False)
class Scan:
    """The modalities of one case as stored in their files, cropped to the brain.

    Attributes:
      images: by modality, in channel order; intensities as stored, except for repairs that `findings` name.
      mask: union of the read modalities' non-background voxels, holes filled; on the files' own grid.
      crop: the bounding box of the mask in the canonical volume.
      reference: the grid of the first modality read.
      classes: internal classes of the label file on the whole grid; None if it was not read.
      findings: repairs and suspicions; no errors.
    """

    images: dict[Modality, Float32[np.ndarray, "d h w"]]
    mask: Bool[np.ndarray, "d h w"]
    crop: Slices3
    reference: Geometry
    classes: UInt8[np.ndarray, "full_d full_h full_w"] | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, eq=False)
class Inspection:
    """The contents of a case's files.

    Attributes:
      scan: of the files that could be read and lie on one grid; None if there are none.
      findings: everything that is wrong or unusual, in no particular order.
    """

    scan: Scan | None
    findings: tuple[Finding, ...]


def inspect_case(
    case: Case,
    modalities: Sequence[Modality] = MODALITIES,
    *,
    ignore_affine: bool = False,
    label: bool = True,
    refuse_raw: bool = False,
    open_file: OpenFile = open_nifti,
) -> Inspection:
    """Read every voxel of a case's files and collect all findings; problems with the files are not raised.

    Args:
      case: from `layouts.find.find_cases`.
      modalities: only these are read, and only they make the mask.
      ignore_affine: take files whose affines differ to lie on one grid all the same.
      label: read the label file too, if there is one.
      refuse_raw: a raw clinical scan is an error, not a warning.
      open_file: opens an image; one that remembers lets several readings of a case share its files.
    """
    present = tuple(m for m in MODALITIES if m in modalities and m in case.images)
    if not present:
        found = f"{case.id}: none of the modalities {', '.join(modalities)} has a file"
        found += f" (found {', '.join(case.images) or 'none'})"
        return Inspection(None, (Finding("error", None, found, "add one or choose other modalities"),))
    findings: list[Finding] = []
    volumes = _read_images(case, present, findings, open_file)
    read = _read_label(case, findings) if label and case.label is not None else None
    if not volumes:
        return Inspection(None, tuple(findings))
    grids = {m: volume.geometry() for m, volume in volumes.items()}
    on_grids = _check_grids([*grids.values()], read[1] if read else None, ignore_affine)
    findings += on_grids
    findings += check_distinct(volumes)
    checked = {m: check_image(volumes.pop(m)) for m in grids}
    findings += [finding for image in checked.values() for finding in image.findings]
    skulls = [m for m, image in checked.items() if image.skull]
    commands = not case.channels  # commands name whole files, not volumes of a 4-D file
    raw = raw_scan(case.id, grids, skulls, commands=commands, refuse=refuse_raw)
    if raw:  # one list of commands mends everything found so far
        findings = [*_without_commands(findings), *raw]
    one_grid = not any(finding.severity == "error" for finding in on_grids)
    scan = _crop(case, checked, grids, read, compare=one_grid)
    findings += scan.findings if commands and not raw else _without_commands(scan.findings)
    unusual = tuple(finding for finding in findings if finding.severity != "error")
    return Inspection(replace(scan, findings=unusual), tuple(findings))


def read_scan(
    case: Case,
    modalities: Sequence[Modality] = MODALITIES,
    *,
    ignore_affine: bool = False,
    label: bool = False,
    refuse_raw: bool = False,
    open_file: OpenFile = open_nifti,
) -> Scan:
    """Read and check a case and crop it to its union of non-background voxels.

    Args:
      case: from `layouts.find.find_cases`.
      modalities: only these are read, and only they make the mask.
      ignore_affine: take files whose affines differ to lie on one grid all the same.
      label: read the label file too, if there is one.
      refuse_raw: a raw clinical scan is an error, not a warning.
      open_file: opens an image, see `inspect_case`.

    Raises:
      InputError: all errors of the case, one per line.
    """
    found = inspect_case(
        case, modalities, ignore_affine=ignore_affine, label=label, refuse_raw=refuse_raw, open_file=open_file
    )
    if found.scan is None or any(finding.severity == "error" for finding in found.findings):
        raise Refusal(found.findings)
    return found.scan


def _crop(
    case: Case,
    checked: dict[Modality, CheckedImage],
    grids: Mapping[Modality, Geometry],
    label: tuple[UInt8[np.ndarray, "d h w"], Geometry] | None,
    *,
    compare: bool,
) -> Scan:
    """The images and label of the first image's shape, cropped to the brain, with findings about their contents.

    Empties `checked`, so that each whole volume is freed as soon as its crop is taken.

    Args:
      case: whose files were read.
      checked: its images.
      grids: of the images.
      label: internal classes and their grid.
      compare: the files lie on one grid, so that their alignment can be checked.
    """
    reference = next(iter(grids.values()))
    fitting = [m for m, grid in grids.items() if grid.shape == reference.shape]
    crop, mask = _brain([checked[m].foreground for m in fitting])
    classes = label[0] if label and label[1].shape == reference.shape else None
    findings: list[Finding] = []
    if compare:
        findings += check_alignment(checked, crop, mask, reference.spacing, case.images, classes, case.label)
    aligned = all(finding.file == case.label for finding in findings)
    images = {m: checked.pop(m).data[crop].copy() for m in fitting}
    if classes is not None and case.label is not None:
        findings += check_label(classes, crop, mask, case.label)
    if aligned:  # tissues are compared voxel by voxel
        voxel_ml = float(np.prod(reference.spacing)) * 1e-3
        findings += check_contrast(images, mask, None if classes is None else classes[crop], case.images, voxel_ml)
    return Scan(images, mask, crop, reference, classes, tuple(findings))


def _without_commands(findings: Iterable[Finding]) -> list[Finding]:
    return [replace(finding, command=None) for finding in findings]


def _read_images(
    case: Case, present: Sequence[Modality], findings: list[Finding], open_file: OpenFile
) -> dict[Modality, Volume]:
    """The modalities that can be read; a file that holds several is read once."""
    volumes: dict[Modality, Volume] = {}
    for path, inside in _by_file(case.images, present).items():
        try:
            stored = open_file(path)
        except FileError as problem:
            findings.append(error_of(problem))
            continue
        if case.channels and (count := math.prod(stored.values.shape[3:])) != len(case.channels):
            remedy = f"dataset.json names {len(case.channels)}: correct one of the two"
            findings.append(Finding("error", path, f"has {count} volumes", remedy))
            continue
        for m in inside:
            try:
                volumes[m] = image_of(stored, case.channels.get(m))
            except FileError as problem:
                findings.append(error_of(problem))
    return {m: volumes[m] for m in present if m in volumes}


def _by_file(images: Mapping[Modality, Path], present: Sequence[Modality]) -> dict[Path, list[Modality]]:
    files: dict[Path, list[Modality]] = {}
    for m in present:
        files.setdefault(images[m], []).append(m)
    return files


def _read_label(case: Case, findings: list[Finding]) -> tuple[UInt8[np.ndarray, "d h w"], Geometry] | None:
    assert case.label is not None
    try:
        return read_label(case.label, case.convention)
    except FileError as problem:
        findings.append(error_of(problem))
        return None


def _check_grids(images: Sequence[Geometry], label: Geometry | None, ignore_affine: bool) -> list[Finding]:
    """Findings about the headers of a case's files. Volumes of one file share a header."""
    findings: list[Finding] = []
    files = {grid.source: grid for grid in (*images, *([label] if label else []))}
    for grid in files.values():
        findings += check_header(grid)
        findings += compare_grids(images[0], grid, ignore_affine=ignore_affine, label=grid is label)
    spacings = {tuple(np.round(grid.spacing, 3)): grid for grid in reversed(files.values())}
    return findings + [finding for grid in reversed(spacings.values()) for finding in check_spacing(grid)]


def _brain(foregrounds: Sequence[Bool[np.ndarray, "d h w"]]) -> tuple[Slices3, Bool[np.ndarray, "d2 h2 w2"]]:
    """Bounding box of the union, and inside it the union with its holes filled."""
    union = np.logical_or.reduce(foregrounds)
    crop = ndimage.find_objects(union.view(np.uint8))[0]
    # A hole is background that is not connected to the outside: one labelling, where scipy's binary_fill_holes takes
    # many dilations. The padding joins everything outside into one component.
    background, _ = ndimage.label(~np.pad(union[crop], 1))
    return crop, (background != background[0, 0, 0])[1:-1, 1:-1, 1:-1]
