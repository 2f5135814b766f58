"""Results of a run of the benchmark, as tables and as one JSON file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_pipeline.errors import FileError
from data_pipeline.files import write_atomically
from experiments.benchmark.figures import Figure, Options, Part

_BUSY = 0.25
"""Share of the cores above which other programs disturb the measurement."""


@dataclass
class Report:
    """All results of a run so far.

    Attributes:
      machine: as `machine.describe` gives it.
      versions: of packages, None where not installed.
      options: of the command line.
      parts: results, by part.
      skipped: the reason why a part was not measured, by part.
      failed: the error of a part that failed, by part.
    """

    machine: Mapping[str, Any]
    versions: Mapping[str, str | None]
    options: Options
    parts: dict[str, Part] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON holds them, with the headline's ratio of every part next to its figures."""
        content = asdict(self)
        for name, part in self.parts.items():
            content["parts"][name] = {"ratio": part.ratio, **content["parts"][name]}
        return content

    def write(self, path: Path) -> None:
        """Replaces the file at once: it is never half written.

        Raises:
          InputError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(self.to_json(), indent=1) + "\n").encode())


def read_parts(path: Path) -> dict[str, Part]:
    """The parts of a report that `Report.write` wrote.

    Raises:
      FileError: it is not there or no such report.
    """
    try:
        parts = json.loads(path.read_bytes())["parts"]
        return {
            name: Part(part["name"], [Figure(**figure) for figure in part["figures"]], part["notes"])
            for name, part in parts.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(path, f"no report of the benchmark ({error})", "expected what --json writes") from error


def show_machine(report: Report, console: Console) -> None:
    """Two lines: what it runs on, and with which versions."""
    found = report.machine
    devices = ", ".join(sorted(set(found["devices"])))
    console.print(
        f"{found['cpu']}, {found['cores']} cores, {found['memory_gb']:g} GB; "
        f"JAX on {len(found['devices'])} x {devices} ({found['platform']})"
    )
    console.print(", ".join(f"{name} {version}" for name, version in report.versions.items() if version))
    if found["load"] > _BUSY * found["cores"]:
        console.print(
            f"other programs keep {found['load']:g} of {found['cores']} cores busy, which slows the sides unequally: "
            "these figures are a first look",
            style="yellow",
        )


def show_part(part: Part, console: Console) -> None:
    """A table of its figures, and its notes."""
    table = Table(title=f"{part.name}: {_ratio(part.ratio)}", title_justify="left")
    table.add_column("figure")
    for heading in ("ours", "peers", "ratio"):
        table.add_column(heading, justify="right")
    for figure in part.figures:
        table.add_row(figure.name, _value(figure.ours, figure.unit), _peers(figure), _ratio(figure.ratio))
    console.print(table)
    for note in part.notes:
        console.print(f"- {note}", markup=False)


def _peers(figure: Figure) -> str:
    return "\n".join(f"{name} {_value(value, figure.unit)}" for name, value in figure.peers.items())


def _value(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}"


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"[{'green' if ratio >= 1 else 'red'}]{ratio:.3g}[/]"
