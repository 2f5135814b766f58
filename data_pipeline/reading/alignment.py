"""Files that do not lie on each other, though their headers say that they do.

- **Mirrored** (`mirrored.py`): an array that was flipped under an unchanged affine (or the reverse) still shows a
  brain, and a brain is nearly symmetric: left for right can go unnoticed for as long as nobody looks. All seven
  mirrorings along the canonical axes are tried, two at once being a half turn (RAS taken for LPS), inside the box
  around all brains: where one lies mirrored about the centre of its grid, that is the centre of this box too.
- **Moved**: an image that fits the others better a few millimetres further along an axis.
- **Nothing in common**: an image of another patient, or one that was turned or moved so far that no tissue meets its
  like.

Measured by `experiments.alignment` on 4 real cases (two of them T1CE and FLAIR alone) and 20 phantoms, with four, three
and two images. As they are, none of 488 sets of two or more of their files is suspected. A file mirrored left-right is
named with its mirroring in all of 944 trials, mirrored otherwise in 5,654 of 5,664. An image moved 4 to 20 mm along an
axis is noticed in all of 6,060, 2 mm in 81 of 1,212; turned by 5, 10 and 15 degrees in 119, 484 and 580 of 606; that of
another case in 3,452 of 3,474.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from data_pipeline.conventions import Modality
from data_pipeline.reading import mending
from data_pipeline.reading.checks import CheckedImage
from data_pipeline.reading.clinical import ANCHORS
from data_pipeline.reading.findings import Finding
from data_pipeline.reading.information import (
    COMMON_VOXELS,
    Box,
    Codes,
    Offset,
    Pairs,
    brain_box,
    codes,
    stride,
    when_flipped,
    when_moved,
)
from data_pipeline.reading.mirrored import image_flips, label_flip, listed, mirrored

SMALLEST_BRAIN = 0.4
"""Litres of brain below which images are only compared with their mirror images: a fragment has little to show."""
STEP_MM = 4.0
"""Images are moved by about this distance and by twice it."""

# Fit where it is best over that where the image is: up to 0.76 as they are, 1.5 and more where one is 4 to 8 mm off.
_GAIN = 1.2
# Nats. As they are, pairs have 0.14 to 0.98; an image of another case and its best partner up to 0.13.
_LEAST = 0.11

_TOWARDS = (("left", "right"), ("back", "front"), ("bottom", "top"))


def check_alignment(
    images: Mapping[Modality, CheckedImage],
    crop: Box,
    mask: Bool[np.ndarray, "d2 h2 w2"],
    spacing: Sequence[float],
    files: Mapping[Modality, Path],
    classes: UInt8[np.ndarray, "d h w"] | None = None,
    label: Path | None = None,
) -> list[Finding]:
    """Images, and the label, that fit the others better when moved or mirrored, and images that do not fit at all.

    What most files of the case agree on is taken to be right. Where as many disagree, all are named.

    Args:
      images: of one grid, in canonical orientation.
      crop: the box around all their brains.
      mask: the brain inside `crop`.
      spacing: mm per axis.
      files: of the images.
      classes: internal classes on the same grid, if labelled.
      label: their file.
    """
    if not mask.any():
        return []
    box = brain_box(crop, mask)
    sampled: dict[str, Codes] = {m: found for m, image in images.items() if (found := codes(image, box)) is not None}
    information = when_flipped(sampled)
    paths: dict[str, Path] = {str(m): path for m, path in files.items()}
    whole = np.count_nonzero(mask) * np.prod(spacing) * 1e-6 >= SMALLEST_BRAIN
    judged = {m: found for m, found in sampled.items() if whole and np.count_nonzero(found) >= COMMON_VOXELS}
    findings, moved = _moved(judged, information, [mm * stride(box) for mm in spacing], paths)
    flips = image_flips(information, [m for m in sampled if m not in moved])
    findings += _strangers({m: flips[m] for m in judged if m not in moved}, information, paths)
    if classes is not None and label is not None and "flair" in flips:
        relative = label_flip(classes, images["flair"], box)
        if relative is not None:
            flips["label"] = flips["flair"] ^ relative
    return findings + mirrored(flips, {**paths, "label": label} if label else paths)


def _moved(
    sampled: Mapping[str, Codes], flipped: Pairs, pitch: Sequence[float], files: Mapping[str, Path]
) -> tuple[list[Finding], list[str]]:
    """Images that fit the others better elsewhere, the clearest first; what was found and their names.

    Args:
      sampled: the images.
      flipped: their information when mirrored, which explains some of it better.
      pitch: mm per sampled position and axis.
      files: of the images.
    """
    offsets = _offsets(pitch)
    information = when_moved(sampled, offsets)
    findings: list[Finding] = []
    left, moved = list(sampled), []
    while len(left) > 1:
        gain, fit, there, name = max(_gain(m, left, information, flipped) for m in left)
        if gain < _GAIN or fit < _LEAST:
            break
        left.remove(name)
        moved.append(name)
        axis = int(np.flatnonzero(offsets[there])[0])
        distance = abs(offsets[there][axis]) * pitch[axis]
        towards = _TOWARDS[axis][int(offsets[there][axis] > 0)]
        found = f"{name.upper()} fits {listed(left)} better when moved about {distance:.0f} mm to the {towards}"
        remedy = "compare them in a viewer, and register what lies elsewhere"
        findings.append(Finding("warning", files[name], found, remedy, _registration(name, left, files)))
    return findings, moved


def _offsets(pitch: Sequence[float]) -> list[Offset]:
    """Along every axis, there and back, by about `STEP_MM` and twice it."""
    found = []
    for axis, mm in enumerate(pitch):
        for positions in (-2, -1, 1, 2):
            offset = [0, 0, 0]
            offset[axis] = positions * max(1, round(STEP_MM / mm))
            found.append((offset[0], offset[1], offset[2]))
    return found


def _gain(name: str, others: Sequence[str], moved: Pairs, flipped: Pairs) -> tuple[float, float, int, str]:
    """How much better the image fits where it fits best than where it is or mirrored; its fit there, and where."""

    def fit(information: Pairs) -> np.ndarray:
        return np.mean([information[name, other] for other in others if other != name], axis=0)

    elsewhere = fit(moved)
    return float(elsewhere.max() / max(fit(flipped).max(), 1e-8)), float(elsewhere.max()), int(elsewhere.argmax()), name


def _strangers(flips: Mapping[str, int], information: Pairs, files: Mapping[str, Path]) -> list[Finding]:
    """Groups of images that have nothing in common with the largest one."""
    groups: list[list[str]] = []
    for m in flips:
        like = [g for g in groups if any(information[m, o][flips[m] ^ flips[o]] >= _LEAST for o in g)]
        groups = [*(g for g in groups if g not in like), [o for o in flips if o == m or any(o in g for g in like)]]
    groups.sort(key=len, reverse=True)
    findings = []
    for group in groups[1:]:
        found = f"{listed(group)} {'has' if len(group) == 1 else 'have'} little in common with {listed(groups[0])}"
        found += ": another patient's, or not registered to each other?"
        remedy = "compare them in a viewer; put the right file in its place, or register it"
        findings.append(Finding("warning", files[group[0]], found, remedy, _registration(group[0], groups[0], files)))
    return findings


def _registration(name: str, others: Sequence[str], files: Mapping[str, Path]) -> str:
    return mending.register(files[name], files[next(m for m in ANCHORS if m in others)])
