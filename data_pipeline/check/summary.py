"""Findings about a data set as a whole, its summary, and check.json."""

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
"""Version of check.json, raised when a field changes its meaning."""


def check_dataset(cases: Sequence[CheckedCase]) -> list[Finding]:
    """Findings that only several cases together reveal: the same image in two of them."""
    return find_copies((case.source.id, {m: (case.shape, mark) for m, mark in case.marks.items()}) for case in cases)


def count_findings(cases: Sequence[CheckedCase], findings: Sequence[Finding]) -> dict[Severity, int]:
    """The number of findings of each severity, including those about the data set."""
    counts = Counter(f.severity for f in (*findings, *(f for case in cases for f in case.findings)))
    return {severity: counts[severity] for severity in SEVERITIES}


def summary_lines(cases: Sequence[CheckedCase], findings: Sequence[Finding]) -> list[str]:
    """A table of the data set: cases, findings, modalities, labels, grids and volumes."""
    counts = count_findings(cases, findings)
    bad = sum(case.worst == "error" for case in cases)
    patients = len({case.source.patient for case in cases})
    held = Counter(m for case in cases for m in case.source.images)
    rows = [
        ("cases", f"{len(cases)} of {patients} patients, {len(cases) - bad} usable"),
        ("findings", ", ".join(f"{severity}s: {count}" for severity, count in counts.items())),
        ("modalities", ", ".join(f"{m} in {held[m]}" for m in MODALITIES)),
        ("labels", f"in {sum(case.source.label is not None for case in cases)}"),
        ("spacing", _most_common(" x ".join(f"{s:.3g}" for s in r.spacing) + " mm" for r in cases if r.spacing)),
        ("shape", _most_common(" x ".join(map(str, r.shape)) for r in cases if r.shape)),
        *((name, _volume_line(volumes)) for name, volumes in _volumes(cases).items()),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def as_json(
    roots: Sequence[Path], decisions: Sequence[str], cases: Sequence[CheckedCase], findings: Sequence[Finding]
) -> dict[str, Any]:
    """The content of check.json.

    `version`, `data` (the folders), `layouts` (the decisions, in words), `counts` (of findings by severity), `findings`
    (about the data set), `cases` in order of their ids. A case has `id`, `patient`, `layout`, `convention`, `files` (by
    modality, and `seg`), `channels` (of 4-D files), `shape` (canonical; null if nothing could be read), `spacing_mm`,
    `volumes_ml` (WT, TC, ET, cavity; empty without a label) and `findings`. A finding has `severity` (error, warning or
    note), `file` (or null), `found`, `remedy` and `command` (or null).
    """
    return {
        "version": VERSION,
        "data": [str(root) for root in roots],
        "layouts": list(decisions),
        "counts": count_findings(cases, findings),
        "findings": [finding.as_json() for finding in findings],
        "cases": [case.as_json() for case in cases],
    }


def _volumes(cases: Sequence[CheckedCase]) -> dict[str, list[float]]:
    volumes: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        for name, volume in case.volumes_ml.items():
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
