"""A plan in two tables, for the terminal."""

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from data_pipeline.preprocessing.fingerprint import Fingerprint
from kd_jax.planning.plan_file import patch_share
from kd_jax.planning.planner import Plan
from kd_jax.planning.presets import PRESETS, Preset


def show_plan(plan: Plan, fingerprint: Fingerprint, preset: Preset, memory: float, networks: int) -> None:
    """Prints the plan in two tables: the run, and the stages of its networks."""
    run = Table(box=box.SIMPLE_HEAD, show_header=False)
    used = plan.feature_maps * plan.batch / 2 / plan.budget
    for row in (
        ("cases", f"{len(fingerprint.shapes)}, cropped to {fingerprint.relative_size:.0%} of their volume"),
        ("median case", f"{_times(plan.median_shape)} voxels of {_times(plan.spacing)} mm"),
        ("patch", f"{_times(plan.patch)} voxels, {patch_share(plan):.0%} of the median case"),
        ("batch", f"{plan.batch}"),
        ("batch Dice", "on" if plan.batch_dice else "off"),
        ("memory", f"{memory:g} GB for {networks} network(s), about {used:.0%} used by nnU-Net's estimate"),
        ("rules", f"nnU-Net v2, {PRESETS[preset].planner}"),
    ):
        run.add_row(*row)
    stages = Table(box=box.SIMPLE_HEAD)
    blocks = "blocks" if plan.network.encoder == "residual" else "convolutions"
    for heading in ("stage", "voxels", "features", "stride", "kernel", f"encoder {blocks}", "decoder convolutions"):
        stages.add_column(heading)
    edges = list(plan.patch)
    decoder = (*plan.network.stage_convs_decoder, None)
    for stage, stride in enumerate(plan.network.stage_strides):
        edges = [edge // step for edge, step in zip(edges, stride, strict=True)]
        stages.add_row(
            str(stage),
            _times(edges),
            str(plan.network.features[stage]),
            _times(stride),
            _times(plan.network.stage_kernels[stage]),
            str(plan.network.stage_convs_encoder[stage]),
            "" if decoder[stage] is None else str(decoder[stage]),
        )
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(run)
    console.print(stages)


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
