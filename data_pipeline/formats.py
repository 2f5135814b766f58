"""Find the cases under a folder and decide, by layout and file names, which file is which modality.

Layouts: BraTS 2018 to 2021 (`<case>_{t1,t1ce,t2,flair,seg}.nii.gz`, the TCIA BraTS-TCGA names among
them), BraTS 2023 (`<case>-{t1n,t1c,t2w,t2f,seg}.nii.gz`), and BraTS 2013 patients stored under 2018
file names. The meaning of label values follows from the layout or from an explicit label map; the
values themselves are never consulted, because 4 means three different things across the years.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_pipeline.conventions import CLASSES, CONVENTIONS, LabelConvention, Modality
from data_pipeline.errors import InputError


@dataclass(frozen=True)
class Case:
    """One time point of one patient on disk.

    Attributes:
      id: unique within a data set; the stem that the case's files share.
      patient: groups the time points of one patient; splits are made over patients.
      images: the modalities whose file exists.
      label: the label file, where there is one.
      convention: what the values of the label file mean, and what predictions are written in.
      layout: the layout that the names follow, for display.
      channels: which volume of a 4-D file a modality is; empty where every modality has a file of its own.
    """

    id: str
    patient: str
    images: Mapping[Modality, Path]
    label: Path | None
    convention: LabelConvention
    layout: str
    channels: Mapping[Modality, int] = field(default_factory=lambda: MappingProxyType({}))

    def __reduce__(self) -> tuple[Any, ...]:
        """Cases travel to worker processes; read-only mappings do not pickle, so they are rebuilt there."""
        c = self.convention
        parts = (c.name, dict(c.to_class), dict(c.from_class))
        return _rebuild, (self.id, self.patient, dict(self.images), self.label, parts, self.layout, dict(self.channels))


def _rebuild(
    case: str,
    patient: str,
    images: dict[Modality, Path],
    label: Path | None,
    convention: tuple[str, dict[int, int], dict[int, int]],
    layout: str,
    channels: dict[Modality, int],
) -> Case:
    name, to_class, from_class = convention
    read_only = LabelConvention(name, MappingProxyType(to_class), MappingProxyType(from_class))
    return Case(case, patient, MappingProxyType(images), label, read_only, layout, MappingProxyType(channels))


@dataclass(frozen=True)
class _Naming:
    """How a layout names the files of a case: `<case><separator><suffix>.nii[.gz]`, in any letter case."""

    separator: str
    images: Mapping[str, Modality]
    labels: tuple[str, ...]  # preferred first

    def pattern(self) -> re.Pattern[str]:
        suffixes = "|".join((*self.images, *self.labels))
        return re.compile(rf"(?P<case>.+){self.separator}(?P<suffix>{suffixes})\.nii(\.gz)?", re.IGNORECASE)


_NAMINGS = (
    # t1gd and GlistrBoost are the names of the TCIA BraTS-TCGA release; the corrected label is the better one.
    _Naming(
        "_",
        {"t1": "t1", "t1ce": "t1ce", "t1gd": "t1ce", "t2": "t2", "flair": "flair"},
        ("seg", "glistrboost_manuallycorrected", "glistrboost"),
    ),
    _Naming("-", {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}, ("seg",)),
)
_PATTERNS = tuple((naming, naming.pattern()) for naming in _NAMINGS)

# BraTS 2020's training case 355 is the only one whose label is not called <case>_seg: W39_1998.09.19_Segm.nii.
_STRAY_LABEL = re.compile(r".+_segm\.nii(\.gz)?", re.IGNORECASE)
# Only these keep the values of 2013. BraTS 2018 to 2020 took patients over under new names (Brats18_2013_2_1)
# and relabelled them.
_BRATS_2013 = re.compile(r"brats_2013_pat", re.IGNORECASE)
_TIME_POINT = re.compile(r"(BraTS-[A-Z]+-\d+)-\d+", re.IGNORECASE)
_TCGA = re.compile(r"(TCGA-\w{2}-\w{4})(_.+)?", re.IGNORECASE)

_UNDERSTOOD = (
    "BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz (BraTS 2018 to 2021, BraTS-TCGA; .nii too), "
    "BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz (BraTS 2023), "
    "brats_2013_pat0001_1/brats_2013_pat0001_1_{t1,t1ce,t2,flair,seg}.nii.gz (BraTS 2013)"
)


@dataclass
class _Group:
    """Files of one folder that share a stem, while they are collected."""

    case: str
    naming: _Naming
    files: dict[str, Path] = field(default_factory=dict)


def find_cases(root: Path, label_map: str | None = None) -> list[Case]:
    """All cases under a folder, sorted by id.

    Args:
      root: a data set in any nesting ({HGG,LGG}/...), or the folder of one patient. Names are
        matched in any letter case; hidden files (`._*`) are skipped.
      label_map: what the label values mean, "1=NCR,2=ED,4=ET", instead of what the layout says.

    Raises:
      InputError: `root` is not a folder or has no case in a layout that is understood; two cases
        share an id; one modality has two files; the label map is not valid; the names leave the
        label convention open (BraTS-PED) and there is no label map.
    """
    root = Path(root)
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise InputError(f"{root}: {found}; expected the folder of a data set or of one patient")
    override = None if label_map is None else parse_label_map(label_map)
    cases: dict[str, Case] = {}
    mha: Path | None = None
    for folder, files in _walk(root):
        mha = mha or next((folder / name for name in files if name.lower().endswith(".mha")), None)
        for case in _cases_of_folder(folder, files, override):
            if case.id in cases:
                raise InputError(
                    f"{root}: case {case.id} is there twice, in {_folder(cases[case.id])} and {folder}; "
                    "case names must be unique: remove or rename one"
                )
            cases[case.id] = case
    if not cases:
        raise _nothing_found(root, mha)
    return [cases[name] for name in sorted(cases)]


def parse_label_map(text: str) -> LabelConvention:
    """A label convention from "1=NCR,2=ED,4=ET".

    NET, NETC and CC (cystic component) belong to the class NCR, SNFH is ED, and RC (resection
    cavity) is background. Predictions are written with the first value named for a class.

    Raises:
      InputError: not in this form, an unknown class, a value named twice or outside 1 to 255, or a
        class without a value.
    """
    to_class, from_class = {0: 0}, {0: 0}
    for item in text.split(","):
        value, name = _map_item(item, text)
        index = _CLASS_OF_NAME[name]
        if value in to_class:
            raise InputError(f'label map "{text}": the value {value} is named twice; name each value once')
        to_class[value] = index
        from_class.setdefault(index, value)
    missing = [name for index, name in enumerate(CLASSES) if index not in from_class]
    if missing:
        raise InputError(
            f'label map "{text}": no value for {", ".join(missing)}; all of NCR (or NET), ED and ET need one'
        )
    return LabelConvention(f"label map {text}", MappingProxyType(to_class), MappingProxyType(from_class))


_CLASS_OF_NAME: Mapping[str, int] = MappingProxyType(
    {"BACKGROUND": 0, "RC": 0, "NCR": 1, "NET": 1, "NETC": 1, "CC": 1, "ED": 2, "SNFH": 2, "ET": 3}
)


def _map_item(item: str, text: str) -> tuple[int, str]:
    match = re.fullmatch(r"\s*(\d+)\s*=\s*(\w+)\s*", item)
    if match is None:
        raise InputError(
            f'label map "{text}": cannot read "{item}"; expected VALUE=CLASS pairs as in "1=NCR,2=ED,4=ET"'
        )
    value, name = int(match[1]), match[2].upper()
    if name not in _CLASS_OF_NAME:
        raise InputError(f'label map "{text}": unknown class {match[2]}; expected one of {", ".join(_CLASS_OF_NAME)}')
    if not 1 <= value <= 255:
        raise InputError(f'label map "{text}": value {value} is not allowed; 0 is background, classes are 1 to 255')
    return value, name


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders with their visible files, in sorted order, links followed but no folder visited twice."""
    seen: set[Path] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (real := Path(folder).resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield Path(folder), sorted(name for name in files if not name.startswith("."))


def _cases_of_folder(folder: Path, files: list[str], override: LabelConvention | None) -> list[Case]:
    groups: dict[tuple[str, str], _Group] = {}
    for name in files:
        for naming, pattern in _PATTERNS:
            if match := pattern.fullmatch(name):
                group = groups.setdefault((match["case"], naming.separator), _Group(match["case"], naming))
                _add(group, match["suffix"].lower(), folder / name)
    strays = [folder / name for name in files if _STRAY_LABEL.fullmatch(name)]
    stray = strays[0] if len(strays) == 1 and len(groups) == 1 else None
    return [_case(group, stray, override) for group in groups.values()]


def _add(group: _Group, suffix: str, path: Path) -> None:
    role = group.naming.images.get(suffix, suffix)
    if role in group.files:
        raise InputError(f"{path}: {group.files[role].name} is a second file for {role}; keep one of the two")
    group.files[role] = path


def _case(group: _Group, stray_label: Path | None, override: LabelConvention | None) -> Case:
    images = {modality: group.files[modality] for modality in group.naming.images.values() if modality in group.files}
    label = next((group.files[name] for name in group.naming.labels if name in group.files), stray_label)
    layout, convention = _convention(group, label, override)
    return Case(group.case, _patient(group.case), MappingProxyType(images), label, convention, layout)


def _convention(group: _Group, label: Path | None, override: LabelConvention | None) -> tuple[str, LabelConvention]:
    if group.naming.separator == "-":
        if label is not None and override is None and group.case.upper().startswith("BRATS-PED-"):
            raise InputError(
                f"{label}: BraTS-PED files mean 1 NCR, 2 ED, 3 ET in 2023 and 1 ET, 2 NET, 3 CC, 4 ED from 2024 on, "
                'under the same names; pass --label-map (to train: --data.label_map) "1=NCR,2=ED,3=ET" or '
                '"1=ET,2=NET,3=CC,4=ED"'
            )
        return "BraTS 2023", override or CONVENTIONS["brats2023"]
    if _BRATS_2013.match(group.case):
        return "BraTS 2013", override or CONVENTIONS["brats2013"]
    return "BraTS 2018-2021", override or CONVENTIONS["brats2018"]


def _patient(case: str) -> str:
    match = _TIME_POINT.fullmatch(case) or _TCGA.fullmatch(case)
    return match[1] if match else case


def _folder(case: Case) -> Path:
    return next(path for path in (*case.images.values(), case.label) if path is not None).parent


def _nothing_found(root: Path, mha: Path | None) -> InputError:
    if mha is not None:
        return InputError(
            f"{mha}: nibabel cannot read MHA files; convert them to NIfTI, for example with SimpleITK: "
            'sitk.WriteImage(sitk.ReadImage("in.mha"), "brats_2013_pat0001_1_flair.nii.gz")'
        )
    return InputError(f"{root}: no cases found; layouts that are understood: {_UNDERSTOOD}")
