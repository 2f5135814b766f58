"""Images under a wrong name: the tissues that a file shows tell which modality it is.

CSF is dark and white matter bright on T1, so that T1 (or T1CE) tells where these tissues are on the others. Labelled
oedema is brightest on FLAIR. Enhancing tumour is brighter on T1CE than on T1, and no tissue is darker there than on T1
as clearly as vessels and tumour are brighter. Every figure is relative to the image's own spread, so that scale and
offset do not matter.

Measured by `experiments.swaps` on 4 real cases (two of them T1CE and FLAIR alone) and 20 phantoms. None of the 24
correct cases is suspected, and none of the 22 with four modalities by any two of its modalities. In labelled cases,
swaps of T1/T2, T1/FLAIR, T2/FLAIR, T1CE/FLAIR and T1CE/T2 are all noticed, T1/T1CE in 20 of 22 (the others have hardly
any enhancing tumour). Without labels the figures are the same except for T1/FLAIR, which both show CSF dark (18 of 22),
T1CE/FLAIR without other modalities (0 of 2) and T1/T1CE (13 of 22, among them both patients). With the label of another
case on the same grid, 339 of 392 are suspected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from data_pipeline.conventions import CLASSES, Modality
from data_pipeline.reading.checks import SMALLEST_BRAIN
from data_pipeline.reading.findings import Finding
from data_pipeline.reading.nifti import Volume

SAMPLED_VOXELS = 200_000
"""Voxels of the brain that percentiles are taken over, approximately; more of them change none of the figures."""
LESION_VOXELS = 100
"""Fewest labelled voxels for a lesion to be considered."""

# Percentiles of T1 inside the brain, and the tissue found there.
_CSF, _GREY, _WHITE = (3, 8), (15, 35), (60, 90)
# CSF minus white matter, in units of the spread between the 5th and 95th percentile. Patients and phantoms have
# T1CE -0.88 to -0.50, T2 0.48 to 0.87, FLAIR -0.75 to -0.53; under a wrong name at least 0.11, 0.49 and -0.17.
_FLAIR_CSF, _T1CE_CSF, _T2_CSF = -0.3, -0.2, 0.0
_BRIGHT_OEDEMA = 0.75  # oedema's rank on FLAIR below which the label cannot be this patient's
# The largest excess of T1 over T1CE relative to that of T1CE over T1, standardised: patients and phantoms have 0.3 to
# 1.02, under a wrong name 0.98 to 3.3. A contrast agent only brightens, at least the vessels.
_DARKENED = 1.5
_RANK_MARGIN = 0.03  # oedema's rank: FLAIR 0.98 to 1, T1 and T1CE up to 0.88; T1CE above T1 by 0.08 and more


@dataclass(frozen=True)
class _Tissue:
    """Medians relative to white matter, in units of the image's spread."""

    csf: float
    grey: float


def check_distinct(volumes: Mapping[Modality, Volume]) -> list[Finding]:
    """Report modalities with the same voxels: one file under two names."""
    return [
        Finding(
            "warning",
            volumes[a].source,
            f"{volumes[a].name} and {volumes[b].name} are identical: is one a copy under a wrong name?",
            "put the right file in place of the copy, or remove it",
        )
        for a, b in combinations(volumes, 2)
        if _identical(volumes[a].data, volumes[b].data)
    ]


def _identical(a: Float32[np.ndarray, "d h w"], b: Float32[np.ndarray, "d2 h2 w2"]) -> bool:
    middle = a.shape[0] // 2  # one slice tells almost any two modalities apart, without reading the rest
    return a.shape == b.shape and np.array_equal(a[middle], b[middle]) and np.array_equal(a, b)


