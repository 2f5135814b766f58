"""Compares this code with the originals, part by part: a ratio above 1 means that ours is faster or smaller.

Each part runs both sides in turn, in processes of their own, on whatever JAX computes on: CPU, GPU or TPU. A part
whose originals are not installed runs without them and shows no ratio.
"""

import argparse
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from data_pipeline.errors import InputError
from experiments.benchmark import machine
from experiments.benchmark.figures import Options, Part
from experiments.benchmark.picture import draw
from experiments.benchmark.report import Report, show_machine, show_part

PARTS = {
    "students": "one teacher with three students, and the three runs that would train them one by one",
    "step": "the training step of teacher and student, and PyTorch's with nnU-Net's networks",
    "inference": "the sliding window over a case, and the predictors of nnU-Net and MONAI",
    "loader": "patches with nnU-Net's augmentation, and batchgeneratorsv2",
    "metrics": "HD95 and surface distances of BraTS-sized label maps, and MedPy and MONAI",
    "prepare": "a case from NIfTI to cache, and nnU-Net's preprocessing",
    "tpu": "the step compiled ahead of time for a TPU: memory, and the bound of its speed",
    "scaling": "the step on one, two and more devices",
}
NEEDED = {"tpu": {"libtpu": "libtpu"}}
"""Modules without which a part has nothing to measure, and the packages that bring them."""
EXAMPLES = """examples:
  python -m experiments.benchmark                                    everything
  python -m experiments.benchmark step metrics --rounds 9            two parts, more runs of each side
  python -m experiments.benchmark --json found.json --plot found.png
  python -m experiments.benchmark --small                            tiny sizes, to see whether it runs
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts asked for; returns 1 if one failed, 130 after Ctrl-C."""
    args = _parse(arguments)
    options = Options(args.rounds, args.small, args.seed)
    console = Console(width=None if sys.stdout.isatty() else 160)
    report = Report(machine.describe(), machine.versions(), options)
    show_machine(report, console)
    interrupted = False
    for name in dict.fromkeys(args.parts or PARTS):
        try:
            _run(name, report, console)
        except KeyboardInterrupt:
            interrupted = True
        if args.json:
            report.write(args.json)
        if args.plot:
            draw(report.parts, args.plot)
        if interrupted:
            console.print(f"interrupted in {name}; the parts before it are kept")
            return 130
    return 1 if report.failed else 0


def _run(name: str, report: Report, console: Console) -> None:
    """One part, measured, skipped or failed."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    if lacking := machine.missing(NEEDED.get(name, {})):
        report.skipped[name] = f"{', '.join(lacking)} not installed"
    else:
        try:
            report.parts[name] = _measure(name, report.options)
            show_part(report.parts[name], console)
        except Exception as error:  # the other parts still run
            if isinstance(error, ModuleNotFoundError) and not _is_ours(error.name or ""):
                report.skipped[name] = f"{error.name} not installed"
            else:
                report.failed[name] = f"{type(error).__name__}: {error}"
                _complain(name, error, console)
    if name in report.skipped:
        console.print(f"{name} skipped: {report.skipped[name]}", markup=False)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("experiments", "kd_jax", "data_pipeline")


def _complain(name: str, error: Exception, console: Console) -> None:
    if not isinstance(error, InputError):
        traceback.print_exception(error)
    console.print(f"{name} FAILED: {error}", style="red", markup=False)


def _measure(name: str, options: Options) -> Part:
    return importlib.import_module(f"experiments.benchmark.{name}").measure(options)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parts = "\n".join(f"  {name:<10} {what}" for name, what in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmark",
        description=f"{__doc__}\nparts:\n{parts}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="which parts (default: all)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all figures to this file, again after every part"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw every ratio as a bar into this PNG")
    parser.add_argument("--rounds", type=_positive, default=5, metavar="N", help="timed runs of each side (default: 5)")
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, to try the program; their figures mean nothing"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every random draw (default: 0)")
    args = parser.parse_args(arguments)
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    return args


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
