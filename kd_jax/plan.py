"""Plan a run: `kd-jax plan DATA -o plan.json`, then `kd-jax train --plan plan.json`.

Measures the data set and writes patch, batch, spacing and networks by nnU-Net v2's rules, for the accelerator's memory.
"""

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from data_pipeline.command_line import NamingOptions, WorkerOptions, parse_options, run_command
from data_pipeline.errors import InputError
from kd_jax.planning.presets import NETWORKS, PRESETS, Preset, default_memory

_SIZE = Number(gt=0, lt=math.inf)


@dataclass(frozen=True, kw_only=True)
class PlanOptions(NamingOptions, WorkerOptions):
    """Measure a data set and plan its training by nnU-Net v2's rules.

    Plans spacing, patch, batch, and the stages, strides, kernels and features of teacher and student. Writes a JSON
    file to read and to edit, for kd-jax train --plan.
    """

    data: Annotated[
        tuple[Path, ...], Parameter(required=True, help="folders of cases with their labels, or CSV files; joined")
    ] = field(kw_only=False)
    output: Annotated[Path, Parameter(alias="-o", metavar="FILE", help="the plan")] = Path("plan.json")
    preset: Annotated[
        Preset,
        Parameter(
            metavar="|".join(PRESETS),
            show_choices=False,
            help="nnU-Net's own network, or its residual-encoder networks ResEncM, L, XL",
        ),
    ] = "plain"
    memory: Annotated[
        float | None,
        Parameter(
            metavar="GB",
            validator=_SIZE,
            help="memory of the accelerator; by default what nnU-Net plans for, for every network: "
            + ", ".join(f"{default_memory(preset):g} for {preset}" for preset in PRESETS),
        ),
    ] = None
    networks: Annotated[
        int,
        Parameter(
            metavar="N",
            validator=Number(gte=1),
            help="networks that share the memory: 2 are teacher and student, 1 is nnU-Net",
        ),
    ] = NETWORKS
    spacing: Annotated[
        tuple[float, float, float] | None,
        Parameter(metavar="X Y Z", validator=_SIZE, help="voxel size in mm; by default that of the median case"),
    ] = None
    skip_bad: Annotated[bool, Parameter(help="leave out cases with problems instead of stopping")] = False
    overwrite: Annotated[bool, Parameter(help="replace a plan that is already there")] = False


def main(arguments: Sequence[str]) -> int:
    """Plans as the command line says."""
    options = parse_options(PlanOptions, arguments, name="kd-jax plan")
    # Imported when work begins: --help does not wait for SciPy and nibabel.
    from data_pipeline.files import ensure_writable
    from data_pipeline.layouts.find import describe, find_cases
    from data_pipeline.preprocessing.fingerprint import measure_cases
    from kd_jax.planning.plan_file import plan_document, write_plan
    from kd_jax.planning.planner import plan_networks
    from kd_jax.planning.tables import show_plan

    if options.output.exists() and not options.overwrite:
        raise InputError(f"{options.output}: already there; choose another --output, or pass --overwrite")
    cases = find_cases(options.data, options.label_map, options.layout)
    print("\n".join(describe(cases, options.data)))
    ensure_writable(options.output.parent)
    fingerprint = measure_cases(
        cases,
        workers=min(len(cases), options.processes),
        ignore_affine=options.ignore_affine,
        skip_bad=options.skip_bad,
    )
    memory = default_memory(options.preset, options.networks) if options.memory is None else options.memory
    plan = plan_networks(fingerprint, options.preset, memory=memory, networks=options.networks, spacing=options.spacing)
    document = plan_document(
        plan,
        fingerprint,
        root=", ".join(map(str, options.data)),
        preset=options.preset,
        memory=memory,
        networks=options.networks,
    )
    write_plan(options.output, document)
    show_plan(plan, fingerprint, options.preset, memory, options.networks)
    print(f"plan: {options.output}; train with: {_training_command(options)}")
    return 0


def _training_command(options: PlanOptions) -> str:
    command = ["kd-jax", "train", "--config", "nnunet"]
    command += ["--plan", str(options.output), "--data.root", *map(str, options.data)]
    if options.layout is not None:
        command += ["--data.layout", options.layout]
    if options.label_map is not None:
        command += ["--data.label_map", options.label_map]
    if options.ignore_affine:
        command += ["--data.ignore_affine", "true"]
    if options.skip_bad:
        command += ["--data.skip_bad", "true"]
    return shlex.join(command)


if __name__ == "__main__":
    sys.exit(run_command(main))
