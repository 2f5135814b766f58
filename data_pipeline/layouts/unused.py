"""NIfTI files that belong to no case: what a wrong name would otherwise hide."""

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
"""Layouts without a folder for each case: what lies beside their folders is no case."""
_RENAME = "rename them as in the other cases if they belong to them"


def unused_files(roots: Sequence[Path], cases: Sequence[Case]) -> list[Finding]:
    """What lies beside the files of the cases and is not used.

    Args:
      roots: as `layouts.find.find_cases` was given them; a CSV says itself what is used.
      cases: what it found.

    Returns:
      Warnings for a case that lacks a modality or its label while another file lies beside its own, and for folders
      beside those of cases; a note that counts the rest.
    """
    used = {_placed(path) for case in cases for path in (*case.images.values(), case.label) if path is not None}
    unused: dict[Path, list[Path]] = defaultdict(list)
    for folder, names in (item for root in roots if root.is_dir() for item in read_tree(root).items()):
        files = {_placed(folder / name) for name in filter(is_nifti, names)} - used
        if files:
            unused[folder.resolve()] += sorted(files.difference(unused[folder.resolve()]))
    findings = list(_beside_cases(cases, unused))
    findings += _beside_folders(cases, unused)
    rest = [file for files in unused.values() for file in files]
    if rest:
        found = f"NIfTI files that belong to no case: {len(rest)}, for example {_names(rest)}"
        findings.append(Finding("note", None, found, "they are not read"))
    return findings


def _beside_cases(cases: Sequence[Case], unused: dict[Path, list[Path]]) -> Iterator[Finding]:
    """Also takes them out of `unused`."""
    inside: dict[Path, list[Case]] = defaultdict(list)
    for case in cases:
        for folder in {_placed(path).parent for path in case.images.values()}:
            inside[folder].append(case)
    wanting = {case.id: lacks for case in cases if (lacks := _lacks(case))}
    for folder in sorted(unused.keys() & inside.keys()):
        for case in inside[folder]:
            alone = len(inside[folder]) == 1
            own = re.compile(rf"{re.escape(case.id)}(?![A-Za-z0-9]).*")
            files = [file for file in unused[folder] if alone or own.fullmatch(file.name)]
            if case.id in wanting and files:
                found = f"{case.id} has no {', '.join(wanting[case.id])}, but beside its files {_names(files)}"
                yield Finding("warning", None, found, _RENAME)
                unused[folder] = [file for file in unused[folder] if file not in files]


def _lacks(case: Case) -> list[str]:
    return [*(m for m in MODALITIES if m not in case.images), *([] if case.label else ["label"])]


def _beside_folders(cases: Sequence[Case], unused: dict[Path, list[Path]]) -> Iterator[Finding]:
    """Also takes them out of `unused`."""
    homes = {
        _placed(path).parent for case in cases if case.layout not in _SHARED_FOLDERS for path in case.images.values()
    }
    parents = {home.parent for home in homes}
    others = [
        folder for folder, files in sorted(unused.items()) if files and folder not in homes and folder.parent in parents
    ]
    if others:
        files = [file for folder in others for file in unused.pop(folder)]
        found = f"no file in {_names(others)} is used, beside folders of cases; for example {_names(files)}"
        yield Finding("warning", None, found, _RENAME)


def _placed(path: Path) -> Path:
    """Absolute, but under its own name: the file itself may be a link to somewhere else."""
    return path.parent.resolve() / path.name


def _names(paths: Sequence[Path]) -> str:
    more = len(paths) - _SHOWN
    return ", ".join(path.name for path in paths[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
