"""`kd-jax phantom`: write phantoms, or measure how closely they resemble patients."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from data_pipeline.command_line import WorkerOptions, parse_options, run_command


@dataclass(frozen=True, kw_only=True)
class PhantomOptions(WorkerOptions):
    """Write a data set of brain-tumour phantoms: gliomas grown in the ICBM152 brain, as BraTS 2021 folders of NIfTI.

    Finished cases are kept, so a stopped run continues and a larger set adds cases.
    """

    out: Annotated[Path, Parameter(help="folder to write to, or to audit")] = field(kw_only=False)
    cases: Annotated[int, Parameter(metavar="N", help="how many phantoms")] = 40
    seed: Annotated[int, Parameter(metavar="N", help="seed of the data set")] = 0
    spacing: Annotated[float, Parameter(metavar="MM", help="edge of a voxel in mm")] = 2.0
    audit: Annotated[
        bool,
        Parameter(
            help="write nothing; print how well single voxels of the BraTS 2021 cases in OUT tell tumour from brain"
        ),
    ] = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(_make_or_audit, arguments)


def _make_or_audit(arguments: Sequence[str]) -> int:
    options = parse_options(PhantomOptions, arguments, name="kd-jax phantom")
    # Imported when work begins: --help does not wait for SciPy and nibabel.
    from data_pipeline.phantom.audit import audit_folder, format_audit
    from data_pipeline.phantom.data_set import finished_cases, make_phantoms

    if options.audit:
        print(format_audit(audit_folder(options.out)))
    else:
        make_phantoms(options.out, options.cases, options.seed, options.spacing, options.processes)
        print(f"{len(finished_cases(options.out))} phantoms in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