def check_contrast(
    images: Mapping[Modality, Float32[np.ndarray, "d h w"]],
    mask: Bool[np.ndarray, "d h w"],
    classes: UInt8[np.ndarray, "d h w"] | None,
    files: Mapping[Modality, Path],
    voxel_ml: float,
) -> list[Finding]:
    """Report modalities whose tissues look like another modality's.

    Args:
      images: of one grid.
      mask: the brain.
      classes: internal classes on that grid, if there is a label.
      files: of the images.
      voxel_ml: volume of a voxel in millilitres.
    """
    brain = mask if classes is None else mask & (classes == 0)
    if np.count_nonzero(brain) * voxel_ml < 1000 * SMALLEST_BRAIN:
        return []
    step = max(1, np.count_nonzero(brain) // SAMPLED_VOXELS)
    inside = {m: image[brain][::step] for m, image in images.items()}
    found = _by_tissue(inside)
    if classes is not None:
        lesion = {index: mask & (classes == index) for index in (CLASSES.index("ED"), CLASSES.index("ET"))}
        found = _by_lesion(inside, images, lesion, found)
    if not found and {"t1", "t1ce"} <= images.keys() and _darkened(images["t1"][mask], images["t1ce"][mask]):
        found["t1ce"] = "is darker than T1 by more than it is brighter, but a contrast agent only brightens"
    return [
        Finding("warning", files[m], reason, "compare with the case's other files: are two of them swapped?")
        for m, reason in found.items()
    ]


def _by_tissue(inside: Mapping[Modality, Float32[np.ndarray, "n"]]) -> dict[Modality, str]:
    guide: Modality = "t1" if "t1" in inside else "t1ce"
    if guide not in inside:
        return {}
    low, high = _between(inside[guide], _CSF), _between(inside[guide], _WHITE)
    grey = _between(inside[guide], _GREY)
    seen = {m: _tissue(values, low, grey, high) for m, values in inside.items() if m != guide}
    found: dict[Modality, str] = {}
    if "flair" in seen and seen["flair"].csf > _FLAIR_CSF:
        found["flair"] = f"CSF (dark on {guide.upper()}) is not darker than white matter, as it should be on FLAIR"
    if "t2" in seen and seen["t2"].csf < _T2_CSF:
        found["t2"] = f"CSF (dark on {guide.upper()}) is not brighter than white matter, as it should be on T2"
    if "t1ce" in seen and seen["t1ce"].csf > _T1CE_CSF:
        found["t1ce"] = "CSF (dark on T1) is not darker than white matter, as it should be on T1CE"
    elif not found and "t1ce" in seen and "flair" in seen and seen["t1ce"].grey > seen["flair"].grey:
        found["flair"] = "grey matter is darker relative to white matter than on T1CE; on FLAIR it should be brighter"
    return found


def _between(values: Float32[np.ndarray, "n"], percentiles: tuple[int, int]) -> Bool[np.ndarray, "n"]:
    low, high = np.percentile(values, percentiles)
    return (values >= low) & (values <= high)


def _tissue(
    values: Float32[np.ndarray, "n"],
    csf: Bool[np.ndarray, "n"],
    grey: Bool[np.ndarray, "n"],
    white: Bool[np.ndarray, "n"],
) -> _Tissue:
    low, high = np.percentile(values, (5, 95))
    reference, spread = np.median(values[white]), max(float(high - low), 1e-8)
    return _Tissue(
        float(np.median(values[csf]) - reference) / spread, float(np.median(values[grey]) - reference) / spread
    )


def _darkened(t1: Float32[np.ndarray, "n"], t1ce: Float32[np.ndarray, "n"]) -> bool:
    step = max(1, t1.size // SAMPLED_VOXELS)
    brighter = _standardised(t1ce[::step]) - _standardised(t1[::step])
    low, middle, high = np.percentile(brighter, (0.5, 50, 99.5))
    return bool(middle - low > _DARKENED * (high - middle))


def _standardised(values: Float32[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return (values - middle) / max(float(high - low), 1e-8)


def _by_lesion(
    inside: Mapping[Modality, Float32[np.ndarray, "n"]],
    images: Mapping[Modality, Float32[np.ndarray, "d h w"]],
    lesion: Mapping[int, Bool[np.ndarray, "d h w"]],
    by_tissue: Mapping[Modality, str],
) -> dict[Modality, str]:
    rank = {
        CLASSES[index]: {m: _rank(images[m][where], inside[m]) for m in images}
        for index, where in lesion.items()
        if np.count_nonzero(where) >= LESION_VOXELS
    }
    found = dict(by_tissue)
    oedema = rank.get("ED", {}).get("flair", 1)
    if oedema < _BRIGHT_OEDEMA and "flair" not in found:
        found["flair"] = (
            f"the labelled oedema is brighter than only {oedema:.0%} of the normal brain; FLAIR shows oedema brighter "
            "than nearly all of it: is the label another patient's?"
        )
    for rival in ("t1", "t1ce"):
        if {"flair", rival} <= rank.get("ED", {}).keys() and rank["ED"][rival] > rank["ED"]["flair"] + _RANK_MARGIN:
            found["flair"] = f"the labelled oedema is brighter on {rival.upper()} than on FLAIR"
    if {"t1", "t1ce"} <= rank.get("ET", {}).keys() and rank["ET"]["t1"] > rank["ET"]["t1ce"] + _RANK_MARGIN:
        found["t1ce"] = "the labelled enhancing tumour is brighter on T1 than on T1CE"
    return found


def _rank(lesion: Float32[np.ndarray, "k"], brain: Float32[np.ndarray, "n"]) -> float:
    """Share of the normal brain that is darker than the lesion's median."""
    return float(np.mean(brain < np.median(lesion)))
