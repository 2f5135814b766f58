"""Decides on held-out cases which steps of the post-processing help, as nnU-Net does, from counts of voxels.

The rule of `postprocessing/remove_connected_components.py` (`determine_postprocessing`): the largest component of all
foreground is kept if the mean Dice over the parts improves and no part gets worse. Then, for one part after another,
its largest component is kept if the Dice of this part improves. The rule ignores the effect on the other parts; the
tables of `kd_jax.postprocess` show it.

The effect of a step depends on the steps before it, which depend on all cases. So that no case has to be kept, each is
counted after all sequences of steps that the decision can arrive at: 16 for three parts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8
from scipy import ndimage

from data_pipeline.conventions import CLASSES, REGION_CLASSES, Region
from kd_jax.metrics import REGIONS
from kd_jax.postprocessing.components import BACKGROUND, ENHANCING, NECROSIS, is_below, keep_largest_of
from kd_jax.postprocessing.rule import (
    PARTS,
    STEP_CLASSES,
    DecidedOn,
    Decision,
    Figures,
    LabelOrRegion,
    Postprocessing,
    Step,
    Threshold,
    When,
)

MEAN = "mean"
"""Name of the mean over the parts among the figures."""

Confusion = Int64[np.ndarray, "4 4"]
Steps = tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class CaseCounts:
    """The counts of one case that the decision needs.

    Attributes:
      spacing: voxel size in mm.
      after: voxels by class of the reference (rows) and of the prediction (columns), after each sequence of steps.
    """

    spacing: tuple[float, float, float]
    after: Mapping[Steps, Confusion]


def count_case(
    prediction: UInt8[np.ndarray, "d h w"],
    reference: UInt8[np.ndarray, "d h w"],
    spacing: tuple[float, float, float],
    parts: Sequence[LabelOrRegion],
) -> CaseCounts:
    """Post-processes one case by every possible sequence of steps, and counts voxels.

    Args:
      prediction: internal classes.
      reference: internal classes on the same grid.
      spacing: voxel size in mm.
      parts: `postprocessing.PARTS` of classes or of regions.
    """
    # Outside this box both are background, which Dice ignores.
    boxes = ndimage.find_objects(((prediction != BACKGROUND) | (reference != BACKGROUND)).astype(np.uint8))
    box = boxes[0] if boxes else (slice(0),) * 3
    inside = reference[box]
    maps: dict[Steps, UInt8[np.ndarray, "d h w"]] = {(): prediction[box]}
    for step in tried(parts):
        maps |= {(*done, step): keep_largest_of(found, STEP_CLASSES[step]) for done, found in maps.items()}
    return CaseCounts(spacing, {done: _confusion(inside, found) for done, found in maps.items()})


def tried(parts: Sequence[LabelOrRegion]) -> Steps:
    """Every step, in order."""
    return ("foreground", *parts)


def decide_steps(cases: Sequence[CaseCounts], parts: Sequence[LabelOrRegion]) -> list[Decision]:
    """nnU-Net's decision, step by step; `cases` in the order of their ids, so that sums round as nnU-Net's do."""
    done: Steps = ()
    decisions = []
    for step in tried(parts):
        before, after = (_part_dice(cases, steps, parts) for steps in (done, (*done, step)))
        # Comparisons with NaN are false: a part without a case never improves.
        applied = (
            after[MEAN] > before[MEAN] and not any(after[part] < before[part] for part in parts)
            if step == "foreground"
            else after[step] > before[step]
        )
        done = (*done, step) if applied else done
        decisions.append(Decision(step, applied, _known(before), _known(after)))
    return decisions


def decide_threshold(cases: Sequence[CaseCounts], steps: Steps, thresholds_ml: Sequence[float]) -> list[Threshold]:
    """The mean ET Dice after `steps` without a threshold and with each, from low to high, 1 where both are empty."""
    tries = (None, *sorted(set(thresholds_ml)))
    return [Threshold(min_ml, region_dice(cases, steps, "ET", min_ml)) for min_ml in tries]


def best_threshold(thresholds: Sequence[Threshold]) -> float | None:
    """The threshold with the largest Dice; among equals no threshold, then the lowest."""
    return max(thresholds, key=lambda t: t.et_dice).min_et_ml  # `max` returns the first


def decide_rule(
    counts: Mapping[str, CaseCounts], decided_on: DecidedOn, thresholds_ml: Sequence[float]
) -> Postprocessing:
    """The steps that help, and the best of the thresholds.

    Args:
      counts: by case id, those of `decided_on.cases` among them.
      decided_on: cases and parts that decide.
      thresholds_ml: smallest volumes of enhancing tumour to try.
    """
    cases = [counts[name] for name in decided_on.cases]
    decisions = decide_steps(cases, PARTS[decided_on.parts])
    steps = tuple(decision.step for decision in decisions if decision.applied)
    thresholds = decide_threshold(cases, steps, thresholds_ml) if thresholds_ml else []
    min_et_ml = best_threshold(thresholds) if thresholds else None
    dice: dict[When, dict[Region, float]] = {
        "before": {region: region_dice(cases, (), region, None) for region in REGIONS},
        "after": {region: region_dice(cases, steps, region, min_et_ml) for region in REGIONS},
    }
    return Postprocessing(steps, min_et_ml, decided_on, tuple(decisions), tuple(thresholds), dice)


def region_dice(cases: Sequence[CaseCounts], steps: Steps, region: Region, min_et_ml: float | None) -> float:
    """Mean Dice of a region over cases, 1 where prediction and reference are empty (the BraTS rule)."""
    values = []
    for case in cases:
        confusion = case.after[steps]
        if min_et_ml is not None and is_below(int(confusion[:, ENHANCING].sum()), case.spacing, min_et_ml):
            confusion = confusion.copy()
            confusion[:, NECROSIS] += confusion[:, ENHANCING]
            confusion[:, ENHANCING] = 0
        value = _dice(confusion, REGION_CLASSES[region])
        values.append(1.0 if math.isnan(value) else value)
    return float(np.mean(values))


def _part_dice(cases: Sequence[CaseCounts], steps: Steps, parts: Sequence[LabelOrRegion]) -> dict[str, float]:
    """Mean Dice by part over the cases where it is defined, and the mean of these; NaN without such a case."""
    figures = {}
    for part in parts:
        values = np.array([_dice(case.after[steps], STEP_CLASSES[part]) for case in cases])
        figures[part] = math.nan if np.isnan(values).all() else float(np.nanmean(values))
    return figures | {MEAN: float(np.mean(list(figures.values())))}


def _dice(confusion: Confusion, members: Sequence[int]) -> float:
    """2 TP / (2 TP + FP + FN) of some classes taken together; NaN if both maps lack all of them."""
    both = confusion[np.ix_(members, members)].sum()
    total = confusion[list(members)].sum() + confusion[:, list(members)].sum()
    return float(2 * both / total) if total else math.nan


def _confusion(reference: UInt8[np.ndarray, "d h w"], prediction: UInt8[np.ndarray, "d h w"]) -> Confusion:
    count = len(CLASSES)
    pairs = reference.astype(np.int64).ravel() * count + prediction.ravel()
    return np.bincount(pairs, minlength=count * count).reshape(count, count)


def _known(figures: Mapping[str, float]) -> Figures:
    return {name: None if math.isnan(value) else value for name, value in figures.items()}
