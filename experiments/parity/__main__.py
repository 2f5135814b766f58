"""Compares with the originals, prints every figure, keeps small golden files: `make parity`."""

import argparse
import importlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.parity.check import Check, Part

REPORT = Path(__file__).with_name("report.json")
PARTS = (
    "networks",
    "losses",
    "training",
    "inference",
    "postprocessing",
    "planner",
    "augmentation",
    "importing",
)
_ORIGINALS = "torch", "nnunetv2", "dynamic-network-architectures", "batchgeneratorsv2"
_OURS = "jax", "flax", "numpy", "scipy"


def main() -> int:
    """Runs the parts asked for; returns 1 if a figure is beyond its bound."""
    parser = argparse.ArgumentParser(prog="python -m experiments.parity", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one or more of: {', '.join(PARTS)} (default: all)")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    results = {name: list(_part(name)()) for name in args.parts or PARTS}
    _show(results)
    _record(results)
    return 0 if all(check.passed for checks in results.values() for check in checks) else 1


def _part(name: str) -> Part:
    print(f"{name} ...", file=sys.stderr, flush=True)
    return importlib.import_module(f"experiments.parity.{name}").checks


def _show(results: dict[str, list[Check]]) -> None:
    table = Table(title="Compared with the originals", title_justify="left")
    for heading in ("part", "check", "measure", "found", "allowed", ""):
        table.add_column(heading)
    for part, checks in results.items():
        for check in checks:
            verdict = "ok" if check.passed else "FAILED"
            table.add_row(part, check.name, check.measure, f"{check.figure:.2g}", f"{check.bound:.2g}", verdict)
    Console(width=150).print(table)


def _record(results: dict[str, list[Check]]) -> None:
    """Replaces what was found in these parts in the committed report."""
    before = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    found = {
        part: [{"check": c.name, "measure": c.measure, "found": c.figure, "allowed": c.bound} for c in checks]
        for part, checks in results.items()
    }
    report = {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in (*_ORIGINALS, *_OURS)},
        "machine": platform.machine(),
        "parts": before.get("parts", {}) | found,
    }
    REPORT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
