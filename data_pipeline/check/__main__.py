"""`kd-jax check`: everything that is wrong with a data set, before anything is trained on it."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data_pipeline.command_line import add_naming_options, add_workers_option, run_command
from data_pipeline.files import write_atomically

_EXAMPLES = """
examples:
  kd-jax check /data/BraTS2021
  kd-jax check /data/BraTS2023-GLI /data/UPenn-GBM -o checks/mine --workers 16
  kd-jax check /data/PED --layout brats2024
exit status: 0; 1 if the check found an error; 2 if the check itself failed
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(lambda given: _check(_parser().parse_intermixed_args(given)), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kd-jax check",
        description="Read every voxel of every file of a data set and report everything that is wrong, before "
        "anything is trained. Writes OUT/check.json and OUT/check.html.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "data", type=Path, nargs="+", metavar="DATA", help="folder of a data set, of one case, or a CSV"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        default=Path("check"),
        help="folder for the results; existing ones are replaced (default: check, in the current folder)",
    )
    add_naming_options(parser)
    add_workers_option(parser)
    parser.add_argument("--no-html", dest="html", action="store_false", help="write check.json only")
    return parser


def _check(options: argparse.Namespace) -> int:
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
        min(options.workers, len(found)),
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
