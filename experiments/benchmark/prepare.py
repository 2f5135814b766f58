"""A case from NIfTI to cache on one core: read, checked, cropped, normalised and written, by us and by nnU-Net.

And the check alone: every voxel read, every check made, and a picture drawn.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments.benchmark.figures import Options, Part
from experiments.benchmark.machine import missing
from experiments.benchmark.prepare_task import ONE_THREAD, SMALL_SHAPE, write_cases
from experiments.benchmark.sides import OURS, Side, compare, time_figure
from experiments.benchmark.workload import BRATS_SHAPE

NNUNET = "nnU-Net"
CASES, PATCH = 2, 128
DATA_SET, CORES = 1251, 16
"""Training cases of BraTS 2021, and the machine that the estimate is for."""
_CHECK = "check"


def measure(options: Options) -> Part:
    """Seconds per case of four modalities and a label."""
    with TemporaryDirectory() as folder:
        write_cases(Path(folder) / "raw", CASES, options.seed, small=options.small)
        settings: dict[str, Any] = {"folder": folder, "patch": PATCH}
        functions = {OURS: "ours", _CHECK: "check"}
        if not missing({"nnunetv2": NNUNET}):
            functions[NNUNET] = "nnunet"
        sides = {
            name: Side(f"experiments.benchmark.prepare_sides:{function}", settings, ONE_THREAD)
            for name, function in functions.items()
        }
        measured = compare(sides, options.rounds)
    check = measured.pop(_CHECK)
    shape = " x ".join(map(str, SMALL_SHAPE if options.small else BRATS_SHAPE))
    voxels = ", ".join(f"{name} {side.value:.0f}" for name, side in measured.items())
    return Part(
        "prepare",
        [
            time_figure(f"one case of {shape}, one core", measured, pieces=CASES),
            time_figure(f"the check of a case of {shape}, one core", {OURS: check}, pieces=CASES),
        ],
        [
            f"{CASES} cases as gzipped NIfTI; voxels left by the crop of the last: {voxels}",
            "ours checks files (gzip's checksum, NaN, background, grid) and hashes them for the cache's "
            "name; nnU-Net's writes compressed files (blosc2), ours .npy to be mapped into memory, and waits until "
            "they are on the disk",
            f"{DATA_SET:,} cases on {CORES} cores, if these wait neither for the disk nor for each other: "
            + ", ".join(
                f"{name} {_minutes(side.median / CASES):.1f} minutes"
                for name, side in {"check": check, "prepare": measured[OURS]}.items()
            ),
        ],
    )


def _minutes(seconds: float) -> float:
    """Minutes for the whole data set, from the seconds of one case on one core."""
    return DATA_SET * seconds / CORES / 60
