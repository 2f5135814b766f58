"""Keeps the largest connected component of a label map, and relabels a tiny enhancing tumour. NumPy, SciPy.

Voxels are connected if they share a face, an edge or a corner, as in nnU-Net
(`postprocessing/remove_connected_components.py`, whose labelling is skimage's with full connectivity).
"""

import math
from collections.abc import Collection

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from data_pipeline.conventions import CLASSES, REGION_CLASSES

BACKGROUND, NECROSIS, ENHANCING = CLASSES.index("background"), CLASSES.index("NCR"), CLASSES.index("ET")
FOREGROUND_CLASSES = REGION_CLASSES["WT"]
"""Every class but the background."""

_NEIGHBOURS = ndimage.generate_binary_structure(3, 3)  # all 26


def keep_largest(mask: Bool[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
    """The component with the most voxels; several if they are equal, as in nnU-Net. An empty mask stays empty."""
    kept = np.zeros_like(mask)
    if not mask.any():
        return kept
    # Components do not reach beyond the box of the mask, and labelling takes time by voxel.
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    labels, _ = ndimage.label(mask[box], _NEIGHBOURS)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0  # what is outside the mask
    kept[box] = (sizes == sizes.max())[labels]
    return kept


def keep_largest_of(classes: UInt8[np.ndarray, "d h w"], members: Collection[int]) -> UInt8[np.ndarray, "d h w"]:
    """Keeps only the largest component of some classes taken together; the others become background.

    A removed voxel becomes background even inside another region: a stray piece of the tumour core does not become
    oedema. nnU-Net does the same (`remove_all_but_largest_component_from_segmentation`).

    Args:
      classes: internal classes; not changed.
      members: the internal classes that make up the mask.
    """
    mask = np.isin(classes, list(members))
    return np.where(mask & ~keep_largest(mask), np.uint8(BACKGROUND), classes)


def is_below(voxels: int, spacing: tuple[float, float, float], min_ml: float) -> bool:
    """Whether this number of voxels of `spacing` mm is less than `min_ml` millilitres (1 ml = 1000 mm³)."""
    return voxels * math.prod(spacing) / 1000 < min_ml


def remove_small_enhancing(
    classes: UInt8[np.ndarray, "d h w"], spacing: tuple[float, float, float], min_ml: float
) -> UInt8[np.ndarray, "d h w"]:
    """Turns enhancing tumour below `min_ml` in total into necrotic core, so that WT and TC stay as they are.

    A few enhancing voxels where the reference has none score a Dice of 0 instead of 1 (Isensee et al. 2020,
    "nnU-Net for brain tumor segmentation", section 2.2, on BraTS-specific post-processing).

    Args:
      classes: internal classes; not changed.
      spacing: voxel size in mm.
      min_ml: threshold on the volume of all enhancing voxels together, in ml; a volume equal to it stays.
    """
    enhancing = classes == ENHANCING
    if not is_below(int(np.count_nonzero(enhancing)), spacing, min_ml):
        return classes
    return np.where(enhancing, np.uint8(NECROSIS), classes)
