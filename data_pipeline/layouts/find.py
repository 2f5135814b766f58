"""Find the cases of a data set and decide, by layout and names, which file is which modality.

`layouts` knows the ways in which the data sets of the field lie on disk. The meaning of label values follows from
the layout or from an explicit label map; the values themselves are never consulted, because 4 means three
different things across the years.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.case import Case
from data_pipeline.errors import InputError
from data_pipeline.layouts.bids import find_bids, without_bids
from data_pipeline.layouts.datasets import find_in_datasets, require_dataset_json, without_datasets
from data_pipeline.layouts.label_map import parse_label_map
from data_pipeline.layouts.listed import find_listed
from data_pipeline.layouts.suffixes import find_suffixed
from data_pipeline.layouts.table import LAYOUT_HELP, LAYOUTS, decision
from data_pipeline.layouts.tree import Wanted, nothing_found, read_tree
from data_pipeline.layouts.unused import unused_files
from data_pipeline.reading.clinical import dicom_answer

__all__ = ["LAYOUTS", "LAYOUT_HELP", "Case", "describe", "find_cases"]


def find_cases(roots: Path | Sequence[Path], label_map: str | None = None, layout: str | None = None) -> list[Case]:
    """All cases of one or several data sets, sorted by id.

    Args:
      roots: folders of data sets in any nesting ({HGG,LGG}/...), of one patient, or CSV files. Names are
        matched in any letter case; hidden files (`._*`) are skipped.
      label_map: what the label values mean, "1=NCR,2=ED,4=ET", instead of what the layout says.
      layout: name of `LAYOUTS` that the files are taken for; None recognises it.

    Raises:
      InputError: a root is neither a folder nor a CSV, or has no case in a layout that is understood; two
        cases share an id; one modality has two files; the label map or layout is not valid; the names leave
        the label convention open and there is no label map; from `layouts`.
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"layout {layout}: not known; expected one of {', '.join(LAYOUTS)}")
    wanted = Wanted(layout, None if label_map is None else parse_label_map(label_map))
    roots = [roots] if isinstance(roots, str | Path) else roots
    cases: dict[str, Case] = {}
    for root in dict.fromkeys(map(Path, roots)):
        for case in _cases_under(root, wanted):
            if case.id in cases:
                raise InputError(
                    f"{root}: case {case.id} is there twice, in {_folder(cases[case.id])} and {_folder(case)}; "
                    "case names must be unique: remove or rename one"
                )
            cases[case.id] = case
    return [cases[name] for name in sorted(cases)]


def describe(cases: Sequence[Case], roots: Sequence[Path] = ()) -> list[str]:
    """What was decided and what was left aside, in words.

    Returns:
      One line per layout and convention: how many cases, by what they were recognised, what their labels mean; with
      `roots`, one for each finding about files there that belong to no case.
    """
    counts = Counter((case.layout, case.convention.name, case.convention.meaning) for case in cases)
    decided = [decision(*kind, cases=count) for kind, count in sorted(counts.items())]
    return decided + [f"{finding.severity}: {finding}" for finding in unused_files(roots, cases)]


def _cases_under(root: Path, wanted: Wanted) -> list[Case]:
    if root.is_file() and root.suffix.lower() == ".csv":  # a layout is for folders
        return find_listed(root, wanted)
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise InputError(f"{root}: {found}; expected the folder of a data set or of one patient, or a CSV file")
    tree = read_tree(root)
    rest = without_datasets(tree)
    cases = []
    if wanted.layout in (None, "msd", "nnunet"):
        cases += find_in_datasets(tree, wanted)
    if wanted.layout in (None, "bids"):
        cases += find_bids(root, rest, wanted)
    cases += find_suffixed(without_bids(rest) if wanted.layout is None else rest, wanted)
    if not cases:
        require_dataset_json(tree)
        raise dicom_answer(root) or nothing_found(root, tree, wanted.layout)
    return cases


def _folder(case: Case) -> Path:
    return next(path for path in (*case.images.values(), case.label) if path is not None).parent
