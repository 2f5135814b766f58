"""The same two tiny cases written in every layout."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipeline.conventions import MODALITIES
from tests.data_pipeline.cases import tiny_classes, tiny_images, write_nifti

SHAPE = (14, 16, 12)
CASES = 2

# Values of NCR, ED and ET on disk.
OLD, NEW, PAEDIATRIC, SWAPPED = (1, 2, 4), (1, 2, 3), (2, 4, 1), (2, 1, 3)
Case = tuple[dict[str, np.ndarray], np.ndarray]
Values = tuple[int, int, int]


def source_cases() -> list[Case]:
    """Images by modality and internal classes, always the same."""
    rng = np.random.default_rng(20)
    return [(tiny_images(SHAPE, MODALITIES, rng), tiny_classes(SHAPE)) for _ in range(CASES)]


def stored(classes: np.ndarray, values: Values) -> np.ndarray:
    """Internal classes in a data set's values, by the table of the data sets rather than by the code under test."""
    return np.array([0, *values], np.uint8)[classes]


def _suffixed(
    home: str, values: Values, names: tuple[str, ...], extension: str = ".nii.gz"
) -> Callable[[Path, int, Case], None]:
    """A case's files in one folder; `names` are T1, T1CE, T2, FLAIR and the label, `home/stem` with a number."""

    def write(root: Path, number: int, case: Case) -> None:
        images, classes = case
        place = root / home.format(number)
        stem = place.name.removesuffix("_nifti")
        for modality, name in zip(MODALITIES, names, strict=False):
            write_nifti(place / f"{stem}{name}{extension}", images[modality])
        write_nifti(place / f"{stem}{names[4]}{extension}", stored(classes, values))

    return write


def _case_355(root: Path, number: int, case: Case) -> None:
    _suffixed("BraTS20_Training_{:03d}", OLD, UNDERSCORED, ".nii")(root, 355 + number, case)
    home = root / f"BraTS20_Training_{355 + number}"
    (home / f"{home.name}_seg.nii").rename(home / "W39_1998.09.19_Segm.nii")


def _upenn(root: Path, number: int, case: Case) -> None:
    images, classes = case
    name = f"UPENN-GBM-{number + 1:05d}_11"
    home = root / "NIfTI-files" / "images_structural" / name
    for modality, suffix in zip(MODALITIES, ("T1", "T1GD", "T2", "FLAIR"), strict=True):
        write_nifti(home / f"{name}_{suffix}.nii.gz", images[modality])
        raw = root / "NIfTI-files" / "images_structural_unstripped" / name / f"{name}_{suffix}_unstripped.nii.gz"
        write_nifti(raw, images[modality] + 1)
    automated = root / "NIfTI-files" / "automated_segm" / f"{name}_automated_approx_segm.nii.gz"
    if number == 0:
        write_nifti(automated, np.zeros_like(classes))
        write_nifti(root / "NIfTI-files" / "images_segm" / f"{name}_segm.nii.gz", stored(classes, OLD))
    else:
        write_nifti(automated, stored(classes, OLD))


def _ucsf(root: Path, number: int, case: Case) -> None:
    names = ("_T1", "_T1c", "_T2", "_FLAIR", "_tumor_segmentation")
    _suffixed("UCSF-PDGM-{:04d}_nifti", OLD, names)(root, number, case)
    home = root / f"UCSF-PDGM-{number:04d}_nifti"
    for other in ("_T1_bias", "_FLAIR_bias", "_SWI", "_DTI_eddy_FA", "_brain_segmentation"):
        write_nifti(home / f"UCSF-PDGM-{number:04d}{other}.nii.gz", case[0]["t1"] + 7)
    if number:
        (home / f"UCSF-PDGM-{number:04d}_FLAIR.nii.gz").rename(home / f"UCSF-PDGM-{number:04d}_FLAIR_bias.nii.gz")


def _msd(root: Path, number: int, case: Case) -> None:
    images, classes = case
    home, name = root / "Task01_BrainTumour", f"BRATS_{number + 1:03d}.nii.gz"
    write_nifti(home / "imagesTr" / name, np.stack([images[m] for m in ("flair", "t1", "t1ce", "t2")], axis=-1))
    write_nifti(home / "labelsTr" / name, stored(classes, SWAPPED))
    for folder in ("imagesTr", "labelsTr"):
        (home / folder / f"._{name}").write_bytes(b"resource fork")
    content = {
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
    }
    (home / "dataset.json").write_text(json.dumps(content))


