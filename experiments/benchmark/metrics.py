"""Scores a case: Dice and 95th percentile Hausdorff distance of the three regions, and the same by MONAI and MedPy."""

from collections.abc import Mapping
from typing import Any

from experiments.benchmark.figures import Options, Part
from experiments.benchmark.machine import missing
from experiments.benchmark.sides import OURS, Measured, Side, compare, time_figure
from experiments.benchmark.workload import BRATS_SHAPE

MONAI, MEDPY = "MONAI", "MedPy"
VOLUMES_ML = 40.0, 100.0, 160.0
"""Whole tumours of BraTS 2021 mostly lie between the first and the last; the second is a usual one."""
SHIFT = 15
"""Voxels by which a poor prediction is moved: most of its surface is then far from the other."""


def measure(options: Options) -> Part:
    """Seconds per case from two label maps to all scores.

    MedPy takes half a minute and gets one round of one case.
    """
    shape = (48, 48, 32) if options.small else BRATS_SHAPE
    volumes = [volume / 100 if options.small else volume for volume in VOLUMES_ML]
    settings: dict[str, Any] = {"shape": shape, "volumes_ml": volumes, "seed": options.seed}
    usual = {**settings, "volumes_ml": volumes[1:2], "seed": options.seed + 1}
    all_three = compare(_sides(settings, OURS, MONAI), options.rounds)
    one = compare(_sides(usual, OURS, MEDPY), 1)
    shifted = compare(_sides({**usual, "shift": SHIFT}, OURS, MONAI), options.rounds)
    size = " x ".join(map(str, shape))
    return Part(
        "metrics",
        [
            time_figure(f"Dice + HD95 of WT, TC, ET, a case of {size}", all_three, pieces=len(volumes)),
            time_figure(f"the same, a tumour of {volumes[1]:g} ml", one),
            time_figure(f"the same, prediction {SHIFT} mm beside its place", shifted),
        ],
        [
            f"tumours of {', '.join(f'{v:g}' for v in volumes)} ml with rim and necrosis; predictions with a Dice of "
            "about 0.9 and islands elsewhere",
            _values("sum of all Dice and HD95 in mm", all_three),
            _values("of one tumour", one)
            + "; MedPy pools the distances of both directions before it takes the percentile",
            _values(f"{SHIFT} mm beside its place", shifted),
            "MONAI's surface (voxels with a face neighbour outside) and percentile per direction are ours, in float32",
            "ours is one thread and also gives sensitivity, specificity and volumes",
        ],
    )


def _sides(settings: Mapping[str, Any], *names: str) -> dict[str, Side]:
    """Those of the names that are installed."""
    factories = {OURS: "ours", MONAI: "monai", MEDPY: "medpy"}
    return {
        name: Side(f"experiments.benchmark.metrics_sides:{factories[name]}", settings)
        for name in names
        if name == OURS or not missing({name.lower(): name})
    }


def _values(of: str, measured: Mapping[str, Measured]) -> str:
    return f"{of}: " + ", ".join(f"{name} {side.value:.5f}" for name, side in measured.items())
