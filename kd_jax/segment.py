"""A trained network applied to cases: files in, classes on the case's own grid out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32, UInt8
from tqdm import tqdm

from data_pipeline.conventions import MODALITIES, Modality
from data_pipeline.formats import Case
from data_pipeline.subject import Subject, load_subject, to_original_grid
from kd_jax.checkpoint import NetworkName, Which, restore_network
from kd_jax.config import Config
from kd_jax.inference import ALL_AXES, Predictor, make_predictor, window_count, windows_per_batch


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A restored network, compiled once for all cases.

    Attributes:
      name: which of the run's two networks.
      config: of the run.
      step: training step of the checkpoint.
      modalities: what the network sees, in channel order.
      mirror: logits are averaged over the eight mirrorings.
      predict: images of the modalities [D, H, W, C] to logits [D, H, W, K].
    """

    name: NetworkName
    config: Config
    step: int
    modalities: tuple[Modality, ...]
    mirror: bool
    predict: Predictor


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a network made of one case, on the canonical original grid of its images.

    Attributes:
      classes: internal classes, the largest of the resampled logits; background outside the brain's box.
      logits: resampled linearly; outside the brain's box 1 for the background and 0 for the others.
      subject: what the network saw, and where it lies.
    """

    classes: UInt8[np.ndarray, "d h w"]
    logits: Float32[np.ndarray, "d h w k"]
    subject: Subject


def load_segmenter(run: Path, network: NetworkName, which: Which, *, mirror: bool) -> Segmenter:
    """Restore one network of a run and prepare it for whole volumes.

    Raises:
      InputError: `run` is not a run or has no such checkpoint.
    """
    restored = restore_network(run, network, which)
    module, patch = restored.module, restored.config.data.patch
    predict = make_predictor(
        lambda params, x: module.apply({"params": params}, x)[0][0],
        restored.params,
        patch,
        batch=windows_per_batch(patch, jax.default_backend()),
        mirror_axes=ALL_AXES if mirror else (),
    )
    return Segmenter(network, restored.config, restored.step, restored.modalities, mirror, predict)


def missing_modalities(case: Case, modalities: Sequence[Modality]) -> tuple[Modality, ...]:
    """The modalities a network needs and the case does not have."""
    return tuple(m for m in modalities if m not in case.images)


def segment_case(
    segmenter: Segmenter, case: Case, *, ignore_affine: bool = False, progress: bool = True
) -> Segmentation:
    """Segment one case that has every modality of the network. Its label is not read.

    Args:
      segmenter: from `load_segmenter`.
      case: from `data_pipeline.formats.find_cases`.
      ignore_affine: modalities whose affines differ are taken to be on one grid all the same.
      progress: show the windows as a bar, on a terminal.

    Raises:
      InputError: a file of the case cannot be used.
    """
    data = segmenter.config.data
    unlabelled = replace(case, label=None)
    subject = load_subject(unlabelled, data.spacing, segmenter.modalities, ignore_affine=ignore_affine)
    images = subject.images[..., [MODALITIES.index(m) for m in segmenter.modalities]]
    count = window_count(images.shape[:3], data.patch)
    # None: tqdm shows nothing where stderr is not a terminal.
    with tqdm(total=count, desc=case.id, unit="window", leave=False, disable=None if progress else True) as bar:
        logits = to_original_grid(segmenter.predict(images, bar.update), subject)
    return Segmentation(logits.argmax(axis=-1).astype(np.uint8), logits, subject)


def class_probabilities(segmentation: Segmentation) -> Float32[np.ndarray, "d h w k"]:
    """Softmax of the resampled logits, as in nnU-Net; certain background outside the brain's box.

    Their largest is `segmentation.classes` everywhere.
    """
    probabilities = np.zeros_like(segmentation.logits)
    probabilities[..., 0] = 1
    logits = segmentation.logits[segmentation.subject.crop]
    inside = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities[segmentation.subject.crop] = inside / inside.sum(axis=-1, keepdims=True)
    return probabilities
