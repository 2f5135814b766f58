"""The findings of a check on the terminal: case by case, and once where many cases share one."""

from collections.abc import Iterator, Sequence

from data_pipeline.check.checked_case import CheckedCase
from data_pipeline.reading.findings import Finding, common_words

LONG = 5
"""Lines of a command list that is shown once: those of other cases differ by file names alone."""


def listing(cases: Sequence[CheckedCase], findings: Sequence[Finding]) -> Iterator[str]:
    """Errors and warnings with the commands that mend them. Notes are left to check.json and check.html.

    Args:
      cases: all of them.
      findings: about the data set as a whole.
    """
    held = [(case.source.id, finding) for case in cases for finding in case.findings]
    common = common_words(held, "warning")
    long_shown = False
    for case in cases:
        problems = [f for f in case.findings if f.severity != "note" and f.brief() not in common]
        if problems:
            yield f"\n{case.source.id}"
        for finding in problems:
            yield f"  {finding.severity}: {finding}"
            commands = (finding.command or "").splitlines()
            if len(commands) >= LONG and long_shown:
                commands = ["(the same commands as above, for this case's files: see check.json or check.html)"]
            long_shown |= len(commands) >= LONG
            yield from _indented(commands)
    examples = {finding.brief(): finding for _, finding in held}
    for words, count in common.items():
        yield f"\nwarning in {count} cases: {words}"
        yield from _indented((examples[words].command or "").splitlines())
    for finding in findings:
        yield f"\n{finding.severity}: {finding}"


def _indented(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"    {line}" for line in lines)
