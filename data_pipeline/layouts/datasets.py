"""Layouts with a dataset.json: nnU-Net's raw folders and MSD Task01."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from data_pipeline.case import Case
from data_pipeline.conventions import CONVENTIONS, MODALITIES, LabelConvention, Modality
from data_pipeline.errors import FileError
from data_pipeline.layouts.dataset_json import DatasetJson, label_convention, read_dataset_json
from data_pipeline.layouts.table import LAYOUTS, patient_of
from data_pipeline.layouts.tree import FileTree, Overrides, is_nifti

DATASET_FILE = "dataset.json"
_IMAGES = {"imagesTr": "labelsTr", "imagesTs": "labelsTs"}
_NUMBERED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})\.nii(\.gz)?")


def image_folders(tree: FileTree) -> Iterator[tuple[Path, Path]]:
    """Folders of images that a dataset.json describes, each with that file; the root may be such a folder itself."""
    for folder in tree:
        if folder.absolute().name in _IMAGES and (file := folder.absolute().parent / DATASET_FILE).is_file():
            yield folder, file


def without_datasets(tree: FileTree) -> FileTree:
    """The tree without the folders that a dataset.json describes."""
    claimed = {folder.absolute().parent for folder, _ in image_folders(tree)}
    return {
        folder: names
        for folder, names in tree.items()
        if folder.absolute().parent not in claimed or folder.absolute().name not in {*_IMAGES, *_IMAGES.values()}
    }


def find_in_datasets(tree: FileTree, overrides: Overrides) -> list[Case]:
    """Cases of folders with a dataset.json.

    Raises:
      FileError: a dataset.json cannot be used (see `dataset_json`); a file belongs to a channel that it does not name.
    """
    cases = []
    for folder, file in image_folders(tree):
        names = [name for name in tree[folder] if is_nifti(name)]
        layout = "nnunet" if any(_NUMBERED.fullmatch(name) for name in names) else "msd"
        if names and overrides.layout in (None, layout):
            dataset = read_dataset_json(file)
            find = _numbered if layout == "nnunet" else _four_dimensional
            cases += list(find(folder, names, dataset, overrides.labels))
    return cases


def require_dataset_json(tree: FileTree) -> None:
    """Raises FileError for folders named as nnU-Net's or the MSD's without the dataset.json that explains them."""
    for folder, names in tree.items():
        parent = folder.absolute().parent
        if folder.absolute().name in _IMAGES and any(map(is_nifti, names)) and not (parent / DATASET_FILE).is_file():
            remedy = f"put the data set's own file next to {folder.name}: it names the channels and labels"
            raise FileError(parent / DATASET_FILE, "does not exist", remedy)


def _numbered(folder: Path, names: list[str], dataset: DatasetJson, override: LabelConvention | None) -> Iterator[Case]:
    """nnU-Net: a file for each channel."""
    modality_of = {channel: modality for modality, channel in dataset.channels.items()}
    images: dict[str, dict[Modality, Path]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match is None:
            raise FileError(folder / name, "named without a channel", "expected names as in CASE_0000.nii.gz")
        modality = modality_of.get(int(match["channel"]))
        if modality is None:
            found = f"channel {int(match['channel'])} is not named in {dataset.file}"
            raise FileError(folder / name, found, "correct one of the two")
        files = images.setdefault(match["case"], {})
        if modality in files:
            raise FileError(
                folder / name, f"{files[modality].name} is a second file for {modality}", "keep one of them"
            )
        files[modality] = folder / name
    yield from _cases(folder, images, dataset, "nnunet", override)


def _four_dimensional(
    folder: Path, names: list[str], dataset: DatasetJson, override: LabelConvention | None
) -> Iterator[Case]:
    """MSD: the channels of a case are the volumes of one file."""
    images: dict[str, dict[Modality, Path]] = {}
    for name in names:
        case = re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)
        if case in images:
            raise FileError(folder / name, f"a second file for {case}", "keep one of them")
        images[case] = dict.fromkeys(dataset.channels, folder / name)
    yield from _cases(folder, images, dataset, "msd", override)


def _cases(
    folder: Path,
    images: dict[str, dict[Modality, Path]],
    dataset: DatasetJson,
    layout: str,
    override: LabelConvention | None,
) -> Iterator[Case]:
    place = folder if folder.name in _IMAGES else folder.absolute()  # a root may be "."
    labels = place.parent / _IMAGES[place.name]
    meaning = override or label_convention(dataset)
    if layout == "msd" and meaning.to_class == CONVENTIONS["msd"].to_class:
        meaning = CONVENTIONS["msd"]
    channels = dataset.channels if layout == "msd" else {}
    for case, files in images.items():
        ordered = {m: files[m] for m in MODALITIES if m in files}
        label = next((file for file in (labels / f"{case}.nii.gz", labels / f"{case}.nii") if file.is_file()), None)
        yield Case(
            case,
            patient_of(case),
            MappingProxyType(ordered),
            label,
            meaning,
            LAYOUTS[layout].title,
            MappingProxyType(dict(channels)),
        )
