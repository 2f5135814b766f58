"""What there is to do before cases are prepared: which are in the cache, and whether the rest fits on the disk."""

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
    """Cases held against the cache.

    Attributes:
      cache: folder of the prepared cases.
      total: how many cases there are.
      prepared: entries that are there, by place among the cases.
      damaged: entries whose arrays are not what was written, by the ids of their cases; looked for only on demand.
      outdated: entries with these settings and former contents, by the ids of cases whose files have changed since.
      needed: bytes that the other cases will take, estimated on the safe side.
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
        """How many cases are to be prepared."""
        return self.total - len(self.prepared)

    def lines(self) -> list[str]:
        """In words: cases, how many are prepared, disk use."""
        lines = [f"{self.total} cases, {len(self.prepared)} of them prepared already in {self.cache}"]
        if self.damaged:
            names = ", ".join(list(self.damaged)[:5]) + (", …" if len(self.damaged) > 5 else "")
            lines.append(f"{len(self.damaged)} entries are damaged on the disk and will be prepared anew: {names}")
        if self.outdated:
            former = [folder for folders in self.outdated.values() for folder in folders]
            size = in_words(sum(file.stat().st_size for folder in former for file in folder.iterdir()))
            lines.append(
                f"{len(self.outdated)} cases changed since they were prepared, first {next(iter(self.outdated))}; "
                f"their former entries hold {size} (prepare --remove-outdated)"
            )
        if self.missing:
            lines.append(f"{self.missing} to prepare: about {in_words(self.needed)} of {in_words(self.free)} free")
        return lines

    def require_space(self) -> None:
        """Refuses what will not fit.

        Raises:
          InputError: the estimate is above the free space.
        """
        if self.needed > self.free:
            raise InputError(
                f"{self.cache}: preparing {self.missing} cases takes about {in_words(self.needed)}, and "
                f"{in_words(self.free)} are free; free space, or give a folder on a larger disk with --cache DIR (to "
                "train: --data.cache DIR)"
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
    """Clear what killed processes left, and look every case up.

    Only cases with an entry are hashed; of the others, one header is read. To `verify` is to read the entries too.
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
    """Folders of the cache by case."""
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
    """The case's entry, or its folder if that was found damaged, and the entries of its former contents."""
    if not entries.get(case.id):
        return None, None, []
    try:
        hashes = hash_files(case)
    except InputError:  # said when the case is prepared
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
    """Bytes in GB or MB."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{count / unit:,.0f} {name}" if count >= 10 * unit else f"{count / unit:.1f} {name}"
