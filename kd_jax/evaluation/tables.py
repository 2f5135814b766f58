"""Evaluation results as files and tables: per-case CSV, JSON summaries, tables for a terminal."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.table import Table

from data_pipeline.conventions import Region
from data_pipeline.files import write_atomically
from kd_jax.metrics import METRICS, REGIONS, Paired, RegionScores, Summary

CaseScores = Mapping[Region, RegionScores]
Summaries = Mapping[Region, Mapping[str, Summary]]


def write_case_scores(path: Path, scores: Mapping[str, CaseScores]) -> None:
    """Write one row per case with columns `WT_dice`, `WT_hd95_mm`, …, atomically; undefined values are empty.

    Raises:
      InputError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", *(f"{region}_{metric}" for region in REGIONS for metric in METRICS)])
    for case, regions in scores.items():
        values = (regions[region][metric] for region in REGIONS for metric in METRICS)
        writer.writerow([case, *("" if math.isnan(value) else f"{value:.6g}" for value in values)])
    write_atomically(path, text.getvalue().encode())


def as_json(summaries: Summaries) -> dict[str, dict[str, dict[str, float]]]:
    """Summaries by region and metric, with the quartiles and the interquartile range."""
    return {
        region: {metric: {**asdict(s), "iqr": s.q3 - s.q1} for metric, s in metrics.items()}
        for region, metrics in summaries.items()
    }


def summary_table(title: str, summaries: Summaries) -> Table:
    """One network: mean ± SD and median [quartiles] of every region and metric, and of how many cases they are."""
    table = _table(title, "mean ± SD", "median [Q1, Q3]", "n", "empty ref.")
    for region, metric, heading, digits in _lines():
        s = summaries[region][metric]
        median = _number(s.median, digits)
        if s.n > 1:
            median += f" [{_number(s.q1, digits)}, {_number(s.q3, digits)}]"
        counts = f"{s.n} of {s.n + s.left_out}", str(s.reference_empty)
        table.add_row(_once(region, metric), heading, _mean(s, digits), median, *counts, end_section=_is_last(metric))
    return table


def comparison_table(title: str, paired: Paired, one: str, other: str) -> Table:
    """Two networks and their paired difference on the same cases: mean ± SD."""
    table = _table(title, one, other, f"{one} - {other}", "pairs")
    for region, metric, heading, digits in _lines():
        columns = [_mean(s[region][metric], digits) for s in paired]
        pairs = str(paired.difference[region][metric].n)
        table.add_row(_once(region, metric), heading, *columns, pairs, end_section=_is_last(metric))
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.HORIZONTALS, collapse_padding=True, pad_edge=False)
    table.add_column("")
    table.add_column("")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _lines() -> list[tuple[Region, str, str, int]]:
    """Region, metric, heading and decimals of each line of a table."""
    return [
        (region, name, METRICS[name].heading or name, METRICS[name].decimals) for region in REGIONS for name in _shown()
    ]


def _shown() -> list[str]:
    """The metrics in tables; the files hold all."""
    return [name for name, metric in METRICS.items() if metric.heading is not None]


def _once(region: Region, metric: str) -> str:
    """The region's name, on its first line only."""
    return region if metric == _shown()[0] else ""


def _is_last(metric: str) -> bool:
    return metric == _shown()[-1]


def _mean(summary: Summary, digits: int) -> str:
    """Mean ± SD; the value alone where there is one case, a dash where there is none."""
    mean = _number(summary.mean, digits)
    return mean if math.isnan(summary.sd) else f"{mean} ± {_number(summary.sd, digits)}"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
