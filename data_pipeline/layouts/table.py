"""The layouts by name, for `--layout`, for display, and with the reason for recognising each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

LayoutName = Literal[
    "brats2013", "brats2018", "brats2023", "brats2024", "upenn-gbm", "ucsf-pdgm", "msd", "nnunet", "bids", "csv"
]


@dataclass(frozen=True)
class Layout:
    """A way of laying out a data set.

    Attributes:
      name: for `--layout`.
      title: for display; `Case.layout` holds it.
      example: names of one case's files.
      why: the signs it is recognised by.
    """

    name: LayoutName
    title: str
    example: str
    why: str


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (
            Layout(
                "brats2013",
                "BraTS 2013",
                "brats_2013_pat0001_1/brats_2013_pat0001_1_{t1,t1ce,t2,flair,seg}.nii.gz (BraTS 2013 and 2015)",
                "files <case>_{t1,t1ce,t2,flair,seg} of cases brats_2013_pat… or brats_tcia_pat…",
            ),
            Layout(
                "brats2018",
                "BraTS 2018-2021",
                "BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz (BraTS 2018 to 2021, BraTS-TCGA; "
                ".nii too)",
                "files <case>_{t1,t1ce or t1Gd,t2,flair,seg or GlistrBoost}",
            ),
            Layout(
                "brats2023",
                "BraTS 2023",
                "BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz (BraTS 2023)",
                "files <case>-{t1n,t1c,t2w,t2f,seg}, time points below 100, no folder named after BraTS 2024 or later",
            ),
            Layout(
                "brats2024",
                "BraTS 2024",
                "the same with time points from 100, or under a folder such as BraTS2024-GLI (BraTS 2024 and later)",
                "files <case>-{t1n,t1c,t2w,t2f,seg}, and time points from 100 or a folder named after BraTS 2024 or "
                "later",
            ),
            Layout(
                "upenn-gbm",
                "UPenn-GBM",
                "images_structural/UPENN-GBM-00001_11/UPENN-GBM-00001_11_{T1,T1GD,T2,FLAIR}.nii.gz, "
                "images_segm/UPENN-GBM-00001_11_segm.nii.gz (UPenn-GBM)",
                "files UPENN-GBM-…_{T1,T1GD,T2,FLAIR,segm or automated_approx_segm}",
            ),
            Layout(
                "ucsf-pdgm",
                "UCSF-PDGM",
                "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_{T1,T1c,T2,FLAIR,tumor_segmentation}.nii.gz (UCSF-PDGM)",
                "files UCSF-PDGM-…_{T1,T1c,T2,FLAIR,tumor_segmentation}",
            ),
            Layout(
                "msd",
                "MSD Task01",
                "dataset.json, imagesTr/BRATS_001.nii.gz with four volumes, labelsTr/BRATS_001.nii.gz (MSD Task01)",
                "dataset.json, and one 4-D file per case in imagesTr or imagesTs",
            ),
            Layout(
                "nnunet",
                "nnU-Net raw",
                "dataset.json, imagesTr/<case>_{0000,0001,...}.nii.gz, labelsTr/<case>.nii.gz (nnU-Net raw)",
                "dataset.json, and files <case>_0000 in imagesTr or imagesTs",
            ),
            Layout(
                "bids",
                "BIDS",
                "sub-X/ses-Y/anat/sub-X_ses-Y_{T1w,ce-gadolinium_T1w,T2w,FLAIR}.nii.gz, *_dseg.nii.gz (BIDS)",
                "files sub-…_{T1w,T2w,FLAIR,dseg}",
            ),
            Layout(
                "csv",
                "CSV",
                "a CSV file with the columns case,t1,t1ce,t2,flair,seg in place of a folder (anything else)",
                "the columns of the file",
            ),
        )
    }
)

_ABOUT = MappingProxyType({layout.title: layout for layout in LAYOUTS.values()})

LAYOUT_HELP = f"take the data set for one of {', '.join(LAYOUTS)} instead of recognising its layout"
"""Help text of `--layout`."""


def decision(title: str, convention: str, meaning: str, *, cases: int) -> str:
    """One line: how many cases, in which layout and why, and the meaning of their label values."""
    counted = "1 case" if cases == 1 else f"{cases} cases"
    why = f" ({_ABOUT[title].why})" if title in _ABOUT else ""
    return f"{counted} as in {title}{why}; label values: {meaning} (by {convention})"


_PATIENTS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(BraTS-[A-Z]+-\d+)-\d+",
        r"(TCGA-\w{2}-\w{4})(_.+)?",
        r"(UPENN-GBM-\d+)_\d+",
        r"(UCSF-PDGM-\d+)_FU\d+d",
        r"(sub-[A-Z0-9]+)(_ses-[A-Z0-9]+)?",
    )
)


def patient_of(case: str) -> str:
    """The patient whose time point a case is; the case itself if its name does not tell."""
    match = next((match for pattern in _PATIENTS if (match := pattern.fullmatch(case))), None)
    return match[1] if match else case
