"""Fill the cache: prepare the missing cases in several processes."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from data_pipeline.cache.entry import PreparedCase, entry_folder, write_entry
from data_pipeline.cache.key import PreprocessingSettings, hash_files, require_unchanged, stamps
from data_pipeline.cache.survey import survey_cases
from data_pipeline.case import Case
from data_pipeline.conventions import Modality
from data_pipeline.errors import InputError
from data_pipeline.preprocessing.resample import as_spacing
from data_pipeline.preprocessing.subject import load_subject
from data_pipeline.reading.copies import find_copies
from data_pipeline.reading.findings import Severity, digest
from data_pipeline.workers import map_cases

SHOWN: Mapping[Severity, int] = MappingProxyType({"warning": 20, "note": 10})
"""Most lines about unusual cases, by severity; a finding that many cases share takes one line."""


def prepare_cases(
    cases: Sequence[Case],
    spacing: float | Sequence[float],
    cache: Path,
    *,
    workers: int,
    skip_bad: bool = False,
    skip_option: str = "--data.skip_bad true",
    progress: bool = True,
    ignore_affine: bool = False,
    remove_outdated: bool = False,
    verify: bool = False,
) -> list[PreparedCase]:
    """Prepare the cases that the cache does not hold yet, and return all of them in the order given.

    Args:
      cases: from `layouts.find.find_cases`; each needs a label file.
      spacing: target in mm, one number or one per canonical axis.
      cache: folder for the prepared cases; made if absent.
      workers: processes; 0 or 1 prepares in this one.
      skip_bad: print the cases that cannot be used to stderr and go on without them.
      skip_option: the command's option for that; for display.
      progress: print to stderr what has to be done and what is unusual about the cases, and show a progress bar.
      ignore_affine: see `load_subject`.
      remove_outdated: at the end, remove the entries of these cases' former contents.
      verify: read the existing entries too, and prepare damaged ones again.

    Raises:
      InputError: the cases will not fit on the disk; some cannot be used, all listed at once, one per line; no case is
        left; the cache cannot be written.
    """
    settings, cache = PreprocessingSettings(as_spacing(spacing), ignore_affine), Path(cache)
    survey = survey_cases(cases, settings, cache, workers=workers, progress=progress, verify=verify)
    if progress:
        print("\n".join(survey.lines()), file=sys.stderr)
    survey.require_space()
    for folder in survey.damaged.values():
        shutil.rmtree(folder)
    prepared = map_cases(
        partial(_prepare_case, settings=settings, cache=cache),
        cases,
        workers,
        doing="preparing",
        skip_bad=skip_bad,
        skip_option=skip_option,
        progress=progress and survey.missing > 0,
        known=survey.prepared,
    )
    if progress:
        for line in _unusual(prepared):
            print(line, file=sys.stderr)
    if remove_outdated:
        former = [folder for case in prepared for folder in survey.outdated.get(case.id, ())]
        for folder in former:
            shutil.rmtree(folder)
        print(f"removed {len(former)} entries of files that have changed", file=sys.stderr)
    return prepared


def _unusual(cases: Sequence[PreparedCase]) -> Iterator[str]:
    """Warnings and notes that a person should read before training on these cases."""
    for finding in find_copies((case.id, _image_hashes(case)) for case in cases):
        yield f"{finding.severity}: {finding}"
    findings = [(case.id, finding) for case in cases for finding in case.findings]
    for severity, shown in SHOWN.items():
        yield from digest(findings, severity, shown)


def _image_hashes(case: PreparedCase) -> dict[Modality, str]:
    """Hashes of the image files; a 4-D file, which holds all modalities, counts once."""
    files = case.modalities[:1] if case.source.channels else case.modalities
    return {m: case.sha256[m] for m in files}


def _prepare_case(case: Case, settings: PreprocessingSettings, cache: Path) -> PreparedCase | str:
    """The prepared case, or the problem with its files. A problem with the cache is raised: it concerns every case."""
    try:
        before = stamps(case)
        described, hashes = settings.describe(case), hash_files(case)
        folder = entry_folder(cache, case.id, described, hashes)
        # Another process may have finished it in the meantime.
        if (entry := PreparedCase.open(folder, case)) is not None:
            return entry
        subject = load_subject(case, settings.spacing, ignore_affine=settings.ignore_affine)
        require_unchanged(case, before)
    except InputError as problem:
        return str(problem)
    write_entry(folder, subject, described, hashes)
    entry = PreparedCase.open(folder, case)
    if entry is None:
        raise InputError(f"{folder}: is incomplete and cannot be replaced; remove this folder")
    return entry
