"""BIDS: sub-X[/ses-Y]/anat/sub-X[_ses-Y][_entities]_{T1w,T2w,FLAIR}, and segmentations *_dseg."""

import re
from pathlib import Path
from types import MappingProxyType

from data_pipeline.case import Case
from data_pipeline.conventions import CONVENTIONS, MODALITIES
from data_pipeline.errors import FileError
from data_pipeline.layouts.table import LAYOUTS, patient_of
from data_pipeline.layouts.tree import FileTree, Overrides

_FILE = re.compile(
    r"(?P<case>sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?)(?P<entities>(?:_[a-z]+-[A-Za-z0-9.]+)*)"
    r"_(?P<suffix>T1w|T2w|FLAIR|dseg)\.nii(\.gz)?"
)
_ROLES = {"T1w": "t1", "T2w": "t2", "FLAIR": "flair", "dseg": "seg"}


def without_bids(tree: FileTree) -> FileTree:
    """The tree without the files that are named as in BIDS."""
    return {folder: [name for name in names if not _FILE.fullmatch(name)] for folder, names in tree.items()}


def find_bids(root: Path, tree: FileTree, overrides: Overrides) -> list[Case]:
    """Cases named as in BIDS; under `derivatives` only segmentations are taken, images are not.

    Raises:
      FileError: a case has two files for a modality or its label; there is a label but no label map.
    """
    found: dict[str, dict[str, Path]] = {}
    for folder, names in tree.items():
        derived = "derivatives" in folder.relative_to(root).parts
        for name in names:
            match = _FILE.fullmatch(name)
            if match is None or (derived and match["suffix"] != "dseg"):
                continue
            role = "t1ce" if match["suffix"] == "T1w" and "_ce-" in match["entities"] else _ROLES[match["suffix"]]
            files = found.setdefault(match["case"], {})
            if role in files:
                remedy = "keep one of the two, or list the files in a CSV (case,t1,t1ce,t2,flair,seg) and give that"
                raise FileError(folder / name, f"{files[role]} is a second file for {role} of {match['case']}", remedy)
            files[role] = folder / name
    return [_case(case, files, overrides) for case, files in found.items() if set(files) != {"seg"}]


def _case(case: str, files: dict[str, Path], overrides: Overrides) -> Case:
    label = files.get("seg")
    if label is not None and overrides.labels is None:
        raise FileError(
            label,
            "BIDS does not say what label values mean",
            'pass --label-map (for training: --data.label_map), as in "1=NCR,2=ED,3=ET"',
        )
    images = MappingProxyType({m: files[m] for m in MODALITIES if m in files})
    # Without a label only predictions are written, with the current BraTS values.
    return Case(
        case, patient_of(case), images, label, overrides.labels or CONVENTIONS["brats2023"], LAYOUTS["bids"].title
    )
