"""The visible files under a folder, and the error if none of them belongs to a case."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.conventions import LabelConvention
from data_pipeline.errors import InputError
from data_pipeline.layouts.table import LAYOUTS

FileTree = Mapping[Path, list[str]]
"""Folders, with the sorted names of their visible files."""

_SHOWN = 3
_NIFTI = re.compile(r".+\.nii(\.gz)?", re.IGNORECASE)


@dataclass(frozen=True)
class Overrides:
    """The user's decisions that replace those by names.

    Attributes:
      layout: name of the only layout to look for; None looks for all.
      labels: meaning of label values; None takes the layout's.
    """

    layout: str | None
    labels: LabelConvention | None


def is_nifti(name: str) -> bool:
    """Whether a file is NIfTI, judging by its name."""
    return _NIFTI.fullmatch(name) is not None


def read_tree(root: Path) -> FileTree:
    """All folders under `root` with their visible files; links are followed, but no folder is visited twice."""
    return dict(_walk(root))


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    seen: set[Path] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (real := Path(folder).resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield Path(folder), sorted(name for name in files if not name.startswith("."))


def nothing_found(root: Path, tree: FileTree, layout: str | None) -> InputError:
    """The error for a folder without cases: its contents, and what to do."""
    files = [folder / name for folder, names in tree.items() for name in names]
    if mha := next((file for file in files if file.suffix.lower() == ".mha"), None):
        return _convert_mha(root, mha)
    examples = [str(file.relative_to(root)) for file in sorted(files, key=lambda file: not is_nifti(file.name))]
    found = f"{len(files)} files, for example {', '.join(examples[:_SHOWN])}" if files else "no file"
    if layout is not None:
        return InputError(
            f"{root}: no cases in the layout {layout}, {LAYOUTS[layout].example}; found {found}; omit --layout, or "
            f"give another of {', '.join(LAYOUTS)}"
        )
    understood = "".join(f"\n  {known.example}" for known in LAYOUTS.values())
    return InputError(
        f"{root}: no cases found; found {found}; name the files as in one of these, or list them in a CSV:" + understood
    )


def _convert_mha(root: Path, mha: Path) -> InputError:
    """The error for a BraTS 2013 or 2015 release, with commands that make NIfTI files under later years' names."""
    source, target = root.absolute(), root.absolute().with_name(f"{root.absolute().name}_nifti")
    return InputError(
        f"{mha}: nibabel cannot read MHA files; convert them to NIfTI with SimpleITK and give {target}:\n"
        + _RECIPE.format(source=str(source), target=str(target))
    )


# The folders are HGG/<patient>/VSD.Brain.XX.O.MR_Flair.54512/VSD.Brain.XX.O.MR_Flair.54512.mha, labels are …OT.….
_RECIPE = """python -m pip install SimpleITK
python - <<'END'
import re
from pathlib import Path
import SimpleITK

source, target = Path({source!r}), Path({target!r})
names = {{"mr_t1": "t1", "mr_t1c": "t1ce", "mr_t2": "t2", "mr_flair": "flair", "ot": "seg"}}
for file in sorted(source.rglob("*.mha")):
    role = re.search(r"\\.(MR_T1c|MR_T1|MR_T2|MR_Flair|OT)\\.", file.name, re.IGNORECASE)
    patient = next((p.name for p in file.parents if p.name.lower().startswith("brats_")), None)
    if role is None or patient is None:
        print("left out:", file)
        continue
    image = SimpleITK.ReadImage(str(file))
    out = target / patient / (patient + "_" + names[role[1].lower()] + ".nii.gz")
    out.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(out))
END"""
