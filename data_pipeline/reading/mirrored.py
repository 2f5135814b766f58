"""Files whose voxels are mirrored relative to the rest of the case.

Images are compared with each other, a label with FLAIR: labelled oedema is brighter there than the unlabelled voxel
across the mid-plane.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from data_pipeline.conventions import CLASSES, Slices3
from data_pipeline.reading.checks import CheckedImage
from data_pipeline.reading.findings import Finding
from data_pipeline.reading.information import FLIPS, ByFlip

LABEL = "label"
"""Name of the label among the names of images."""
OEDEMA_VOXELS = 100
"""Fewest labelled voxels with an unlabelled mirror image for a label to be compared."""
SAMPLED_OEDEMA = 2_000
"""Labelled voxels that are sampled, approximately."""

# Information when mirrored over information as it is: up to 0.46 for correct pairs, 2.1 and more if one is mirrored.
_MARGIN = 1.5
_LEAST = 0.1  # nats
# Share of oedema that is darker than its mirror image: up to 0.27, and 0.71 and more under a mirrored label.
_BRIGHTER = 0.65
# Rank of the mirror image in the brain: oedema has 0.95 and more, white matter on a T1 named FLAIR up to 0.85.
_BRIGHT = 0.9

_AXES = ("left-right", "front-back", "top-bottom")
_REMEDY = "compare them in a viewer, and flip back the one that was flipped without its header"


def image_flips(information: ByFlip, names: Sequence[str]) -> dict[str, int]:
    """For each modality the mirroring with which all fit best, if it is clearly better; else the majority's.

    Args:
      information: from `information.when_flipped`.
      names: the images to compare.
    """
    if len(names) < 2:
        return dict.fromkeys(names, 0)
    # Every combination; the first image stays as it is, because only differences can be seen.
    free = np.indices((len(FLIPS),) * (len(names) - 1)).reshape(len(names) - 1, -1)
    trial = dict(zip(names, (np.zeros_like(free[0]), *free), strict=True))
    total = np.sum([information[a, b][trial[a] ^ trial[b]] for a, b in combinations(names, 2)], axis=0)
    best = {m: int(flips[total.argmax()]) for m, flips in trial.items()}
    most = Counter(best.values()).most_common(1)[0][0]

    def fit(m: str, flip: int) -> float:
        """How well the image fits the others with this mirroring."""
        return float(np.mean([information[m, other][flip ^ best[other]] for other in names if other != m]))

    return {m: flip if fit(m, flip) > max(_LEAST, _MARGIN * fit(m, most)) else most for m, flip in best.items()}


def label_flip(classes: UInt8[np.ndarray, "d h w"], flair: CheckedImage, box: Slices3) -> int | None:
    """The mirroring of the label that puts its oedema where FLAIR is bright; None if that is not clear."""
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


def mirrored(flips: Mapping[str, int], files: Mapping[str, Path]) -> list[Finding]:
    """One finding per file that differs from the majority; without a majority, one per group."""
    ranked = Counter(flips.values()).most_common()
    groups = {flip: [name for name in flips if flips[name] == flip] for flip, _ in ranked}
    right, *rest = groups or [0]
    tie = bool(rest) and len(groups[right]) == len(groups[rest[0]])
    findings = []
    for flip in rest:
        better = f"better when mirrored {flip_name(FLIPS[flip ^ right])}"
        if tie:
            found = f"{listed(groups[right])} and {listed(groups[flip])} fit each other {better}"
            findings.append(Finding("warning", files[groups[flip][0]], found, _REMEDY))
        else:
            findings += [
                Finding("warning", files[name], f"{listed([name])} fits the case's other files {better}", _REMEDY)
                for name in groups[flip]
            ]
    return findings


def listed(names: Sequence[str]) -> str:
    """Names of modalities and of the label as findings write them."""
    return ", ".join(name if name == LABEL else name.upper() for name in names)


def flip_name(axes: Sequence[int]) -> str:
    """Mirrored canonical axes in words."""
    return " and ".join(_AXES[axis] for axis in axes)
