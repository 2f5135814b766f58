"""Find the cases of a data set, the file of each modality, and the meaning of label values.

All of it follows from layout and names, or from an explicit label map; voxel values are never consulted, because 4
means three different things across the years.
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
from data_pipeline.layouts.table import LAYOUTS, decision
from data_pipeline.layouts.tree import Overrides, nothing_found, read_tree
from data_pipeline.layouts.unused import unused_files
from data_pipeline.reading.clinical import dicom_answer


def find_cases(
    roots: str | Path | Sequence[str | Path], label_map: str | None = None, layout: str | None = None
) -> list[Case]:
    """All cases of one or several data sets, sorted by id.

    Args:
      roots: folders of data sets in any nesting ({HGG,LGG}/...), of one patient, or CSV files. Names are
        matched in any letter case; hidden files (`._*`) are skipped.
      label_map: meaning of the label values, "1=NCR,2=ED,4=ET"; None takes the layout's.
      layout: a name from `LAYOUTS`; None recognises the layout.

    Raises:
      InputError: a root is neither a folder nor a CSV, or has no case in a known layout; two cases share an id; a
        modality has two files; the label map or layout is not valid; the names leave the label convention open and
        there is no label map; a dataset.json or CSV cannot be used.

    Examples:
      >>> import kd_jax
      >>> [case] = kd_jax.find_cases("patient")
      >>> case.id, case.convention.meaning
      ('BraTS2021_00000', '1 NCR, 2 ED, 4 ET')
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"layout {layout}: not known; expected one of {', '.join(LAYOUTS)}")
    overrides = Overrides(layout, None if label_map is None else parse_label_map(label_map))
    roots = [roots] if isinstance(roots, str | Path) else roots
    cases: dict[str, Case] = {}
    for root in dict.fromkeys(map(Path, roots)):
        for case in _cases_under(root, overrides):
            if case.id in cases:
                raise InputError(
                    f"{root}: there are two cases {case.id}, in {_folder(cases[case.id])} and in {_folder(case)}; "
                    "case names must be unique: remove or rename one"
                )
            cases[case.id] = case
    return [cases[name] for name in sorted(cases)]


def describe(cases: Sequence[Case], roots: Sequence[Path] = ()) -> list[str]:
    """The decisions about a data set, in words.

    Returns:
      One line per layout and convention: how many cases, how they were recognised, the meaning of their labels; with
      `roots`, also one line for each finding about files that belong to no case.
    """
    counts = Counter((case.layout, case.convention.name, case.convention.meaning) for case in cases)
    decided = [decision(*kind, cases=count) for kind, count in sorted(counts.items())]
    return decided + [f"{finding.severity}: {finding}" for finding in unused_files(roots, cases)]


def _cases_under(root: Path, overrides: Overrides) -> list[Case]:
    if root.is_file() and root.suffix.lower() == ".csv":  # a layout is for folders
        return find_listed(root, overrides)
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise InputError(f"{root}: {found}; expected the folder of a data set or of one patient, or a CSV file")
    tree = read_tree(root)
    rest = without_datasets(tree)
    cases = []
    if overrides.layout in (None, "msd", "nnunet"):
        cases += find_in_datasets(tree, overrides)
    if overrides.layout in (None, "bids"):
        cases += find_bids(root, rest, overrides)
    cases += find_suffixed(without_bids(rest) if overrides.layout is None else rest, overrides)
    if not cases:
        require_dataset_json(tree)
        raise dicom_answer(root) or nothing_found(root, tree, overrides.layout)
    return cases


def _folder(case: Case) -> Path:
    return next(path for path in (*case.images.values(), case.label) if path is not None).parent
