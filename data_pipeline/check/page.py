"""check.html: one self-contained page to look through a data set in a browser."""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_pipeline.check.checked_case import BINS, RANGE, CheckedCase
from data_pipeline.check.summary import summary_lines
from data_pipeline.check.thumbnail import COLOURS
from data_pipeline.conventions import MODALITIES, Modality
from data_pipeline.reading.findings import SEVERITIES, Finding

_WIDTH, _HEIGHT = 280, 120  # of a histogram, in pixels


def html_page(
    roots: Sequence[Path], decisions: Sequence[str], cases: Sequence[CheckedCase], findings: Sequence[Finding]
) -> str:
    """The page: a summary, histograms of the modalities, and every case with its thumbnail and findings, worst first.

    Styles, script and images are inside, so that the file can be sent to someone or opened years later. All text is
    escaped by the template engine: file names and headers come from strangers.

    Args:
      roots: the folders that were checked.
      decisions: from `layouts.find.describe`.
      cases: all of them.
      findings: about the data set as a whole.
    """
    kinds: tuple[str, ...] = (*SEVERITIES, "clean")
    worst: list[str] = [case.worst or "clean" for case in cases]
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            title=f"check of {', '.join(map(str, roots))}",
            decisions=decisions,
            summary="\n".join(summary_lines(cases, findings)),
            findings=findings,
            histograms=[plot for m in MODALITIES if (plot := _histogram(m, cases)) is not None],
            kinds={kind: worst.count(kind) for kind in kinds},
            legend=[(name, rgb) for name, rgb in COLOURS if name],
            cases=sorted(cases, key=_rank),
        )
    )


def _environment() -> Environment:
    # StrictUndefined: a misspelt name in the template is an error, not an empty string.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda content: b64encode(content).decode()
    environment.filters["facts"] = _facts
    return environment


def _rank(case: CheckedCase) -> tuple[int, str]:
    return SEVERITIES.index(case.worst) if case.worst else len(SEVERITIES), case.source.id


def _facts(case: CheckedCase) -> Iterator[str]:
    yield ", ".join(case.source.images) or "no images"
    if case.shape is None or case.spacing is None:
        yield "unreadable"
    else:
        yield f"{' x '.join(map(str, case.shape))} voxels, {' x '.join(f'{s:.3g}' for s in case.spacing)} mm"
    yield ", ".join(f"{name} {volume:.1f} ml" for name, volume in case.volumes_ml.items()) or "no label"
    yield f"{case.source.layout}, {case.source.convention.name}"


@dataclass(frozen=True)
class _Histogram:
    """The curves of one modality as SVG coordinates.

    Attributes:
      mean: over cases.
      band: outline between the 10th and 90th percentile of cases.
      zero: horizontal place of the mean intensity.
      caption: below the plot.
    """

    mean: str
    band: str
    zero: str
    caption: str
    width: int = _WIDTH
    height: int = _HEIGHT


def _histogram(modality: Modality, cases: Sequence[CheckedCase]) -> _Histogram | None:
    """None if no case has the modality."""
    counts = [case.histograms[modality] for case in cases if modality in case.histograms]
    if not counts:
        return None
    shares = np.stack([count / count.sum() for count in counts])
    mean, (low, high) = shares.mean(axis=0), np.percentile(shares, (10, 90), axis=0)
    top = max(high.max(), mean.max())
    x = (np.arange(BINS) + 0.5) * _WIDTH / BINS
    lowest, highest = RANGE
    return _Histogram(
        mean=_points(x, mean / top),
        band=f"{_points(x, high / top)} {_points(x[::-1], low[::-1] / top)}",
        zero=f"{-lowest / (highest - lowest) * _WIDTH:.1f}",
        caption=f"{modality}, {len(shares)} cases, {lowest:g} to {highest:g}",
    )


def _points(x: Float64[np.ndarray, "n"], heights: Float64[np.ndarray, "n"]) -> str:
    """`heights` from 0 to 1; the y axis of SVG points down."""
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, _HEIGHT * (1 - heights), strict=True))
