"""Plan a run: `kd-jax plan DATA -o plan.json`, then `kd-jax train --plan plan.json`.

Measures the data set and writes patch, batch, spacing and networks by nnU-Net v2's rules, for the accelerator's memory.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich import box
from rich.console import Console
from rich.table import Table

from data_pipeline.command_line import add_naming_options, run_command
from data_pipeline.errors import InputError
from data_pipeline.files import ensure_writable
from data_pipeline.layouts.find import describe, find_cases
from data_pipeline.preprocessing.fingerprint import Fingerprint, measure_cases
from data_pipeline.workers import available_cores
from kd_jax.planning.plan_file import patch_share, plan_document, write_plan
from kd_jax.planning.planner import NETWORKS, PRESETS, Plan, Preset, default_memory, plan_networks


def main(arguments: Sequence[str]) -> int:
    """Plans as the command line says."""
    args = _parser().parse_args(arguments)
    _check_numbers(args)
    if args.output.exists() and not args.overwrite:
        raise InputError(f"{args.output}: already there; choose another --output, or pass --overwrite")
    cases = find_cases(args.data, args.label_map, args.layout)
    print("\n".join(describe(cases, args.data)))
    ensure_writable(args.output.parent)
    fingerprint = measure_cases(
        cases,
        workers=min(len(cases), available_cores() if args.workers is None else args.workers),
        ignore_affine=args.ignore_affine,
        skip_bad=args.skip_bad,
    )
    memory = default_memory(args.preset, args.networks) if args.memory is None else args.memory
    plan = plan_networks(
        fingerprint, args.preset, memory=memory, networks=args.networks, spacing=args.spacing and tuple(args.spacing)
    )
    document = plan_document(
        plan,
        fingerprint,
        root=", ".join(map(str, args.data)),
        preset=args.preset,
        memory=memory,
        networks=args.networks,
    )
    write_plan(args.output, document)
    _show(plan, fingerprint, args.preset, memory, args.networks)
    print(f"plan: {args.output}; train with: {_training_command(args)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kd-jax plan",
        description="Measure a data set and plan its training by nnU-Net v2's rules: spacing, patch, batch, and "
        "stages, strides, kernels and features of teacher and student. Writes a JSON file that can be edited, for "
        "kd-jax train --plan.",
    )
    parser.add_argument(
        "data", type=Path, nargs="+", metavar="DATA", help="folders of cases with their labels, or CSV files; joined"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", default=Path("plan.json"), help="(default: %(default)s)"
    )
    parser.add_argument(
        "--preset",
        choices=get_args(Preset),
        default="plain",
        help="nnU-Net's own network, or its residual-encoder networks ResEncM, L, XL (default: %(default)s)",
    )
    defaults = ", ".join(f"{default_memory(preset):g} for {preset}" for preset in PRESETS)
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help=f"memory of the accelerator (default: what nnU-Net plans for, for every network: {defaults})",
    )
    parser.add_argument(
        "--networks",
        type=int,
        metavar="N",
        default=NETWORKS,
        help="networks that share the memory (default: %(default)s, teacher and student; 1 is nnU-Net)",
    )
    parser.add_argument(
        "--spacing", type=float, nargs=3, metavar=("X", "Y", "Z"), help="voxel size in mm (default: of the median case)"
    )
    add_naming_options(parser)
    parser.add_argument("--skip-bad", action="store_true", help="leave out cases with problems instead of stopping")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read cases (default: one per core)")
    parser.add_argument("--overwrite", action="store_true", help="replace a plan that is already there")
    return parser


def _check_numbers(args: argparse.Namespace) -> None:
    if args.memory is not None and not 0 < args.memory < math.inf:
        raise InputError(f"--memory {args.memory:g}: expected the accelerator's memory in GB, above 0")
    if args.networks < 1:
        raise InputError(f"--networks {args.networks}: expected 1 or more; {NETWORKS} are trained at once")
    if args.spacing is not None and not all(0 < size < math.inf for size in args.spacing):
        raise InputError(f"--spacing {' '.join(f'{s:g}' for s in args.spacing)}: expected three sizes in mm, above 0")


def _show(plan: Plan, fingerprint: Fingerprint, preset: Preset, memory: float, networks: int) -> None:
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


def _training_command(args: argparse.Namespace) -> str:
    command = ["kd-jax", "train", "--config", "nnunet"]
    command += ["--plan", str(args.output), "--data.root", *map(str, args.data)]
    if args.layout is not None:
        command += ["--data.layout", args.layout]
    if args.label_map is not None:
        command += ["--data.label_map", args.label_map]
    if args.ignore_affine:
        command += ["--data.ignore_affine", "true"]
    if args.skip_bad:
        command += ["--data.skip_bad", "true"]
    return shlex.join(command)


if __name__ == "__main__":
    sys.exit(run_command(main))
