"""A case from NIfTI to cache on one core: read, checked, cropped, normalised and written, beside nnU-Net."""

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


def measure(options: Options) -> Part:
    """Seconds per case of four modalities and a label."""
    with TemporaryDirectory() as folder:
        write_cases(Path(folder) / "raw", CASES, options.seed, small=options.small)
        settings: dict[str, Any] = {"folder": folder, "patch": PATCH}
        sides = {OURS: Side("experiments.benchmark.prepare_sides:ours", settings, ONE_THREAD)}
        if not missing({"nnunetv2": NNUNET}):
            sides[NNUNET] = Side("experiments.benchmark.prepare_sides:nnunet", settings, ONE_THREAD)
        measured = compare(sides, options.rounds)
    shape = " x ".join(map(str, SMALL_SHAPE if options.small else BRATS_SHAPE))
    voxels = ", ".join(f"{name} {side.value:.0f}" for name, side in measured.items())
    return Part(
        "prepare",
        [time_figure(f"one case of {shape}, one core", measured, pieces=CASES)],
        [
            f"{CASES} cases as gzipped NIfTI; voxels left by the crop of the last: {voxels}",
            "ours checks files (gzip's checksum, NaN, background, grid) and hashes them for the cache's "
            "name; nnU-Net's writes compressed files (blosc2), ours .npy to be mapped into memory",
        ],
    )
