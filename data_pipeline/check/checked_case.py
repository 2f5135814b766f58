"""One checked case: its files, figures, findings and a thumbnail, but no voxels, so that any number fits in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from data_pipeline.case import Case
from data_pipeline.check.thumbnail import thumbnail
from data_pipeline.conventions import CAVITY, MODALITIES, REGION_CLASSES, Modality, Shape3, Spacing
from data_pipeline.reading.findings import SEVERITIES, Finding, Severity
from data_pipeline.reading.scan import Scan, inspect_case

BINS = 64
RANGE = (-4.0, 6.0)
"""Range of the histograms in standard deviations from the mean inside the brain, as networks see the images."""


@dataclass(frozen=True, eq=False)
class CheckedCase:
    """One checked case.

    Attributes:
      source: its files.
      findings: the worst first.
      shape: canonical; None if no image could be read.
      spacing: mm.
      volumes_ml: of WT, TC and ET, and of the cavity if the convention has one; empty without a label.
      histograms: voxels of the brain per bin, by modality.
      marks: checksums of a slice of each modality; equal ones reveal the same image in two cases.
      thumbnail: PNG of the slice with the most tumour, or of the middle; empty if no image could be read.
    """

    source: Case
    findings: tuple[Finding, ...]
    shape: Shape3 | None
    spacing: Spacing | None
    volumes_ml: Mapping[str, float]
    histograms: Mapping[Modality, Int64[np.ndarray, "bins"]]
    marks: Mapping[Modality, int]
    thumbnail: bytes

    @property
    def worst(self) -> Severity | None:
        """The severity of the worst finding."""
        return self.findings[0].severity if self.findings else None

    def as_json(self) -> dict[str, Any]:
        """For check.json."""
        return {
            "id": self.source.id,
            "patient": self.source.patient,
            "layout": self.source.layout,
            "convention": self.source.convention.name,
            "files": {**{m: str(path) for m, path in self.source.images.items()}, **_label_file(self.source)},
            "channels": dict(self.source.channels),
            "shape": self.shape,
            "spacing_mm": self.spacing,
            "volumes_ml": {name: round(volume, 3) for name, volume in self.volumes_ml.items()},
            "findings": [finding.as_json() for finding in self.findings],
        }


def check_case(case: Case, *, ignore_affine: bool = False) -> CheckedCase:
    """Read every voxel of a case's files, and keep findings, figures and a thumbnail."""
    found = inspect_case(case, ignore_affine=ignore_affine)
    findings = list(found.findings)
    if missing := [m for m in MODALITIES if m not in case.images]:
        remedy = "networks that need them cannot use this case" if case.images else "add the files"
        findings.append(Finding("note", None, f"no {', '.join(missing)}", remedy))
    if case.label is None:
        findings.append(Finding("note", None, "no label file", "it cannot be trained on or evaluated"))
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    scan = found.scan
    if scan is None:
        return CheckedCase(case, tuple(findings), None, None, {}, {}, {}, b"")
    return CheckedCase(
        case,
        tuple(findings),
        scan.reference.shape,
        scan.reference.spacing,
        _volumes(case, scan),
        {m: _histogram(image[scan.mask]) for m, image in scan.images.items()},
        {m: crc32(image[image.shape[0] // 2].tobytes()) for m, image in scan.images.items()},
        thumbnail(scan),
    )


def _label_file(case: Case) -> dict[str, str]:
    return {} if case.label is None else {"seg": str(case.label)}


def _volumes(case: Case, scan: Scan) -> dict[str, float]:
    if scan.classes is None:
        return {}
    voxel_ml = float(np.prod(scan.reference.spacing)) * 1e-3
    counts = _class_counts(scan.classes)
    volumes: dict[str, float] = {
        region: voxel_ml * float(counts[list(inside)].sum()) for region, inside in REGION_CLASSES.items()
    }
    if CAVITY in case.convention.to_class.values():
        volumes["cavity"] = voxel_ml * float(counts[CAVITY])
    return volumes


def _class_counts(classes: UInt8[np.ndarray, "d h w"]) -> Int64[np.ndarray, "k"]:
    return np.bincount(classes.ravel(order="K"), minlength=CAVITY + 1)


def _histogram(inside: Float32[np.ndarray, "n"]) -> Int64[np.ndarray, "bins"]:
    mean, deviation = float(inside.mean(dtype=np.float64)), max(float(inside.std(dtype=np.float64)), 1e-8)
    low, high = RANGE
    position = (inside - np.float32(mean)) * np.float32(BINS / (high - low) / deviation) - np.float32(
        low * BINS / (high - low)
    )
    return np.bincount(np.clip(position, 0, BINS - 1).astype(np.uint8), minlength=BINS)
