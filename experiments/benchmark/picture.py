"""Draws every ratio of a run as a bar on a logarithmic axis.

`python -m experiments.benchmark.picture FOUND.json [FOUND.json ...] -o PICTURE.png` draws earlier runs again, several
in one picture: a part that two of them hold is taken from the later file.
"""

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullFormatter

from data_pipeline.command_line import run_command
from data_pipeline.errors import InputError
from data_pipeline.files import write_atomically
from experiments.benchmark.figures import Part
from experiments.benchmark.report import read_parts

_AHEAD, _BEHIND = "#0072B2", "#D55E00"
"""Blue and vermilion of Okabe and Ito (2008)."""
_WIDTH, _BAR, _MARGINS, _DPI = 10.0, 0.34, 1.3, 120  # inches, and dots per inch
_ROOM = 1.7  # for the number at the end of the longest bar


def draw(parts: Mapping[str, Part], path: Path) -> None:
    """Writes a PNG: bars to the right of 1 are ours faster or smaller.

    Raises:
      InputError: it cannot be written.
    """
    bars = [(f"{n}: {f.name}", f.ratio) for n, part in parts.items() for f in part.figures if f.ratio is not None]
    canvas = Canvas(figsize=(_WIDTH, _MARGINS + _BAR * max(1, len(bars))), dpi=_DPI, layout="constrained")
    axes = canvas.add_subplot()
    labels, ratios = [label for label, _ in bars], [ratio for _, ratio in bars]
    drawn = axes.barh(
        range(len(bars)), [r - 1 for r in ratios], left=1, color=[_AHEAD if r >= 1 else _BEHIND for r in ratios]
    )
    axes.bar_label(drawn, [f" {ratio:.3g} " for ratio in ratios], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(min([0.5, *ratios]) / _ROOM, max([2.0, *ratios]) * _ROOM)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(bars)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times faster, or smaller, than the best original (right of 1: ours is ahead)", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    content = io.BytesIO()
    canvas.savefig(content, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def main(arguments: Sequence[str]) -> int:
    """Draws the results of earlier runs."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark.picture", description=__doc__)
    parser.add_argument("found", type=Path, nargs="+", metavar="FOUND.json", help="as experiments.benchmark wrote it")
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", required=True, help="the picture")
    args = parser.parse_args(arguments)
    parts: dict[str, Part] = {}
    for file in args.found:
        parts |= read_parts(file)
    if not parts:
        raise InputError(f"{args.found[0]}: no part was measured; run experiments.benchmark --json first")
    draw(parts, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
