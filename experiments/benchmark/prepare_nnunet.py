"""nnU-Net's preprocessing, as its command runs it for a case, with the plans of a BraTS data set."""

from pathlib import Path
from typing import Any

from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from data_pipeline.case import Case
from data_pipeline.conventions import MODALITIES
from experiments.parity.importing_variants import Variant

LABELS = {"background": 0, "NCR": 1, "ED": 2, "ET": 4}
"""Values as the files of BraTS 2021 have them."""


def preprocess(case: Case, folder: Path, patch: int) -> None:
    """Reads, crops, normalises and writes `folder/case.b2nd`, its segmentation and its properties."""
    plans, dataset = describe(patch)
    images, label = [str(case.images[m]) for m in MODALITIES], str(case.label)
    configuration = plans.get_configuration("3d_fullres")
    DefaultPreprocessor(verbose=False).run_case_save(
        str(folder / case.id), images, label, plans, configuration, dataset
    )


def describe(patch: int) -> tuple[PlansManager, dict[str, Any]]:
    """Plans and data set; the patch decides into which chunks the files are cut."""
    variant = Variant(
        "BraTS2021",
        "PlainConvUNet",
        patch=(patch,) * 3,
        kernels=((3, 3, 3),) * 3,
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        channel_names={m: m for m in MODALITIES},
        labels=LABELS,
    )
    return PlansManager(variant.plans()), variant.dataset()


def open_cases(folder: Path) -> nnUNetDatasetBlosc2:
    """The file that `preprocess` wrote."""
    return nnUNetDatasetBlosc2(str(folder))
