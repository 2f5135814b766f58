"""NIfTI files that belong to no case: without this, a misspelt name would hide a file silently."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.case import Case
from data_pipeline.conventions import MODALITIES
from data_pipeline.layouts.table import LAYOUTS
from data_pipeline.layouts.tree import is_nifti, read_tree
from data_pipeline.reading.findings import Finding

_SHOWN = 3
_SHARED_FOLDERS = {LAYOUTS[name].title for name in ("msd", "nnunet", "bids", "csv")}
"""Layouts without a folder for each case: other folders next to theirs are not cases."""
_RENAME = "rename the files as in the other cases if they belong to a case"


def unused_files(roots: Sequence[Path], cases: Sequence[Case]) -> list[Finding]:
    """Report NIfTI files near the cases that are not used.

    Args:
      roots: as given to `layouts.find.find_cases`; a CSV lists its own files, so nothing near it is reported.
      cases: its result.

    Returns:
      Warnings for cases that lack a modality or label while an unused file lies in their folder, and for unused folders
      next to those of cases; a note that counts the rest.
    """
    used = {_absolute(path) for case in cases for path in (*case.images.values(), case.label) if path is not None}
    unused: dict[Path, list[Path]] = defaultdict(list)
    for folder, names in (item for root in roots if root.is_dir() for item in read_tree(root).items()):
        files = {_absolute(folder / name) for name in filter(is_nifti, names)} - used
        if files:
            unused[folder.resolve()] += sorted(files.difference(unused[folder.resolve()]))
    findings = list(_in_case_folders(cases, unused))
    findings += _in_other_folders(cases, unused)
    rest = [file for files in unused.values() for file in files]
    if rest:
        found = f"NIfTI files that belong to no case: {len(rest)}, for example {_names(rest)}"
        findings.append(Finding("note", None, found, "they are not read"))
    return findings


def _in_case_folders(cases: Sequence[Case], unused: dict[Path, list[Path]]) -> Iterator[Finding]:
    """Warnings about single cases; removes their files from `unused`."""
    inside: dict[Path, list[Case]] = defaultdict(list)
    for case in cases:
        for folder in {_absolute(path).parent for path in case.images.values()}:
            inside[folder].append(case)
    lacking = {case.id: missing for case in cases if (missing := _missing(case))}
    for folder in sorted(unused.keys() & inside.keys()):
        for case in inside[folder]:
            only_case = len(inside[folder]) == 1
            own = re.compile(rf"{re.escape(case.id)}(?![A-Za-z0-9]).*")
            files = [file for file in unused[folder] if only_case or own.fullmatch(file.name)]
            if case.id in lacking and files:
                found = f"{case.id} has no {', '.join(lacking[case.id])}, but its folder also holds {_names(files)}"
                yield Finding("warning", None, found, _RENAME)
                unused[folder] = [file for file in unused[folder] if file not in files]


def _missing(case: Case) -> list[str]:
    return [*(m for m in MODALITIES if m not in case.images), *([] if case.label else ["label"])]


def _in_other_folders(cases: Sequence[Case], unused: dict[Path, list[Path]]) -> Iterator[Finding]:
    """A warning about folders next to those of cases; removes their files from `unused`."""
    homes = {
        _absolute(path).parent for case in cases if case.layout not in _SHARED_FOLDERS for path in case.images.values()
    }
    parents = {home.parent for home in homes}
    others = [
        folder for folder, files in sorted(unused.items()) if files and folder not in homes and folder.parent in parents
    ]
    if others:
        files = [file for folder in others for file in unused.pop(folder)]
        found = f"no file in {_names(others)} is used, although cases lie next to it; for example {_names(files)}"
        yield Finding("warning", None, found, _RENAME)


def _absolute(path: Path) -> Path:
    """The absolute path under the file's own name: the file itself may be a link to somewhere else."""
    return path.parent.resolve() / path.name


def _names(paths: Sequence[Path]) -> str:
    more = len(paths) - _SHOWN
    return ", ".join(path.name for path in paths[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
