"""Cases listed in a CSV file: case,t1,t1ce,t2,flair,seg and optionally patient, in any order of columns."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from data_pipeline.case import Case
from data_pipeline.conventions import CONVENTIONS, MODALITIES
from data_pipeline.errors import FileError
from data_pipeline.layouts.table import LAYOUTS, patient_of
from data_pipeline.layouts.tree import Overrides, is_nifti

_SHOWN = 300
"""Most characters of a path in a message."""
_COLUMNS = ("case", *MODALITIES, "seg", "patient")


def find_listed(file: Path, overrides: Overrides) -> list[Case]:
    """The cases of a CSV file; paths are relative to its folder, an empty cell means that there is no file.

    Raises:
      FileError: the file cannot be read; a column is unknown; a row is too long or has no image; a file is missing or
        in two columns; a case is listed twice; there are labels but no label map. The message names the line.
    """
    cases: dict[str, tuple[int, Case]] = {}
    for line, row in _rows(file):
        case = _case(file, line, row, overrides)
        if case.id in cases:
            raise FileError(file, f"line {line}: case {case.id} is also in line {cases[case.id][0]}", "rename one")
        cases[case.id] = line, case
    if not cases:
        raise FileError(file, "lists no case", "expected a line for each case under the names of the columns")
    return [case for _, case in cases.values()]


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    try:
        reader = csv.reader(file.read_text("utf-8-sig").splitlines())
        header = [name.strip().lower() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(file, f"cannot be read as text ({error})", "save it as CSV in UTF-8") from error
    unknown = [name for name in header if name not in _COLUMNS]
    if unknown or len(set(header)) < len(header) or "case" not in header or not set(header) & set(MODALITIES):
        what = f"unknown column {unknown[0]!r}" if unknown else f"the columns {','.join(header)}"
        expected = f"expected case,{','.join(MODALITIES)},seg once each, separated by commas (patient may follow)"
        raise FileError(file, f"line 1: {what}", f"{expected}; case and one modality are needed")
    for line, row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(header):
            raise FileError(file, f"line {line}: {len(row)} cells under {len(header)} columns", "correct it")
        yield line, dict(zip(header, (cell.strip() for cell in row), strict=False))


def _case(file: Path, line: int, row: Mapping[str, str], overrides: Overrides) -> Case:
    name = row["case"]
    if not name or Path(name).name != name or "\\" in name:
        raise FileError(
            file, f"line {line}: {name!r} cannot name a case", "results are named after it: give a plain name"
        )
    images = {m: _path(file, line, row[m]) for m in MODALITIES if row.get(m)}
    if not images:
        raise FileError(file, f"line {line}: {name} has no image", "give one, or remove the line")
    label = _path(file, line, row["seg"]) if row.get("seg") else None
    _require_distinct(file, line, [*images.items(), *([("seg", label)] if label else [])])
    if label is not None and overrides.labels is None:
        remedy = 'pass --label-map (for training: --data.label_map), as in "1=NCR,2=ED,3=ET"'
        raise FileError(file, f"line {line}: a CSV does not say what the values of {label.name} mean", remedy)
    patient = row.get("patient") or patient_of(name)
    # Without a label only predictions are written, with the current BraTS values.
    labels = overrides.labels or CONVENTIONS["brats2023"]
    return Case(name, patient, MappingProxyType(images), label, labels, LAYOUTS["csv"].title)


def _require_distinct(file: Path, line: int, cells: Iterable[tuple[str, Path]]) -> None:
    columns: dict[Path, str] = {}
    for column, path in cells:
        if (twin := columns.setdefault(path.resolve(), column)) != column:
            raise FileError(
                file, f"line {line}: {twin} and {column} are the same file, {path.name}", "correct one of them"
            )


def _path(file: Path, line: int, cell: str) -> Path:
    path = file.parent / cell
    try:
        exists = path.is_file()
    except OSError:  # the name is too long for the file system
        exists = False
    if not exists:
        raise FileError(
            file, f"line {line}: {str(path)[:_SHOWN]} does not exist", "paths are relative to the folder of the CSV"
        )
    if not is_nifti(path.name):
        raise FileError(file, f"line {line}: {path.name} does not end in .nii or .nii.gz", "convert it to NIfTI")
    return path
