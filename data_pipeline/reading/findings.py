"""Findings: what a person should know about their files, how severe it is, and what to do about it.

An error would make a result meaningless, a warning might; a note tells of something that was repaired or recognised.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data_pipeline.errors import FileError, InputError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Worst first."""

REPEATED = 5
"""Most cases with the same words in a finding that are listed one by one; more are summed up in a line."""


@dataclass(frozen=True)
class Finding:
    """Something a person should know about their files.

    Attributes:
      severity: an error makes the case unusable.
      file: the file, if it concerns one.
      found: the observation.
      remedy: what to do about it; empty for a note that asks for nothing.
      command: command lines that do it, if they are known.
    """

    severity: Severity
    file: Path | None
    found: str
    remedy: str
    command: str | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.brief()}" if self.file else self.brief()

    def brief(self) -> str:
        """The finding without its file."""
        mark = " " if self.found.endswith("?") else "; "
        return f"{self.found}{mark}{self.remedy}" if self.remedy else self.found

    def note(self) -> str:
        """The finding with the name of its file but no folder, for lists that name the case."""
        return f"{self.file.name}: {self.brief()}" if self.file else self.brief()

    def as_json(self) -> dict[str, Any]:
        """The attributes, with the file as text."""
        return {**asdict(self), "file": None if self.file is None else str(self.file)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Finding":
        """The finding that `as_json` wrote."""
        return cls(**{**content, "file": None if content["file"] is None else Path(content["file"])})

    def without_folder(self) -> "Finding":
        """The finding without its folder and command, for results that must not depend on where the files lie."""
        return replace(self, file=None if self.file is None else Path(self.file.name), command=None)


def error_of(problem: FileError) -> Finding:
    """A file that cannot be used, as a finding."""
    return Finding("error", problem.file, problem.found, problem.remedy, problem.command)


class Refusal(InputError):
    """A case that cannot be used. The message holds all errors among its findings, one per line."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.errors = [finding for finding in findings if finding.severity == "error"]
        super().__init__("\n  ".join(map(str, self.errors)))

    def with_commands(self) -> str:
        """The message, each error followed by the command lines that mend it, ready to be copied."""
        lines: list[str] = []
        for finding in self.errors:
            lines += [str(finding), *(f"  {line}" for line in (finding.command or "").splitlines())]
        return "\n  ".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errors,)


def common_words(findings: Iterable[tuple[str, Finding]], severity: Severity) -> dict[str, int]:
    """Findings that more than `REPEATED` cases share but for the file name: words to number of cases, most first."""
    distinct = {(case, finding.brief()) for case, finding in findings if finding.severity == severity}
    holders = Counter(words for _, words in distinct)
    return {words: count for words, count in sorted(holders.items(), key=lambda h: (-h[1], h[0])) if count > REPEATED}


def digest(findings: Iterable[tuple[str, Finding]], severity: Severity, shown: int) -> list[str]:
    """The findings of one severity of many cases in a few lines.

    Args:
      findings: of all severities, each with the id of its case.
      severity: the one to list.
      shown: most lines; one more counts the rest.

    Returns:
      First the findings that many cases share (`common_words`), a line each; then the others, case by case.
    """
    chosen = [(case, finding) for case, finding in findings if finding.severity == severity]
    common = common_words(chosen, severity)
    lines = [f"{severity}: {words} (in {count} cases)" for words, count in common.items()]
    lines += [f"{severity}: {case}: {finding.note()}" for case, finding in chosen if finding.brief() not in common]
    more = len(lines) - shown
    return lines if more <= 0 else [*lines[:shown], f"{severity}: and {more} more; kd-jax check lists all"]