def _nnunet(labels: dict[str, object]) -> Callable[[Path, int, Case], None]:
    def write(root: Path, number: int, case: Case) -> None:
        images, classes = case
        home, name = root / "Dataset137_BraTS2021", f"BraTS2021_{number:05d}"
        for channel, modality in enumerate(MODALITIES):
            write_nifti(home / "imagesTr" / f"{name}_{channel:04d}.nii.gz", images[modality])
        write_nifti(home / "labelsTr" / f"{name}.nii.gz", stored(classes, SWAPPED))
        names = {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"}
        content = {"channel_names": names, "labels": labels, "file_ending": ".nii.gz", "numTraining": CASES}
        (home / "dataset.json").write_text(json.dumps(content))

    return write


def _bids(root: Path, number: int, case: Case) -> None:
    images, classes = case
    stem = f"sub-{number:02d}_ses-pre"
    home = root / f"sub-{number:02d}" / "ses-pre" / "anat"
    names = ("run-1_T1w", "ce-gadolinium_T1w", "acq-tse_T2w", "FLAIR")
    for modality, name in zip(MODALITIES, names, strict=True):
        write_nifti(home / f"{stem}_{name}.nii.gz", images[modality])
    derived = root / "derivatives" / "pipeline" / f"sub-{number:02d}" / "ses-pre" / "anat"
    write_nifti(derived / f"{stem}_desc-tumour_dseg.nii.gz", stored(classes, NEW))
    write_nifti(derived / f"{stem}_space-SRI24_T1w.nii.gz", images["t1"] + 3)


def _listed(root: Path, number: int, case: Case) -> None:
    images, classes = case
    for modality in MODALITIES:
        write_nifti(root / "files" / f"{modality}{number}.nii.gz", images[modality])
    write_nifti(root / "files" / f"truth{number}.nii.gz", stored(classes, NEW))
    table = root / "cases.csv"
    start = table.read_text() if table.exists() else "case,flair,t1,t1ce,t2,seg\n"
    cells = [f"files/{m}{number}.nii.gz" for m in ("flair", "t1", "t1ce", "t2")]
    table.write_text(f"{start}scan{number},{','.join(cells)},files/truth{number}.nii.gz\n")


UNDERSCORED = ("_t1", "_t1ce", "_t2", "_flair", "_seg")
HYPHENED = ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")
_TCIA = ("_t1", "_t1Gd", "_t2", "_flair", "_GlistrBoost_ManuallyCorrected")
_MAP = "1=NCR,2=ED,3=ET"
_CLASSES = {"background": 0, "edema": 1, "necrotic core": 2, "enhancing tumor": 3}
_REGIONS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}

# Name of the set: (writer of one case, values of NCR, ED and ET on disk, title of the layout, label map).
SETS: dict[str, tuple[Callable[[Path, int, Case], None], Values, str, str | None]] = {
    "2013": (_suffixed("HGG/brats_2013_pat{:04d}_1", OLD, UNDERSCORED), OLD, "BraTS 2013", None),
    "2018": (_suffixed("HGG/Brats18_TCIA01_{:03d}_1", OLD, UNDERSCORED), OLD, "BraTS 2018-2021", None),
    "2019": (_suffixed("LGG/BraTS19_TMC_{:05d}_1", OLD, UNDERSCORED), OLD, "BraTS 2018-2021", None),
    "2020": (_suffixed("BraTS20_Training_{:03d}", OLD, UNDERSCORED, ".nii"), OLD, "BraTS 2018-2021", None),
    "2020-355": (_case_355, OLD, "BraTS 2018-2021", None),
    "2021": (_suffixed("BraTS2021_{:05d}", OLD, UNDERSCORED), OLD, "BraTS 2018-2021", None),
    "2023": (_suffixed("BraTS-GLI-{:05d}-000", NEW, HYPHENED), NEW, "BraTS 2023", None),
    "2023-ssa": (_suffixed("BraTS-SSA-{:05d}-000", NEW, HYPHENED), NEW, "BraTS 2023", None),
    "2023-ped": (_suffixed("ASNR-MICCAI-BraTS2023-PED/BraTS-PED-{:05d}-000", NEW, HYPHENED), NEW, "BraTS 2023", None),
    "2024-gli": (_suffixed("training_data1_v2/BraTS-GLI-{:05d}-100", NEW, HYPHENED), NEW, "BraTS 2024", None),
    "2024-ped": (
        _suffixed("BraTS2024-PED/BraTS-PED-{:05d}-000", PAEDIATRIC, HYPHENED),
        PAEDIATRIC,
        "BraTS 2024",
        None,
    ),
    "tcga": (_suffixed("TCGA-02-{:04d}_1996.08.23", OLD, _TCIA), OLD, "BraTS 2018-2021", None),
    "upenn": (_upenn, OLD, "UPenn-GBM", None),
    "ucsf": (_ucsf, OLD, "UCSF-PDGM", None),
    "msd": (_msd, SWAPPED, "MSD Task01", None),
    "nnunet": (_nnunet(_CLASSES), SWAPPED, "nnU-Net raw", None),
    "nnunet-regions": (_nnunet(_REGIONS), SWAPPED, "nnU-Net raw", None),
    "bids": (_bids, NEW, "BIDS", _MAP),
    "csv": (_listed, NEW, "CSV", _MAP),
}


def write_set(root: Path, name: str) -> Path:
    """Writes the cases in one layout; returns what to give as the root."""
    for number, case in enumerate(source_cases()):
        SETS[name][0](root, number, case)
    (root / "survival_data.csv").write_text("Brats18ID,Age,Survival\n")
    return root / "cases.csv" if name == "csv" else root
