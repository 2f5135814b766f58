"""Files whose voxels are mirrored against the rest of the case, though their headers say that they are not.

An array that was flipped under an unchanged affine (or the reverse) still shows a brain, and a brain is nearly
symmetric: left for right can go unnoticed for as long as nobody looks. Two measures tell, each for all seven
mirrorings along the canonical axes, two at once being a half turn (RAS taken for LPS):

- Mutual information of two modalities inside the brain, which is highest where they show the same tissue at the
  same place (Wells et al. 1996; Maes et al. 1997). Brains are mirrored inside the box around all of them: where one
  lies mirrored about the centre of its grid, that is the centre of this box too.
- Labelled oedema is brighter on FLAIR than the unlabelled voxel at its mirror image.

Measured by `experiments.mirrors` on 4 real cases (two of them T1CE and FLAIR alone) and 20 phantoms. As they are, none
of 488 sets of two or more of their files is suspected. With four, three and two images, with and without a label, a
file mirrored left-right is noticed and named in all of 944 trials, mirrored otherwise in 5,657 of 5,664 (one phantom
has the other 7). An image that lies 4 mm off is never suspected (0 of 552); 6 mm to one side looks like a mirroring in
9 of 184 trials, all of them among the patients' 24.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from data_pipeline.conventions import CLASSES, Modality
from data_pipeline.reading.checks import CheckedImage
from data_pipeline.reading.findings import Finding

Box = tuple[slice, slice, slice]

FLIPS: tuple[tuple[int, ...], ...] = tuple(tuple(a for a in range(3) if code >> a & 1) for code in range(8))
"""Mirrored canonical axes by code; the code of two mirrorings after each other is the exclusive or of theirs."""

SAMPLED_VOXELS = 100_000
"""Most voxels of the box around the brain that are looked at."""
COMMON_VOXELS = 2_000
"""Sampled voxels inside both brains below which two images are not compared."""
OEDEMA_VOXELS = 100
"""Labelled voxels with an unlabelled mirror image below which a label is not compared."""
SAMPLED_OEDEMA = 2_000
"""About how many labelled voxels are looked at."""

_BINS = 32
_SPECK = 0.003  # of the largest slice's brain: slices with less do not belong to the box
# Information mirrored over as it is: up to 0.46 for pairs as they are, 2.1 and more where one is mirrored.
_MARGIN = 1.5
_LEAST = 0.1  # nats; pairs as they are have 0.14 to 0.98, images of two patients up to 0.13
# Share of oedema that is darker than its mirror image: up to 0.27, and 0.71 and more under a mirrored label.
_BRIGHTER = 0.65
# Rank in the brain of what is there: oedema has 0.95 and more, white matter on a T1 named FLAIR up to 0.85 in patients.
_BRIGHT = 0.9

_AXES = ("left-right", "front-back", "top-bottom")
_REMEDY = "compare them in a viewer: flip back what was flipped without its header, register what lies elsewhere"


def check_alignment(
    images: Mapping[Modality, CheckedImage],
    crop: Box,
    mask: Bool[np.ndarray, "d2 h2 w2"],
    files: Mapping[Modality, Path],
    classes: UInt8[np.ndarray, "d h w"] | None = None,
    label: Path | None = None,
) -> list[Finding]:
    """Images, and the label, that fit the others better when mirrored.

    What most files of the case agree on is taken to be right. Where as many disagree, all are named.

    Args:
      images: of one grid, in canonical orientation.
      crop: the box around all their brains.
      mask: the brain inside `crop`.
      files: of the images.
      classes: internal classes on the same grid, if labelled.
      label: their file.
    """
    if not mask.any():
        return []
    box = _box(crop, mask)
    codes: dict[str, UInt8[np.ndarray, "a b c"]] = {
        m: sampled for m, image in images.items() if (sampled := _codes(image, box)) is not None
    }
    flips = _image_flips(codes)
    if classes is not None and label is not None and "flair" in flips:
        relative = _label_flip(classes, images["flair"], box)
        if relative is not None:
            flips["label"] = flips["flair"] ^ relative
    paths = {str(m): path for m, path in files.items()}
    return _blame(flips, {**paths, "label": label} if label else paths)


def _box(crop: Box, mask: Bool[np.ndarray, "d2 h2 w2"]) -> Box:
    """The box around the brain without slices that only a speck reaches: they would move its centre."""
    box = []
    for axis, whole in enumerate(crop):
        thinned = mask[tuple(slice(None) if a == axis else slice(None, None, 2) for a in range(3))]
        counts = np.count_nonzero(thinned, axis=tuple(a for a in range(3) if a != axis))
        inside = np.flatnonzero(counts >= _SPECK * counts.max())
        box.append(slice(int(whole.start + inside[0]), int(whole.start + inside[-1] + 1)))
    return box[0], box[1], box[2]


def _codes(image: CheckedImage, box: Box) -> UInt8[np.ndarray, "a b c"] | None:
    """Intensities inside the brain in `_BINS` steps from 1, outside 0; None if they are all the same.

    The sampled positions mirror each other, so that to flip the result is to flip the image inside the box.
    """
    step = max(1, math.ceil((math.prod(s.stop - s.start for s in box) / SAMPLED_VOXELS) ** (1 / 3)))
    lattice = np.ix_(*(_symmetric(s, step) for s in box))
    inside, values = image.foreground[lattice], image.data[lattice].astype(np.float64)
    low, high = np.percentile(values[inside], (1, 99)) if inside.any() else (0, 0)
    if not low < high:
        return None
    steps = np.clip((values - low) / (high - low) * _BINS, 0, _BINS - 1)
    return np.where(inside, steps + 1, 0).astype(np.uint8)


def _symmetric(extent: slice, step: int) -> Int64[np.ndarray, "n"]:
    half = np.arange((step - 1) // 2, (extent.stop - extent.start + 1) // 2, step)
    return np.unique(np.concatenate([extent.start + half, extent.stop - 1 - half]))


def _image_flips(codes: Mapping[str, UInt8[np.ndarray, "a b c"]]) -> dict[str, int]:
    """By modality the mirroring with which all fit best, where that is clear; else that of most."""
    information = {(a, b): _information(codes[a], codes[b]) for a, b in combinations(codes, 2)}
    if not information:
        return dict.fromkeys(codes, 0)
    # Every combination; the first image stays as it is, since only differences can be seen.
    free = np.indices((len(FLIPS),) * (len(codes) - 1)).reshape(len(codes) - 1, -1)
    trial = dict(zip(codes, (np.zeros_like(free[0]), *free), strict=True))
    total = np.sum([table[trial[a] ^ trial[b]] for (a, b), table in information.items()], axis=0)
    best = {m: int(flips[total.argmax()]) for m, flips in trial.items()}
    most = Counter(best.values()).most_common(1)[0][0]

    def fit(m: str, flip: int) -> float:
        """To the others, with this mirroring."""
        return float(
            np.mean([table[flip ^ best[b if a == m else a]] for (a, b), table in information.items() if m in (a, b)])
        )

    return {m: flip if fit(m, flip) > max(_LEAST, _MARGIN * fit(m, most)) else most for m, flip in best.items()}


def _information(first: UInt8[np.ndarray, "a b c"], second: UInt8[np.ndarray, "a b c"]) -> Float64[np.ndarray, "8"]:
    """Mutual information of two images inside both brains, in nats, for every mirroring of one of them."""
    side = _BINS + 1
    row = first.astype(np.uint16) * side
    joint = (np.bincount((row + np.flip(second, axes)).ravel(), minlength=side**2) for axes in FLIPS)
    return np.array([_mutual(counts.reshape(side, side)[1:, 1:]) for counts in joint])


def _mutual(joint: Int64[np.ndarray, "n n"]) -> float:
    total = joint.sum()
    if total < COMMON_VOXELS:
        return 0.0
    return _entropy(joint.sum(0), total) + _entropy(joint.sum(1), total) - _entropy(joint.ravel(), total)


def _entropy(counts: Int64[np.ndarray, "n"], total: int) -> float:
    """With the correction of Miller (1955) for samples that are few for the bins."""
    share = counts[counts > 0] / total
    return float(-(share * np.log(share)).sum() + (share.size - 1) / (2 * total))


def _label_flip(classes: UInt8[np.ndarray, "d h w"], flair: CheckedImage, box: Box) -> int | None:
    """The mirroring of the label that puts its oedema where FLAIR is bright; None where that is not clear."""
    labelled = np.flatnonzero(classes == CLASSES.index("ED"))
    here = np.array(np.unravel_index(labelled[:: max(1, labelled.size // SAMPLED_OEDEMA)], classes.shape))
    thinned = tuple(slice(s.start, s.stop, 4) for s in box)
    brain = flair.data[thinned][flair.foreground[thinned]]
    brighter, bright = [], [(0.0, 0)]
    for sums in ([n - 1 for n in classes.shape], [s.start + s.stop - 1 for s in box]):
        for code, axes in enumerate(FLIPS[1:], 1):
            there = here.copy()
            for axis in axes:
                there[axis] = sums[axis] - there[axis]
            free = np.logical_and.reduce((there >= 0) & (there < np.array(classes.shape)[:, None]))
            free[free] = classes[tuple(there[:, free])] == 0
            if np.count_nonzero(free) < OEDEMA_VOXELS:
                continue
            opposite = _intensities(flair, there[:, free])
            brighter.append(float(np.mean(opposite > _intensities(flair, here[:, free]))))
            if np.mean(brain < np.median(opposite)) > _BRIGHT:
                bright.append((brighter[-1], code))
    share, code = max(bright)
    if share > _BRIGHTER:
        return code
    return 0 if brighter and max(brighter) < 1 - _BRIGHTER else None


def _intensities(image: CheckedImage, where: Int64[np.ndarray, "3 n"]) -> Float32[np.ndarray, "n"]:
    return np.where(image.foreground[tuple(where)], image.data[tuple(where)], np.float32(-np.inf))


def _blame(flips: Mapping[str, int], files: Mapping[str, Path]) -> list[Finding]:
    """One finding per file that differs from most; per group, if there is no larger one."""
    ranked = Counter(flips.values()).most_common()
    groups = {flip: [name for name in flips if flips[name] == flip] for flip, _ in ranked}
    right, *rest = groups or [0]
    tie = bool(rest) and len(groups[right]) == len(groups[rest[0]])
    findings = []
    for flip in rest:
        better = f"better when mirrored {flip_name(FLIPS[flip ^ right])}"
        if tie:
            found = f"{_listed(groups[right])} and {_listed(groups[flip])} fit each other {better}"
            findings.append(Finding("warning", files[groups[flip][0]], found, _REMEDY))
        else:
            findings += [
                Finding("warning", files[name], f"{_listed([name])} fits the case's other files {better}", _REMEDY)
                for name in groups[flip]
            ]
    return findings


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name if name == "label" else name.upper() for name in names)


def flip_name(axes: Sequence[int]) -> str:
    """Mirrored canonical axes in words."""
    return " and ".join(_AXES[axis] for axis in axes)
