"""`kd-jax phantom`: write phantoms, or measure how closely they resemble patients."""

import argparse
import sys
from pathlib import Path

from data_pipeline.command_line import run_command


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status, 2 for a problem of the user's."""
    return run_command(lambda given: _make_or_audit(_parser().parse_args(given)), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kd-jax phantom",
        description="Write a data set of brain-tumour phantoms: gliomas grown in the ICBM152 brain, as BraTS 2021 "
        "folders of NIfTI. Finished cases are kept, so a stopped run continues and a larger set adds cases.",
    )
    parser.add_argument("out", type=Path, help="folder to write to (or to audit)")
    parser.add_argument("--cases", type=int, default=40, help="how many phantoms (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set (default: %(default)s)")
    parser.add_argument("--spacing", type=float, default=2.0, help="voxel edge in mm (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument(
        "--audit",
        action="store_true",
        help="write nothing; print how well single voxels of the BraTS 2021 cases in OUT tell tumour from brain",
    )
    return parser


def _make_or_audit(options: argparse.Namespace) -> int:
    # Imported when work begins: --help does not wait for SciPy and nibabel.
    from data_pipeline.phantom.audit import audit_folder, format_audit
    from data_pipeline.phantom.data_set import finished_cases, make_phantoms

    if options.audit:
        print(format_audit(audit_folder(options.out)))
    else:
        make_phantoms(options.out, options.cases, options.seed, options.spacing, options.workers)
        print(f"{len(finished_cases(options.out))} phantoms in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
