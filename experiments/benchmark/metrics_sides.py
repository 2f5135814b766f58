"""Dice and HD95 of WT, TC and ET from two label maps: by this code, by MONAI and by MedPy.

Each factory makes the same pairs of label maps; what `run` returns is the sum of all Dice and all HD95 in mm.
"""

from collections.abc import Callable
from typing import Any

from data_pipeline.conventions import Shape3, region_mask
from experiments.benchmark.metrics_cases import Pair, make_pair
from experiments.benchmark.workload import Workload
from kd_jax.metrics import REGIONS, region_scores

SPACING = 1.0, 1.0, 1.0


def ours(**settings: Any) -> Workload:
    """Also computes sensitivity, specificity and volumes."""

    def score(pair: Pair) -> float:
        scores = region_scores(*pair, SPACING, "nan").values()
        return sum(region["dice"] + region["hd95_mm"] for region in scores)

    return _of_all_pairs(score, **settings)


def monai(**settings: Any) -> Workload:
    """As MONAI's tutorial of BraTS does it: regions as channels, its metrics over them."""
    import torch
    from monai.metrics import DiceMetric, compute_hausdorff_distance

    def channels(classes: Any) -> torch.Tensor:
        """[1, region, D, H, W]; by comparison, which is faster than NumPy's isin."""
        labels = torch.from_numpy(classes)
        core = (labels == 1) | (labels == 3)
        return torch.stack([core | (labels == 2), core, labels == 3])[None]

    def score(pair: Pair) -> float:
        prediction, reference = channels(pair.prediction), channels(pair.reference)
        dice = DiceMetric(include_background=True, reduction="none")(prediction, reference)
        hd95 = compute_hausdorff_distance(
            prediction, reference, include_background=True, percentile=95, spacing=SPACING
        )
        return float(dice.double().sum() + hd95.double().sum())

    return _of_all_pairs(score, **settings)


def medpy(**settings: Any) -> Workload:
    """Its `hd95` pools the distances of both directions before it takes the percentile, and is smaller for that."""
    from medpy.metric.binary import dc, hd95

    def score(pair: Pair) -> float:
        masks = [[region_mask(classes, region) for classes in pair] for region in REGIONS]
        return sum(float(dc(*both) + hd95(*both, voxelspacing=SPACING)) for both in masks)

    return _of_all_pairs(score, **settings)


def _of_all_pairs(
    score: Callable[[Pair], float], *, shape: Shape3, volumes_ml: list[float], seed: int, shift: int = 0
) -> Workload:
    pairs = [make_pair(shape, volume, seed + number, shift) for number, volume in enumerate(volumes_ml)]
    return Workload(lambda: sum(score(pair) for pair in pairs))
