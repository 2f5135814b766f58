"""Layouts with the modality as a suffix of the file name: BraTS of all years, UPenn-GBM, UCSF-PDGM."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from data_pipeline.case import Case
from data_pipeline.conventions import CONVENTIONS, MODALITIES, LabelConvention
from data_pipeline.errors import FileError, InputError
from data_pipeline.layouts.table import LAYOUTS, patient_of
from data_pipeline.layouts.tree import FileTree, Overrides


@dataclass(frozen=True)
class _Naming:
    """How the files of a case are named: `<case><separator><suffix>.nii[.gz]`, in any letter case.

    Attributes:
      layouts: the layouts that use this naming.
      case: pattern of case names; ignored if the user gave the layout.
      separator: between case and suffix.
      roles: role of each suffix ("seg" is the label); of several suffixes for a role, the first existing one is used.
      across_folders: images and labels of a case lie in different folders.
    """

    layouts: tuple[str, ...]
    case: str
    separator: str
    roles: Mapping[str, str]
    across_folders: bool = False

    def pattern(self, case: str) -> re.Pattern[str]:
        suffixes = "|".join(self.roles)
        return re.compile(rf"(?P<case>{case}){self.separator}(?P<suffix>{suffixes})\.nii(\.gz)?", re.IGNORECASE)


# t1gd and GlistrBoost are names of the TCIA BraTS-TCGA release; its manually corrected label is preferred.
_BRATS = {"t1": "t1", "t1ce": "t1ce", "t1gd": "t1ce", "t2": "t2", "flair": "flair", "seg": "seg"}
_GLISTR = {"glistrboost_manuallycorrected": "seg", "glistrboost": "seg"}
# UCSF-PDGM has files with and without bias correction; those without resemble the other data sets.
_UCSF = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair", "tumor_segmentation": "seg"}
_UCSF_BIAS = {"t1_bias": "t1", "t1c_bias": "t1ce", "t2_bias": "t2", "flair_bias": "flair"}
_UPENN = {"t1": "t1", "t1gd": "t1ce", "t2": "t2", "flair": "flair", "segm": "seg", "automated_approx_segm": "seg"}
_UPENN_IMAGES = "images_structural"
_UPENN_LABELS = {"images_segm": "segm", "automated_segm": "automated_approx_segm"}
_YEARLY = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair", "seg": "seg"}

# The first naming that fits a file is used.
_NAMINGS = (
    _Naming(("upenn-gbm",), r"UPENN-GBM-\d+_\d+", "_", _UPENN, across_folders=True),
    _Naming(("ucsf-pdgm",), r"UCSF-PDGM-\d+(?:_FU\d+d)?", "_", {**_UCSF, **_UCSF_BIAS}),
    # Only these keep the values of 2013. BraTS 2018 to 2020 took over patients under new names (Brats18_2013_2_1) and
    # relabelled them.
    _Naming(("brats2013",), r"brats_(?:2013|tcia)_pat.+?", "_", _BRATS),
    _Naming(("brats2018",), ".+?", "_", {**_BRATS, **_GLISTR}),
    _Naming(("brats2023", "brats2024"), ".+?", "-", _YEARLY),
)
_CONVENTION = MappingProxyType({"brats2013": "brats2013", "brats2023": "brats2023", "brats2024": "brats2024"})

# BraTS 2020's training case 355 is the only one whose label is not called <case>_seg: W39_1998.09.19_Segm.nii.
_STRAY_LABEL = re.compile(r".+_segm\.nii(\.gz)?", re.IGNORECASE)
# BraTS2024-GLI, BraTS-PEDs2024_Training, ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData.
_YEAR = re.compile(r"brats(?:[-_ ]?(?:gli|ssa|men|rt|mets?|peds?))*[-_ ]?(20[2-9]\d)(?!\d)", re.IGNORECASE)
_POST_TREATMENT = re.compile(r"BraTS-[A-Z]+-\d+-[1-9]\d\d+", re.IGNORECASE)
_PAEDIATRIC = re.compile(r"BraTS-PED-.+", re.IGNORECASE)
# Before any treatment there is no cavity.
_UNTREATED = re.compile(r"BraTS-(SSA|MEN)-.+", re.IGNORECASE)


@dataclass
class _Group:
    """Files of one case while they are collected: by role, then by rank of the suffix; the lowest rank is preferred."""

    case: str
    naming: _Naming
    folder: Path
    files: dict[str, dict[int, Path]] = field(default_factory=dict)

    def add(self, suffix: str, path: Path) -> None:
        role, rank = self.naming.roles[suffix], list(self.naming.roles).index(suffix)
        ranked = self.files.setdefault(role, {})
        # Neither of t1ce and t1gd is preferred; of two labels or two corrections, one is.
        twin = next((k for k in ranked if k == rank or {self._plain(k), self._plain(rank)} == {"t1ce", "t1gd"}), None)
        if twin is not None:
            raise FileError(path, f"{ranked[twin].name} is a second file for {role}", "keep one of the two")
        ranked[rank] = path

    def _plain(self, rank: int) -> str:
        return list(self.naming.roles)[rank]

    def best(self, role: str) -> Path | None:
        ranked = self.files.get(role, {})
        return ranked[min(ranked)] if ranked else None


def find_suffixed(tree: FileTree, overrides: Overrides) -> list[Case]:
    """Cases whose files name the modality in a suffix.

    Raises:
      InputError: a modality has two files; the year of BraTS-PED cases is not known.
    """
    patterns = [
        (naming, naming.pattern(naming.case if overrides.layout is None else ".+?"))
        for naming in _NAMINGS
        if overrides.layout is None or overrides.layout in naming.layouts
    ]
    groups: dict[tuple[str, str, Path | None], _Group] = {}
    cases = []
    for folder, names in tree.items():
        here = _collect(folder, names, patterns, groups)
        if len(here) == 1 and (stray := _stray_label(folder, names, here[0])):
            here[0].files["seg"] = {0: stray}
    for group in groups.values():
        # A label without images is not a case: another folder has them.
        if not group.naming.across_folders or set(group.files) != {"seg"}:
            cases.append(_case(group, overrides))
    return cases


def _collect(
    folder: Path,
    names: list[str],
    patterns: list[tuple[_Naming, re.Pattern[str]]],
    groups: dict[tuple[str, str, Path | None], _Group],
) -> list[_Group]:
    """Put the files of a folder into groups, and return the groups they went into."""
    here: dict[int, _Group] = {}
    for name in names:
        for naming, pattern in patterns:
            if match := pattern.fullmatch(name):
                key = match["case"], naming.layouts[0], None if naming.across_folders else folder
                group = groups.setdefault(key, _Group(match["case"], naming, folder))
                group.add(match["suffix"].lower(), folder / name)
                here[id(group)] = group
                break
    return list(here.values())


def _stray_label(folder: Path, names: list[str], group: _Group) -> Path | None:
    if "brats2018" not in group.naming.layouts or "seg" in group.files:
        return None
    strays = [folder / name for name in names if _STRAY_LABEL.fullmatch(name)]
    if len(strays) > 1:
        raise FileError(strays[1], f"{strays[0].name} is a second file for seg of {group.case}", "keep one of the two")
    return strays[0] if strays else None


def _label_elsewhere(group: _Group) -> Path | None:
    """The label of a UPenn-GBM case if the given folder holds images alone."""
    home = next((folder for folder in group.folder.absolute().parents if folder.name == _UPENN_IMAGES), None)
    if home is None or not group.naming.across_folders:
        return None
    places = (
        home.parent / folder / f"{group.case}_{suffix}{ending}"
        for folder, suffix in _UPENN_LABELS.items()
        for ending in (".nii.gz", ".nii")
    )
    return next(filter(Path.is_file, places), None)


def _case(group: _Group, overrides: Overrides) -> Case:
    images = {m: file for m in MODALITIES if (file := group.best(m)) is not None}
    label = group.best("seg") or _label_elsewhere(group)
    layout, convention = _decide(group, label, overrides)
    title = LAYOUTS[layout].title
    return Case(group.case, patient_of(group.case), MappingProxyType(images), label, convention, title)


def _decide(group: _Group, label: Path | None, overrides: Overrides) -> tuple[str, LabelConvention]:
    """Layout and label convention of a case."""
    layout, paediatric = overrides.layout, _PAEDIATRIC.fullmatch(group.case)
    if layout is None:
        layout = group.naming.layouts[0]
        if layout == "brats2023":
            year = _year(group)
            if paediatric and year is None and overrides.labels is None:
                raise _unknown_year(label or group.folder)
            layout = "brats2024" if year is not None and year >= 2024 else "brats2023"
    if overrides.labels is not None:
        return layout, overrides.labels
    name = _CONVENTION.get(layout, "brats2018")
    if name == "brats2024" and paediatric:
        name = "brats2024-ped"
    elif name == "brats2024" and _UNTREATED.fullmatch(group.case):
        name = "brats2023"
    return layout, CONVENTIONS[name]


def _year(group: _Group) -> int | None:
    """The year of the release, by the time point or by the innermost folder that names a year."""
    # Time points of the post-treatment cases of 2024 are counted from 100, earlier ones from 000.
    if _POST_TREATMENT.fullmatch(group.case) and not _PAEDIATRIC.fullmatch(group.case):
        return 2024
    folder = group.folder.absolute()
    years = [int(match[1]) for part in (folder, *folder.parents) if (match := _YEAR.search(part.name))]
    return next((year for year in years if year >= 2023), None)


def _unknown_year(path: Path) -> InputError:
    """The error for BraTS-PED without a year; a case without a label needs it too, to write predictions."""
    return FileError(
        path,
        "BraTS-PED files mean 1 NCR, 2 ED, 3 ET in 2023 and 1 ET, 2 NET, 3 CC, 4 ED from 2024 on, under the same names",
        "pass --layout brats2023 or --layout brats2024 (for training: --data.layout), or --label-map (for training: "
        '--data.label_map) "1=NCR,2=ED,3=ET" or "1=ET,2=NET,3=CC,4=ED"',
    )
