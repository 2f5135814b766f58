"""A look at the cache before cases are prepared: which cases it holds, and whether the others fit on the disk."""

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data_pipeline.cache.entry import PreparedCase, entry_folder, read_meta
from data_pipeline.cache.estimate import prepared_bytes
from data_pipeline.cache.key import KEY_DIGITS, PreprocessingSettings, hash_files
from data_pipeline.case import Case
from data_pipeline.errors import InputError
from data_pipeline.files import remove_abandoned

_ABANDONED = 24 * 3600.0  # seconds; no case takes a day to write


@dataclass(frozen=True)
class Survey:
    """The state of the cache for a list of cases.

    Attributes:
      cache: folder of the prepared cases.
      total: how many cases there are.
      prepared: existing entries, by index of the case.
      damaged: entries whose arrays changed after they were written, by case id; looked for only on demand.
      outdated: entries of former contents with the same settings, by id of the cases whose files have changed.
      needed: bytes that the other cases will take, an upper estimate.
      free: bytes on the disk.
    """

    cache: Path
    total: int
    prepared: Mapping[int, PreparedCase]
    damaged: Mapping[str, Path]
    outdated: Mapping[str, Sequence[Path]]
    needed: int
    free: int

    @property
    def missing(self) -> int:
        """How many cases have to be prepared."""
        return self.total - len(self.prepared)

    def lines(self) -> list[str]:
        """The survey in words: cases, how many are prepared, disk use."""
        lines = [f"{self.total} cases, {len(self.prepared)} already prepared in {self.cache}"]
        if self.damaged:
            names = ", ".join(list(self.damaged)[:5]) + (", …" if len(self.damaged) > 5 else "")
            lines.append(f"{len(self.damaged)} entries are damaged on the disk and will be prepared again: {names}")
        if self.outdated:
            former = [folder for folders in self.outdated.values() for folder in folders]
            size = in_words(sum(file.stat().st_size for folder in former for file in folder.iterdir()))
            lines.append(
                f"{len(self.outdated)} cases changed since they were prepared, first {next(iter(self.outdated))}; "
                f"their old entries take {size} (kd-jax prepare --remove-outdated removes them)"
            )
        if self.missing:
            lines.append(f"{self.missing} to prepare: about {in_words(self.needed)} of {in_words(self.free)} free")
        return lines

    def require_space(self) -> None:
        """Refuse cases that will not fit on the disk.

        Raises:
          InputError: the estimate is above the free space.
        """
        if self.needed > self.free:
            raise InputError(
                f"{self.cache}: preparing {self.missing} cases takes about {in_words(self.needed)}, but only "
                f"{in_words(self.free)} are free; free some space, or give a folder on a larger disk with --cache DIR "
                "(for training: --data.cache DIR)"
            )


def survey_cases(
    cases: Sequence[Case],
    settings: PreprocessingSettings,
    cache: Path,
    *,
    workers: int,
    progress: bool = False,
    verify: bool = False,
) -> Survey:
    """Look every case up in the cache, and remove the unfinished entries of killed processes.

    Only cases with an entry are hashed; for the others one header is read, so that a first run starts at once.

    Args:
      cases: from `layouts.find.find_cases`.
      settings: how they are to be preprocessed.
      cache: folder of the prepared cases.
      workers: threads.
      progress: show a progress bar.
      verify: read the arrays of existing entries too, and tell which are damaged.
    """
    remove_abandoned(cache, older_than=_ABANDONED)
    entries = _entries(cache)
    look = partial(_look_up, entries=entries, settings=settings, cache=cache, verify=verify)
    # Threads: hashing and reading leave the interpreter free.
    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = list(
            tqdm(pool.map(look, cases), "Looking up cases", len(cases), leave=False, disable=not (progress and entries))
        )
    prepared = {place: entry for place, (entry, _, _) in enumerate(found) if entry is not None}
    damaged = {case.id: folder for case, (_, folder, _) in zip(cases, found, strict=True) if folder is not None}
    outdated = {case.id: former for case, (_, _, former) in zip(cases, found, strict=True) if former}
    needed = sum(prepared_bytes(case, settings.spacing) for i, case in enumerate(cases) if i not in prepared)
    return Survey(cache, len(cases), prepared, damaged, outdated, needed, _free_bytes(cache))


def _entries(cache: Path) -> dict[str, list[Path]]:
    """The entries of the cache by case id."""
    entries: dict[str, list[Path]] = defaultdict(list)
    if cache.is_dir():
        for folder in cache.iterdir():
            case, _, key = folder.name.rpartition("-")
            if len(key) == KEY_DIGITS:
                entries[case].append(folder)
    return entries


def _look_up(
    case: Case, entries: Mapping[str, Sequence[Path]], settings: PreprocessingSettings, cache: Path, *, verify: bool
) -> tuple[PreparedCase | None, Path | None, list[Path]]:
    """The case's entry, or its folder if it is damaged, and the entries of its former contents."""
    if not entries.get(case.id):
        return None, None, []
    try:
        hashes = hash_files(case)
    except InputError:  # reported when the case is prepared
        return None, None, []
    described = settings.describe(case)
    entry = PreparedCase.open(entry_folder(cache, case.id, described, hashes), case)
    metas = {folder: read_meta(folder) for folder in entries[case.id]}
    former = [
        folder
        for folder, meta in metas.items()
        if meta and meta.get("settings") == described and meta.get("sha256") != hashes
    ]
    if entry is not None and verify and not entry.intact():
        return None, entry.folder, sorted(former)
    return entry, None, sorted(former)


def _free_bytes(folder: Path) -> int:
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def in_words(count: int) -> str:
    """A number of bytes in GB or MB."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{count / unit:,.0f} {name}" if count >= 10 * unit else f"{count / unit:.1f} {name}"
