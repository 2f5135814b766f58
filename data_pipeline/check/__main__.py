"""`kd-jax check`: everything that is wrong with a data set, before anything is trained on it."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from data_pipeline.command_line import NamingOptions, WorkerOptions, parse_options, run_command
from data_pipeline.files import write_atomically

_EXAMPLES = """\
examples:
  kd-jax check /data/BraTS2021
  kd-jax check /data/BraTS2023-GLI /data/UPenn-GBM -o checks/mine --workers 16
  kd-jax check /data/PED --layout brats2024
exit status: 0; 1 if the check found an error; 2 if the check itself failed
"""


@dataclass(frozen=True, kw_only=True)
class CheckOptions(NamingOptions, WorkerOptions):
    """Read every voxel of every file of a data set and report everything that is wrong, before anything is trained.

    Writes OUT/check.json and OUT/check.html.
    """

    data: Annotated[
        tuple[Path, ...], Parameter(required=True, help="folders of data sets or of single cases, or CSV files")
    ] = field(kw_only=False)
    output: Annotated[
        Path, Parameter(alias="-o", metavar="OUT", help="folder for the results; existing ones are replaced")
    ] = Path("check")
    html: Annotated[bool, Parameter(negative="--no-html", help="write check.html; without it check.json only")] = True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(_check, arguments)


def _check(arguments: Sequence[str]) -> int:
    options = parse_options(CheckOptions, arguments, name="kd-jax check", epilogue=_EXAMPLES)
    # Imported when work begins: --help does not wait for SciPy and nibabel.
    from data_pipeline.check.checked_case import check_case
    from data_pipeline.check.listing import listing
    from data_pipeline.check.page import html_page
    from data_pipeline.check.summary import as_json, check_dataset, count_findings, summary_lines
    from data_pipeline.layouts.find import describe, find_cases
    from data_pipeline.layouts.unused import unused_files
    from data_pipeline.workers import map_cases

    found = find_cases(options.data, options.label_map, options.layout)
    decisions = describe(found)
    print("\n".join(decisions), flush=True)
    cases = map_cases(
        partial(check_case, ignore_affine=options.ignore_affine),
        found,
        min(options.processes, len(found)),
        doing="checking",
        skip_bad=False,
        skip_option="",
        progress=sys.stderr.isatty(),
    )
    findings = [*unused_files(options.data, found), *check_dataset(cases)]
    print("\n".join([*listing(cases, findings), "", *summary_lines(cases, findings)]))
    content = as_json(options.data, decisions, cases, findings)
    _write(options.output / "check.json", json.dumps(content, indent=1, allow_nan=False))
    if options.html:
        _write(options.output / "check.html", html_page(options.data, decisions, cases, findings))
    return 1 if count_findings(cases, findings)["error"] else 0


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
