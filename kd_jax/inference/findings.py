"""Prints what is unusual about the files of a case, wherever a case is read."""

from collections.abc import Iterable
from typing import TextIO

from data_pipeline.reading.findings import SEVERITIES, Finding


def print_findings(findings: Iterable[Finding], case: str, told: set[tuple[str, str]], stream: TextIO) -> None:
    """Print the findings of a case, the worst first.

    Args:
      findings: of one reading of the case.
      case: its id.
      told: (case, text) of findings that have been printed, so that the reading for another network does not repeat
        them; new ones are added.
      stream: where to.
    """
    for finding in sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)):
        text = f"{finding.severity}: {finding.note()}"
        if (case, text) not in told:
            print(f"  {text}", file=stream, flush=True)
            told.add((case, text))
