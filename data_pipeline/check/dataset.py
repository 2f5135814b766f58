"""What is wrong with a data set as a whole, and its summary."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.check.checked_case import CheckedCase
from data_pipeline.conventions import MODALITIES
from data_pipeline.reading.copies import find_copies
from data_pipeline.reading.findings import SEVERITIES, Finding, Severity

VERSION = 1
"""Of check.json; it changes when a field changes its meaning."""


def check_dataset(reports: Sequence[CheckedCase]) -> list[Finding]:
    """What shows only in several cases together: the same image in two of them."""
    return find_copies(
        (report.case.id, {m: (report.shape, mark) for m, mark in report.marks.items()}) for report in reports
    )


def count_findings(reports: Sequence[CheckedCase], findings: Sequence[Finding]) -> dict[Severity, int]:
    """How many findings there are of each severity, those of the data set among them."""
    counts = Counter(f.severity for f in (*findings, *(f for report in reports for f in report.findings)))
    return {severity: counts[severity] for severity in SEVERITIES}


def summary_lines(reports: Sequence[CheckedCase], findings: Sequence[Finding]) -> list[str]:
    """A table of the data set: cases, findings, modalities, labels, grids and volumes."""
    counts = count_findings(reports, findings)
    bad = sum(report.worst == "error" for report in reports)
    patients = len({report.case.patient for report in reports})
    held = Counter(m for report in reports for m in report.case.images)
    rows = [
        ("cases", f"{len(reports)} of {patients} patients, {len(reports) - bad} usable"),
        ("findings", ", ".join(f"{severity}s: {count}" for severity, count in counts.items())),
        ("modalities", ", ".join(f"{m} in {held[m]}" for m in MODALITIES)),
        ("labels", f"in {sum(report.case.label is not None for report in reports)}"),
        ("spacing", _most_common(" x ".join(f"{s:.3g}" for s in r.spacing) + " mm" for r in reports if r.spacing)),
        ("shape", _most_common(" x ".join(map(str, r.shape)) for r in reports if r.shape)),
        *((name, _volume_line(volumes)) for name, volumes in _volumes(reports).items()),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def as_json(
    roots: Sequence[Path], decisions: Sequence[str], reports: Sequence[CheckedCase], findings: Sequence[Finding]
) -> dict[str, Any]:
    """The content of check.json.

    `version`, `data` (the folders given), `layouts` (what was decided, in words), `counts` (of findings
    by severity), `findings` (of the data set), `cases` in order of their ids. A case has `id`, `patient`,
    `layout`, `convention`, `files` (by modality, and `seg`), `channels` (of 4-D files), `shape` (canonical;
    null if nothing could be read), `spacing_mm`, `volumes_ml` (WT, TC, ET, cavity; empty without a label)
    and `findings`. A finding has `severity` (error, warning or note), `file` (or null), `found`, `remedy`
    and `command` (or null).
    """
    return {
        "version": VERSION,
        "data": [str(root) for root in roots],
        "layouts": list(decisions),
        "counts": count_findings(reports, findings),
        "findings": [finding.as_json() for finding in findings],
        "cases": [report.as_json() for report in reports],
    }


def _volumes(reports: Sequence[CheckedCase]) -> dict[str, list[float]]:
    volumes: dict[str, list[float]] = defaultdict(list)
    for report in reports:
        for name, volume in report.volumes_ml.items():
            volumes[name].append(volume)
    return volumes


def _volume_line(volumes: Sequence[float]) -> str:
    low, median, high = np.percentile(volumes, (0, 50, 100))
    empty = sum(volume == 0 for volume in volumes)
    return f"median {median:.1f} ml, {low:.1f} to {high:.1f}, empty in {empty} of {len(volumes)}"


def _most_common(texts: Iterable[str], shown: int = 3) -> str:
    counts = Counter(texts)
    listed = [f"{text} in {count}" for text, count in counts.most_common(shown)]
    more = len(counts) - shown
    return ", ".join(listed) + (f", and {more} others" if more > 0 else "") if listed else "unknown"
