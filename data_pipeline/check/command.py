"""The command line of the check."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data_pipeline.check.checked_case import CheckedCase, check_case
from data_pipeline.check.dataset import as_json, check_dataset, count_findings, summary_lines
from data_pipeline.check.page import html_page
from data_pipeline.command_line import add_naming_options, add_workers_option, run_command
from data_pipeline.files import write_atomically
from data_pipeline.layouts.find import describe, find_cases
from data_pipeline.layouts.unused import unused_files
from data_pipeline.reading.findings import Finding, common_words
from data_pipeline.workers import map_cases

LONG = 5
"""Lines of a command list that is printed once; others differ by file names alone, and the report has all."""

_EXAMPLES = """
examples:
  python -m data_pipeline.check /data/BraTS2021
  python -m data_pipeline.check /data/BraTS2023-GLI /data/UPenn-GBM -o reports/mine --workers 16
  python -m data_pipeline.check /data/PED --layout brats2024
exit status: 0, 1 if there is an error among the findings, 2 if the check itself could not be made
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(lambda given: _check(_parser().parse_intermixed_args(given)), arguments)


def _check(options: argparse.Namespace) -> int:
    cases = find_cases(options.data, options.label_map, options.layout)
    decisions = describe(cases)
    print("\n".join(decisions), flush=True)
    reports = map_cases(
        partial(check_case, ignore_affine=options.ignore_affine),
        cases,
        min(options.workers, len(cases)),
        doing="checking",
        skip_bad=False,
        skip_option="",
        progress=sys.stderr.isatty(),
    )
    findings = [*unused_files(options.data, cases), *check_dataset(reports)]
    _print_findings(reports, findings)
    print("\n".join(["", *summary_lines(reports, findings)]))
    content = as_json(options.data, decisions, reports, findings)
    _write(options.output / "check.json", json.dumps(content, indent=1, allow_nan=False))
    if options.html:
        _write(options.output / "check.html", html_page(options.data, decisions, reports, findings))
    return 1 if count_findings(reports, findings)["error"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.check",
        description="Read every voxel of every file of a data set and say everything that is wrong with it, before "
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
        help="folder for the report; a report that is there is replaced (default: check, in the current folder)",
    )
    add_naming_options(parser)
    add_workers_option(parser)
    parser.add_argument("--no-html", dest="html", action="store_false", help="write check.json only")
    return parser


def _print_findings(reports: Sequence[CheckedCase], findings: Sequence[Finding]) -> None:
    """Errors and warnings, case by case, but what many cases share once; notes are counted."""
    held = [(report.case.id, finding) for report in reports for finding in report.findings]
    common = common_words(held, "warning")
    long_shown = False
    for report in reports:
        problems = [f for f in report.findings if f.severity != "note" and f.brief() not in common]
        if problems:
            print(f"\n{report.case.id}")
        for finding in problems:
            print(f"  {finding.severity}: {finding}")
            commands = (finding.command or "").splitlines()
            if len(commands) >= LONG and long_shown:
                commands = ["(commands as above for this case are in the report)"]
            long_shown |= len(commands) >= LONG
            _print_commands(commands)
    examples = {finding.brief(): finding for _, finding in held}
    for words, count in common.items():
        print(f"\nwarning in {count} cases: {words}")
        _print_commands((examples[words].command or "").splitlines())
    for finding in findings:
        print(f"\n{finding.severity}: {finding}")


def _print_commands(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"    {line}")


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
    print(f"wrote {path}")
