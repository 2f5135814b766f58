"""A folder of phantoms: every case whole or absent, the same bytes for the same seed."""

import functools
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import platformdirs
from tqdm import tqdm

from data_pipeline.errors import InputError
from data_pipeline.files import folder_atomically, remove_abandoned, write_atomically, write_error
from data_pipeline.phantom.anatomy import load_anatomy, open_anatomy
from data_pipeline.phantom.make import make_case
from data_pipeline.phantom.write import write_files
from data_pipeline.workers import available_cores

RECIPE = 1
"""Version of the recipe: raised whenever a seed gives other voxels, so that no cache mixes two recipes."""
MANIFEST = "phantom.json"
SPACING_RANGE = (0.5, 8.0)  # mm
_ABANDONED = 3600.0  # seconds after which an unfinished case whose writer is unknown is removed


def case_name(case: int) -> str:
    """Name of a case's folder and the stem of its files."""
    return f"BraTS2021_{case:05d}"


def finished_cases(out: Path) -> list[str]:
    """Names of the complete phantoms in a folder; unfinished ones have hidden names."""
    return sorted(p.name for p in out.glob("BraTS2021_*") if re.fullmatch(r"BraTS2021_\d{5}", p.name))


def make_phantoms(
    out: Path, cases: int, seed: int, spacing: float = 2.0, workers: int | None = None, progress: bool = True
) -> Path:
    """Write phantoms 0 to `cases` - 1 of a seed, and keep those that exist.

    Args:
      out: folder to write to; made if absent.
      cases: how many.
      seed: of the data set; case i is the same for any `cases` and `workers`.
      spacing: isotropic voxel edge, mm.
      workers: processes; None takes one per core this process may use.
      progress: show a progress bar.

    Returns:
      `out`.

    Raises:
      InputError: a setting is out of range; `out` holds phantoms of another seed, spacing or recipe; it cannot be
        written.
    """
    _check(cases, seed, spacing, workers)
    _claim(out, seed, spacing)
    remove_abandoned(out, older_than=_ABANDONED)
    done = set(finished_cases(out))
    missing = [case for case in range(cases) if case_name(case) not in done]
    if missing:
        with _shared_anatomy(out) as anatomy:
            write = functools.partial(write_case, out, anatomy, seed, spacing)
            _run(write, missing, min(workers or available_cores(), len(missing)), progress=progress)
    return out


def phantom_folder(
    cases: int,
    seed: int,
    spacing: float = 2.0,
    cache: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """A folder of exactly `cases` phantoms in the cache, made on the first call.

    A larger set of the same seed and spacing shares the cases of a smaller one, as hard links where the file system
    has them.

    Args:
      cases: how many.
      seed: of the data set.
      spacing: isotropic voxel edge, mm.
      cache: folder to cache in; None takes `kd_jax` in the user's cache folder.
      workers: processes; None takes one per core.
      progress: show a progress bar.

    Raises:
      InputError: as `make_phantoms`.
    """
    _check(cases, seed, spacing, workers)
    root = (cache or Path(platformdirs.user_cache_dir("kd_jax"))) / "phantoms"
    family = root / f"recipe{RECIPE}-seed{seed}-{spacing:g}mm"
    folder = family / f"{cases}-cases"
    wanted = [case_name(case) for case in range(cases)]
    if finished_cases(folder) == wanted:
        return folder
    pool = make_phantoms(family / "pool", cases, seed, spacing, workers, progress)
    _claim(folder, seed, spacing)
    for name in wanted:
        if not (folder / name).exists():
            with folder_atomically(folder / name) as target:
                _link(pool / name, target)
    return folder


def write_case(out: Path, anatomy: Path, seed: int, spacing: float, case: int) -> str:
    """Make one phantom and write its folder; runs in a worker process.

    Raises:
      InputError: it cannot be written.
    """
    phantom = make_case(open_anatomy(anatomy), seed, case, spacing)
    name = case_name(case)
    with folder_atomically(out / name) as folder:
        write_files(folder, name, phantom, spacing)
    return name


@contextmanager
def _shared_anatomy(out: Path) -> Iterator[Path]:
    """The template as a file: reading it takes seconds, and all processes map one copy of it into memory."""
    try:
        with tempfile.TemporaryDirectory(prefix=".anatomy-", dir=out) as folder:
            path = Path(folder) / "anatomy.npy"
            load_anatomy().save(path)
            yield path
    except OSError as error:
        raise write_error(out, error) from error


def _check(cases: int, seed: int, spacing: float, workers: int | None) -> None:
    low, high = SPACING_RANGE
    if not 1 <= cases <= 99999:
        raise InputError(f"cases: {cases} phantoms requested; give a number from 1 to 99999")
    if seed < 0:
        raise InputError(f"seed: {seed} is negative; give 0 or more")
    if not (math.isfinite(spacing) and low <= spacing <= high):
        raise InputError(f"spacing: {spacing} mm; phantoms can be made at {low} to {high} mm")
    if workers is not None and workers < 1:
        raise InputError(f"workers: {workers}; give 1 or more processes")


def _claim(out: Path, seed: int, spacing: float) -> None:
    """Record what the folder holds, or refuse it if it holds something else."""
    path, wanted = out / MANIFEST, {"recipe": RECIPE, "seed": seed, "spacing": spacing}
    if path.exists():
        try:
            recorded = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path}: not valid JSON; delete the folder or choose another") from error
        if recorded != wanted:
            raise InputError(f"{path}: holds phantoms of {recorded}, requested {wanted}; choose another folder")
        return
    if finished_cases(out):
        raise InputError(f"{out}: holds cases but no {MANIFEST}, so they are not phantoms; choose another folder")
    write_atomically(path, (json.dumps(wanted) + "\n").encode())


def _run(write: Callable[[int], str], cases: Sequence[int], workers: int, *, progress: bool) -> None:
    """Write cases in this process or in several; the first failure ends the run, finished cases stay."""
    with tqdm(total=len(cases), desc="phantoms", disable=not progress) as bar:
        if workers == 1:
            for case in cases:
                write(case)
                bar.update()
            return
        # Spawned, not forked: the caller may run threads (JAX does), and a fork would copy their locks.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(write, case) for case in cases]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
            except BrokenProcessPool as error:
                raise InputError(
                    "a process making phantoms was killed, usually for lack of memory; finished cases are kept: run "
                    f"again with fewer than {workers} workers"
                ) from error
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _link(source: Path, target: Path) -> None:
    """Hard links to the files of a case, or copies where the file system has no links."""
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copyfile(file, target / file.name)
