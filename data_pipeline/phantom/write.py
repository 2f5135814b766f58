"""A folder of phantoms: every case whole or absent, the same bytes for the same seed.

Cases are written as BraTS 2021 folders of NIfTI, so a phantom goes through the same reader as a patient.
"""

import contextlib
import functools
import gzip
import io
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import platformdirs
from jaxtyping import Shaped
from tqdm import tqdm

from data_pipeline.conventions import CONVENTIONS, MODALITIES
from data_pipeline.errors import InputError
from data_pipeline.phantom.anatomy import load_anatomy, open_anatomy
from data_pipeline.phantom.make import Phantom, image_grid, make_case
from data_pipeline.workers import available_cores

RECIPE = 1
"""Version of the recipe: raised whenever a seed gives other voxels, so that no cache mixes two recipes."""
MANIFEST = "phantom.json"
SPACING_RANGE = (0.5, 8.0)  # mm


def case_name(case: int) -> str:
    """Name of a case's folder and the stem of its files."""
    return f"BraTS2021_{case:05d}"


def finished_cases(out: Path) -> list[str]:
    """Names of the phantoms in a folder; one that is being written is not among them."""
    return sorted(p.name for p in out.glob("BraTS2021_*") if re.fullmatch(r"BraTS2021_\d{5}", p.name))


def make_phantoms(
    out: Path, cases: int, seed: int, spacing: float = 2.0, workers: int | None = None, progress: bool = True
) -> Path:
    """Write phantoms 0 to `cases` - 1 of a seed; those that are there already are kept.

    Args:
      out: folder to write to; made if absent.
      cases: how many.
      seed: of the data set; case i is the same whatever `cases` and `workers` are.
      spacing: isotropic voxel edge, mm.
      workers: processes; None: one per core this process may use.
      progress: show a progress bar.

    Returns:
      `out`.

    Raises:
      InputError: a setting is out of range, `out` holds phantoms of another seed, spacing or recipe, or
        it cannot be written.
    """
    _check(cases, seed, spacing, workers)
    with _told(out):
        out.mkdir(parents=True, exist_ok=True)
        _claim(out, {"recipe": RECIPE, "seed": seed, "spacing": spacing})
        done = set(finished_cases(out))
        missing = [case for case in range(cases) if case_name(case) not in done]
        if missing:
            with tempfile.TemporaryDirectory(prefix=".anatomy-", dir=out) as scratch:
                shared = Path(scratch) / "anatomy.npy"
                load_anatomy().save(shared)
                write = functools.partial(write_case, out, shared, seed, spacing)
                count = min(workers or available_cores(), len(missing))
                _run(write, missing, count, tqdm(total=len(missing), desc="phantoms", disable=not progress))
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

    A larger set of the same seed and spacing reuses the cases of a smaller one (hard links where the
    file system has them).

    Args:
      cases: how many.
      seed: of the data set.
      spacing: isotropic voxel edge, mm.
      cache: folder to cache in; None: `kd_jax` in the user's cache folder.
      workers: processes; None: one per core.
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
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder, {"recipe": RECIPE, "seed": seed, "spacing": spacing})
        for name in wanted:
            if not (folder / name).exists():
                _publish(folder, name, functools.partial(_link, pool / name))
    return folder


def write_case(out: Path, anatomy: Path, seed: int, spacing: float, case: int) -> str:
    """Make one phantom and write its folder; run in a worker process.

    Raises:
      InputError: it cannot be written.
    """
    phantom = make_case(open_anatomy(anatomy), seed, case, spacing)
    with _told(out):
        _publish(out, case_name(case), functools.partial(_write_files, phantom, spacing))
    return case_name(case)


def _check(cases: int, seed: int, spacing: float, workers: int | None) -> None:
    low, high = SPACING_RANGE
    if not 1 <= cases <= 99999:
        raise InputError(f"cases: {cases} phantoms asked for; give a number from 1 to 99999")
    if seed < 0:
        raise InputError(f"seed: {seed} is negative; give 0 or more")
    if not (math.isfinite(spacing) and low <= spacing <= high):
        raise InputError(f"spacing: {spacing} mm; phantoms can be made at {low} to {high} mm")
    if workers is not None and workers < 1:
        raise InputError(f"workers: {workers}; give 1 or more processes")


@contextlib.contextmanager
def _told(out: Path) -> Iterator[None]:
    """Turn a failure of the file system into one line for the person who chose the folder."""
    try:
        yield
    except BrokenProcessPool as error:
        raise InputError(
            f"{out}: a worker process was killed, usually for lack of memory; finished cases are kept, "
            "run again with fewer workers"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{out}: cannot write phantoms ({reason}); finished cases are kept, free some space or choose "
            "another folder and run again"
        ) from error


def _claim(out: Path, found: dict[str, float]) -> None:
    """Record what the folder holds, or refuse it if it holds something else."""
    path = out / MANIFEST
    if path.exists():
        try:
            recorded = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path}: not valid JSON; delete the folder or choose another") from error
        if recorded != found:
            raise InputError(f"{path}: holds phantoms of {recorded}, asked for {found}; choose another folder")
        return
    if finished_cases(out):
        raise InputError(f"{out}: holds cases but no {MANIFEST}, so they are no phantoms; choose another folder")
    handle, temporary = tempfile.mkstemp(prefix=".manifest-", dir=out)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(found) + "\n")
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _run(write: "functools.partial[str]", cases: Iterable[int], workers: int, bar: "tqdm[None]") -> None:
    """Write cases in this process or in several; the first failure ends the run."""
    with bar:
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
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _publish(out: Path, name: str, fill: "functools.partial[None]") -> None:
    """Fill a hidden folder and rename it to `name` in one step, so that a killed run leaves no half case."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=out))
    try:
        fill(temporary)
        temporary.chmod(0o755)
        try:
            temporary.rename(out / name)
        except OSError:
            # Another process made the same case in the meantime; its bytes are the same.
            if not (out / name).is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """Hard links to the files of a case, or copies where the file system has no links."""
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copyfile(file, target / file.name)


def _write_files(phantom: Phantom, spacing: float, folder: Path) -> None:
    """The five files of a case; `folder` is the hidden one, named `.<case>-<random>`."""
    name = folder.name[1 : 1 + len(case_name(0))]
    for modality in MODALITIES:
        _write_file(folder / f"{name}_{modality}.nii.gz", phantom.images[modality], spacing)
    label = CONVENTIONS["brats2018"].encode(phantom.label)
    _write_file(folder / f"{name}_seg.nii.gz", label, spacing)


def _write_file(path: Path, values: Shaped[np.ndarray, "d h w"], spacing: float) -> None:
    """One volume, stored as BraTS does (x and y reversed), as bytes that depend on the voxels alone."""
    # Reversing x and y and negating their axes describes the same points: BraTS files are stored LPS.
    origin = image_grid(spacing).origin
    last = [o + spacing * (n - 1) for o, n in zip(origin, values.shape, strict=True)]
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    affine[:3, 3] = last[0], last[1], origin[2]
    image = nib.Nifti1Image(np.ascontiguousarray(values[::-1, ::-1]), affine)
    image.header.set_xyzt_units("mm", "sec")
    buffer = io.BytesIO()
    # No file name and no time in the gzip header.
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=1, mtime=0) as stream:
        stream.write(image.to_bytes())
    path.write_bytes(buffer.getvalue())
