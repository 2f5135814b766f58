"""How much single voxels tell: the contrasts of a data set as areas under the ROC curve.

In patients, enhancing tumour is ambiguous without T1CE, and tumour is ambiguous on T1. Phantoms that are easier, or
hard in other places, would be a different task.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Num, UInt8
from scipy.stats import rankdata

from data_pipeline.conventions import CONVENTIONS, MODALITIES, Modality
from data_pipeline.errors import InputError
from data_pipeline.phantom.data_set import finished_cases

_SAMPLES = 20_000
"""Voxels drawn per class, which keeps the SD of an area under the curve below .004."""
_MIN_VOXELS = 30
"""Fewest voxels of a class for an area to be computed."""


@dataclass(frozen=True)
class Target:
    """One row of the audit.

    Attributes:
      title: the two classes, and the modality.
      real: range of the medians seen in patients.
      low: smallest median that a phantom data set may have.
      high: largest one.
    """

    title: str
    real: str
    low: float
    high: float


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "et_t1ce": Target("ET against the rest of WT, T1CE alone", ".92-.99", 0.90, 1.0),
        "et_without": Target("the same, linear classifier without T1CE", ".76-.81", 0.60, 0.88),
        "wt_flair": Target("WT against normal, FLAIR", ".95-.98", 0.93, 1.0),
        "wt_t1": Target("WT against normal, T1", ".36-.49", 0.30, 0.60),
    }
)


def auc(positive: Float[np.ndarray, "n"], negative: Float[np.ndarray, "m"]) -> float:
    """Area under the ROC curve: the chance that a positive value is larger than a negative one (ties: half)."""
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)].sum()
    return float((ranks - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))


def linear_auc(positive: Float[np.ndarray, "n c"], negative: Float[np.ndarray, "m c"]) -> float:
    """Area of Fisher's linear discriminant, fitted on every other voxel and measured on the rest."""
    fit_p, fit_n = positive[::2].astype(np.float64), negative[::2].astype(np.float64)
    within = np.cov(fit_p.T) + np.cov(fit_n.T)
    direction = np.linalg.solve(np.atleast_2d(within), fit_p.mean(0) - fit_n.mean(0))
    return auc(positive[1::2] @ direction, negative[1::2] @ direction)


def audit_case(
    images: Mapping[Modality, Num[np.ndarray, "d h w"]],
    label: UInt8[np.ndarray, "d h w"],
    rng: np.random.Generator,
) -> dict[str, float]:
    """Areas of one case by the keys of `TARGETS`; NaN where the case lacks one of the classes.

    Args:
      images: all four modalities, 0 outside the brain.
      label: internal classes.
      rng: draws the voxels.
    """
    brain = np.any([images[m] > 0 for m in MODALITIES], axis=0)
    et, rest, normal = _draw(rng, label == 3), _draw(rng, (label > 0) & (label < 3)), _draw(rng, brain & (label == 0))
    whole = _draw(rng, label > 0)

    def values(modality: Modality, voxels: np.ndarray) -> np.ndarray:
        return images[modality].ravel()[voxels].astype(np.float32)

    def without(voxels: np.ndarray) -> np.ndarray:
        return np.stack([values(m, voxels) for m in MODALITIES if m != "t1ce"], axis=1)

    found = dict.fromkeys(TARGETS, np.nan)
    if min(len(et), len(rest)) >= _MIN_VOXELS:
        found["et_t1ce"] = auc(values("t1ce", et), values("t1ce", rest))
        found["et_without"] = linear_auc(without(et), without(rest))
    if min(len(whole), len(normal)) >= _MIN_VOXELS:
        found["wt_flair"] = auc(values("flair", whole), values("flair", normal))
        found["wt_t1"] = auc(values("t1", whole), values("t1", normal))
    return found


def _draw(rng: np.random.Generator, where: Bool[np.ndarray, "d h w"]) -> np.ndarray:
    """Flat indices of voxels of a region, in random order."""
    return rng.permutation(np.flatnonzero(where))[:_SAMPLES]


def audit_folder(root: Path) -> list[dict[str, float]]:
    """Audit every BraTS 2021 case in a folder.

    Raises:
      InputError: the folder has no such case.
    """
    names = finished_cases(root)
    if not names:
        raise InputError(f"{root}: no BraTS2021_<number> folders; make some with kd-jax phantom")
    rows = []
    for name in names:
        images = {m: np.asarray(nib.load(root / name / f"{name}_{m}.nii.gz").dataobj) for m in MODALITIES}
        label = np.asarray(nib.load(root / name / f"{name}_seg.nii.gz").dataobj)
        seed = zlib.crc32(name.encode())
        rows.append(audit_case(images, CONVENTIONS["brats2018"].decode(label), np.random.default_rng(seed)))
    return rows


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median over the cases that have a value."""
    table = {key: np.array([row[key] for row in rows]) for key in TARGETS}
    return {key: float(np.nanmedian(v)) if np.isfinite(v).any() else np.nan for key, v in table.items()}


def format_audit(rows: Sequence[Mapping[str, float]]) -> str:
    """The audit as a table."""
    lines = [f"{'area under the ROC curve of single voxels':<44}{'patients':>9} {'target':>9} {'median':>7}  range"]
    for key, median in medians(rows).items():
        target = TARGETS[key]
        values = np.array([row[key] for row in rows])
        values = values[np.isfinite(values)]
        spread = f"{values.min():.2f}-{values.max():.2f} (n={len(values)})" if len(values) else "no case"
        verdict = "" if target.low <= median <= target.high else "  outside the target"
        limits = f"{target.low:.2f}-{target.high:.2f}"
        lines.append(f"{target.title:<44}{target.real:>9} {limits:>9} {median:>7.3f}  {spread}{verdict}")
    return "\n".join(lines)
