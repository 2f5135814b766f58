"""The meaning of the channels of the logits: exclusive classes, or overlapping regions.

Classes are those of `conventions.CLASSES`: the largest logit wins, and a softmax gives probabilities. Regions are WT,
TC and ET in the order of `conventions.REGION_CLASSES`, each with a sigmoid of its own (nnU-Net's region-based
training): a region covers the voxels whose logit is positive.
"""

from collections.abc import Mapping
from types import MappingProxyType

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Integer, UInt8
from scipy import special

from data_pipeline.conventions import CLASSES, REGION_CLASSES
from kd_jax.config.schema import Outputs

OUTSIDE: Mapping[Outputs, tuple[float, ...]] = MappingProxyType(
    {"classes": (1.0, *(0.0,) * (len(CLASSES) - 1)), "regions": (-1.0,) * len(REGION_CLASSES)}
)
"""Logits where no network looked: background, certainly the largest, and no region."""

CHANNEL_NAMES: Mapping[Outputs, tuple[str, ...]] = MappingProxyType(
    {"classes": CLASSES, "regions": tuple(REGION_CLASSES)}
)
"""Name of each channel, in order."""

_PAINTED = MappingProxyType({"WT": 2, "TC": 1, "ET": 3})
"""Class painted for each region, before the smaller regions are painted over it (nnU-Net's `regions_class_order`)."""


def region_truth(labels: Integer[Array | np.ndarray, "*n"]) -> Bool[Array, "*n 3"]:
    """Internal classes to membership of WT, TC, ET."""
    return jnp.stack([jnp.isin(labels, jnp.array(classes)) for classes in REGION_CLASSES.values()], axis=-1)


def found_regions(logits: Float[Array, "*n k"], outputs: Outputs) -> Bool[Array, "*n 3"]:
    """Logits to membership of WT, TC, ET."""
    return logits > 0 if outputs == "regions" else region_truth(jnp.argmax(logits, axis=-1))


def to_classes(logits: Float32[np.ndarray, "*n k"], outputs: Outputs) -> UInt8[np.ndarray, "*n"]:
    """Logits to internal classes.

    Larger regions are painted first: WT as oedema, TC as necrotic core, ET as itself. So a voxel that is in ET alone
    still becomes enhancing tumour, as in nnU-Net's `convert_probabilities_to_segmentation`.
    """
    if outputs == "classes":
        return logits.argmax(axis=-1).astype(np.uint8)
    classes = np.zeros(logits.shape[:-1], np.uint8)
    for channel, region in enumerate(REGION_CLASSES):
        classes[logits[..., channel] > 0] = _PAINTED[region]
    return classes


def to_probabilities(logits: Float32[np.ndarray, "*n k"], outputs: Outputs) -> Float32[np.ndarray, "*n k"]:
    """Softmax over classes, or the sigmoid of each region."""
    return special.softmax(logits, axis=-1) if outputs == "classes" else special.expit(logits)
