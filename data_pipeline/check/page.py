"""check.html: one page that needs nothing else, to look through a data set in a browser."""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from data_pipeline.check.checked_case import BINS, RANGE, CheckedCase
from data_pipeline.check.dataset import summary_lines
from data_pipeline.check.thumbnail import COLOURS
from data_pipeline.conventions import MODALITIES, Modality
from data_pipeline.reading.findings import SEVERITIES, Finding

_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5em; color: #222; max-width: 1400px; }
pre { background: #f4f4f4; padding: .6em; overflow-x: auto; }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 12px; }
.case { border: 1px solid #ccc; border-left-width: 6px; padding: .6em; overflow-wrap: anywhere; }
.case img { float: left; margin: 0 .8em .4em 0; height: 170px; background: #000; image-rendering: pixelated; }
.case ul { clear: both; margin: .4em 0 0; padding-left: 1.2em; }
.error { border-color: #c22; } .warning { border-color: #e90; } .note { border-color: #69c; }
.clean { border-color: #4a4; }
li.error { color: #a00; } li.warning { color: #960; } li.note { color: #456; }
.swatch { display: inline-block; width: 1em; height: 1em; margin: 0 .3em 0 1em; vertical-align: -2px; }
figure { display: inline-block; margin: 0 1em 1em 0; }
"""
# Cases come worst first; the boxes hide what is not looked for.
_SCRIPT = """
for (const box of document.querySelectorAll('input[data-worst]'))
  box.onchange = () => document.querySelectorAll('.case.' + box.dataset.worst)
    .forEach(c => c.style.display = box.checked ? '' : 'none');
"""


def html_page(
    roots: Sequence[Path], decisions: Sequence[str], reports: Sequence[CheckedCase], findings: Sequence[Finding]
) -> str:
    """The page: summary, histograms of the modalities, and every case with picture and findings, the worst first."""
    title = f"check of {', '.join(map(str, roots))}"
    ordered = sorted(reports, key=lambda r: (SEVERITIES.index(r.worst) if r.worst else len(SEVERITIES), r.case.id))
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in decisions),
        f"<pre>{escape(chr(10).join(summary_lines(reports, findings)))}</pre>",
        _list(findings),
        "<h2>Intensities inside the brain</h2><p>Mean over cases; standard deviations from the case's own mean.</p>",
        *(_histogram(m, reports) for m in MODALITIES),
        f"<h2>Cases</h2><p>{''.join(_boxes(reports))}{''.join(_legend())}</p>",
        '<div class="cases">',
        *(_case(report) for report in ordered),
        f"</div><script>{_SCRIPT}</script></body></html>",
    ]
    return "\n".join(parts)


def _boxes(reports: Sequence[CheckedCase]) -> Iterator[str]:
    for kind in (*SEVERITIES, "clean"):
        count = sum((report.worst or "clean") == kind for report in reports)
        yield f'<label><input type="checkbox" checked data-worst="{kind}"> {kind} ({count})</label> '


def _legend() -> Iterator[str]:
    for name, rgb in COLOURS:
        if name:
            yield f'<span class="swatch" style="background: rgb{rgb}"></span>{name}'


def _case(report: CheckedCase) -> str:
    picture = ""
    if report.picture:
        picture = f'<img alt="" src="data:image/png;base64,{b64encode(report.picture).decode()}">'
    spacing = "" if report.spacing is None else " x ".join(f"{s:.3g}" for s in report.spacing) + " mm"
    facts = [
        ", ".join(report.case.images) or "no images",
        "unreadable" if report.shape is None else f"{' x '.join(map(str, report.shape))} voxels of {spacing}",
        ", ".join(f"{name} {volume:.1f} ml" for name, volume in report.volumes_ml.items()) or "no label",
        f"{report.case.layout}, {report.case.convention.name}",
    ]
    lines = "<br>".join(escape(fact) for fact in facts)
    name = escape(report.case.id)
    return (
        f'<div class="case {report.worst or "clean"}">{picture}<b>{name}</b><br>{lines}{_list(report.findings)}</div>'
    )


def _list(findings: Sequence[Finding]) -> str:
    items = "".join(f'<li class="{f.severity}">{f.severity}: {escape(f.note())}{_command(f)}</li>' for f in findings)
    return f"<ul>{items}</ul>" if items else ""


def _command(finding: Finding) -> str:
    if finding.command is None:
        return ""
    return f"<details><summary>commands</summary><pre>{escape(finding.command)}</pre></details>"


def _histogram(modality: Modality, reports: Sequence[CheckedCase], width: int = 280, height: int = 120) -> str:
    """Curves as SVG: the mean over cases, and the band between the 10th and 90th percentile of cases."""
    shares = [r.histograms[modality] / r.histograms[modality].sum() for r in reports if modality in r.histograms]
    if not shares:
        return ""
    low, high = np.percentile(shares, (10, 90), axis=0)
    mean, top = np.mean(shares, axis=0), max(float(np.max(high)), float(np.max(np.mean(shares, axis=0))))
    x = (np.arange(BINS) + 0.5) * width / BINS

    def points(values: np.ndarray, order: slice = slice(None)) -> str:
        y = height * (1 - values / top)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[order], y[order], strict=True))

    zero = -RANGE[0] / (RANGE[1] - RANGE[0]) * width
    backwards = slice(None, None, -1)
    return (
        f'<figure><svg width="{width}" height="{height}"><line x1="{zero:.1f}" x2="{zero:.1f}" y2="{height}" '
        f'stroke="#ccc"/><polygon points="{points(high)} {points(low, backwards)}" fill="#cde"/>'
        f'<polyline points="{points(mean)}" fill="none" stroke="#258"/></svg>'
        f"<figcaption>{modality}, {len(shares)} cases, {RANGE[0]:g} to {RANGE[1]:g}</figcaption></figure>"
    )
