"""Distributions of scores over cases: of one network, or of two networks on the same cases."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipeline.conventions import Region
from kd_jax.metrics.registry import METRICS
from kd_jax.metrics.scores import REGIONS, RegionScores, reference_is_empty


@dataclass(frozen=True)
class Summary:
    """Distribution of one metric of one region over cases.

    Attributes:
      mean, median, q1, q3: NaN without any case.
      sd: sample standard deviation (n - 1), NaN below two cases.
      n: cases with a value.
      left_out: cases without one, because the metric is undefined for them.
      reference_empty: cases whose reference has no voxel of the region.
    """

    mean: float
    sd: float
    median: float
    q1: float
    q3: float
    n: int
    left_out: int
    reference_empty: int


def summarise(values: Iterable[float], reference_empty: Iterable[bool] = ()) -> Summary:
    """Mean, SD, median and quartiles of the values that are not NaN, with the counts that a reader needs to judge them.

    Args:
      values: of one metric, a value per case.
      reference_empty: whether the reference of each case has no voxel of the region.
    """
    every = np.array(list(values), np.float64)
    known = every[~np.isnan(every)]
    nothing = (math.nan,) * 3
    q1, median, q3 = np.percentile(known, (25, 50, 75)).tolist() if known.size else nothing
    return Summary(
        mean=float(known.mean()) if known.size else math.nan,
        sd=float(known.std(ddof=1)) if known.size > 1 else math.nan,
        median=median,
        q1=q1,
        q3=q3,
        n=known.size,
        left_out=every.size - known.size,
        reference_empty=sum(reference_empty),
    )


def summarise_cases(cases: Sequence[Mapping[Region, RegionScores]]) -> dict[Region, dict[str, Summary]]:
    """`summarise` for every region and metric over the cases."""
    return {
        region: {
            metric: summarise((c[region][metric] for c in cases), (reference_is_empty(c[region]) for c in cases))
            for metric in METRICS
        }
        for region in REGIONS
    }


class Paired(NamedTuple):
    """Two networks on the same cases: each of them, and first - second, by region and metric."""

    first: dict[Region, dict[str, Summary]]
    second: dict[Region, dict[str, Summary]]
    difference: dict[Region, dict[str, Summary]]


def summarise_pairs(
    first: Sequence[Mapping[Region, RegionScores]], second: Sequence[Mapping[Region, RegionScores]]
) -> Paired:
    """`summarise` for two networks on the same cases in the same order.

    A case for which one network has no value is left out of both means, so that the difference of the means is the
    mean of the differences.

    Raises:
      ValueError: the sequences differ in length.
    """
    paired = Paired({}, {}, {})
    for region in REGIONS:
        empty = [reference_is_empty(case[region]) for case in first]
        for metric in METRICS:
            pairs = zip(first, second, strict=True)
            values = np.array([[case[region][metric] for case in pair] for pair in pairs]).reshape(-1, 2)
            values[np.isnan(values).any(axis=1)] = math.nan
            columns = *values.T, values[:, 0] - values[:, 1]
            for side, column in zip(paired, columns, strict=True):
                side.setdefault(region, {})[metric] = summarise(column, empty)
    return paired
