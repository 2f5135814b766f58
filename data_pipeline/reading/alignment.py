"""Files whose contents are not aligned although their headers agree.

- **Mirrored** (`mirrored.py`): an array that was flipped under an unchanged affine (or the reverse) still shows a
  brain, and a brain is nearly symmetric, so that nobody may ever notice swapped sides. All seven mirrorings along the
  canonical axes are tried; two at once are a half turn (RAS taken for LPS). They mirror about the centre of the box
  around all brains, which is the centre of the grid as well if one file lies mirrored about that.
- **Moved**: an image, or the label, that fits the others better a few millimetres further along an axis.
- **Nothing in common**: an image of another patient, or one that was turned or moved so far that its tissues meet
  nothing of their kind.

Measured by `experiments.alignment` on 4 real cases (two of them T1CE and FLAIR alone) and 20 phantoms, with four, three
and two images. Of 488 correct sets of two or more files, none is suspected. A file mirrored left-right is named with
its mirroring in all of 944 trials, mirrored otherwise in 5,654 of 5,664. An image moved 4 to 20 mm along an axis is
noticed in all of 6,060, 2 mm in 81 of 1,212; turned by 5, 10 and 15 degrees in 119, 484 and 580 of 606; an image of
another case in 3,452 of 3,474. A label moved 4 to 12 mm is noticed in 1,613 of 1,632, 20 mm in 362 of 408.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from data_pipeline.conventions import Modality, Slices3
from data_pipeline.reading import mending
from data_pipeline.reading.checks import SMALLEST_BRAIN, CheckedImage
from data_pipeline.reading.clinical import ANCHORS
from data_pipeline.reading.findings import Finding
from data_pipeline.reading.information import (
    COMMON_VOXELS,
    ByFlip,
    ByOffset,
    Codes,
    Offset,
    brain_box,
    by_flip,
    by_offset,
    codes,
    label_codes,
    stride,
    when_flipped,
    when_moved,
)
from data_pipeline.reading.mirrored import LABEL, image_flips, label_flip, listed, mirrored

STEP_MM = 4.0
"""Images are moved by about this distance and by about twice as far."""

# The best fit over the fit where the file lies: correct images have up to 0.76, one that is 4 to 8 mm off 1.5 and more;
# correct labels up to 0.98, others 1.16 and more.
_GAIN = 1.2
# Nats. Correct pairs have 0.14 to 0.98; an image of another case and its best partner have up to 0.13.
_LEAST = 0.11
_LEAST_OF_LABEL = 0.005  # correct labels have 0.01 and more

_TOWARDS = (("left", "right"), ("back", "front"), ("bottom", "top"))


def check_alignment(
    images: Mapping[Modality, CheckedImage],
    crop: Slices3,
    mask: Bool[np.ndarray, "d2 h2 w2"],
    spacing: Sequence[float],
    files: Mapping[Modality, Path],
    classes: UInt8[np.ndarray, "d h w"] | None = None,
    label: Path | None = None,
) -> list[Finding]:
    """Report files that fit the others better when moved or mirrored, and images that do not fit at all.

    The majority of the case's files is taken to be right. Without a majority, all files are named.

    Args:
      images: of one grid, in canonical orientation.
      crop: the box around all their brains.
      mask: the brain inside `crop`.
      spacing: mm per axis.
      files: of the images.
      classes: internal classes on the same grid, if there is a label.
      label: its file.
    """
    if not mask.any():
        return []
    box = brain_box(crop, mask)
    sampled: dict[str, Codes] = {m: found for m, image in images.items() if (found := codes(image, box)) is not None}
    is_brain = np.count_nonzero(mask) * np.prod(spacing) * 1e-6 >= SMALLEST_BRAIN
    judged = [m for m, found in sampled.items() if is_brain and np.count_nonzero(found) >= COMMON_VOXELS]
    pitch = [mm * stride(box) for mm in spacing]
    offsets = _offsets(pitch)
    flipped, moved = when_flipped(sampled), when_moved({m: sampled[m] for m in judged}, offsets)
    paths: dict[str, Path] = {str(m): path for m, path in files.items()}

    displaced = _displaced(judged, moved, flipped)
    flips = image_flips(flipped, [m for m in sampled if m not in {place.name for place in displaced}])
    strangers = _strangers({m: flips[m] for m in judged if m in flips}, flipped, paths)
    if classes is not None and label is not None and "flair" in flips:
        paths[LABEL] = label
        relative = label_flip(classes, images["flair"], box)
        if relative is not None:
            flips[LABEL] = flips["flair"] ^ relative
        if not relative and "flair" in judged:
            peers = {m: sampled[m] for m in judged if flips.get(m) == flips["flair"]}
            displaced += _displaced_label(classes, peers, box, offsets)
    return [*(place.finding(offsets, pitch, paths) for place in displaced), *strangers, *mirrored(flips, paths)]


@dataclass(frozen=True, order=True)
class _Place:
    """The place where a file fits the others best.

    Attributes:
      gain: the fit there over the fit where the file lies, mirrored or not.
      fit: mean mutual information with the others there, in nats.
      offset: index of the displacement.
      name: of the image, or the label.
      others: the images it was compared with.
    """

    gain: float
    fit: float
    offset: int
    name: str
    others: tuple[str, ...]

    @classmethod
    def of(cls, name: str, others: Sequence[str], moved: ByOffset, flipped: ByFlip) -> "_Place":
        """The best place for one file."""
        there = np.mean([moved[name, other] for other in others], axis=0)
        here = np.mean([flipped[name, other] for other in others], axis=0).max()
        return cls(float(there.max() / max(here, 1e-8)), float(there.max()), int(there.argmax()), name, tuple(others))

    def finding(self, offsets: Sequence[Offset], pitch: Sequence[float], files: Mapping[str, Path]) -> Finding:
        """The place in words, as a displacement; `pitch` is mm per sampled position and axis."""
        axis = int(np.flatnonzero(offsets[self.offset])[0])
        by = offsets[self.offset][axis]
        way = f"about {abs(by) * pitch[axis]:.0f} mm to the {_TOWARDS[axis][int(by > 0)]}"
        found = f"{listed([self.name])} fits {listed(self.others)} better when moved {way}"
        if self.name == LABEL:
            remedy = "compare them in a viewer: was the label drawn on another image, or saved with another origin?"
            return Finding("warning", files[LABEL], found, remedy)
        remedy = "compare them in a viewer, and register the one that is off"
        return Finding("warning", files[self.name], found, remedy, _registration(self.name, self.others, files))


def _displaced(names: Sequence[str], moved: ByOffset, flipped: ByFlip) -> list[_Place]:
    """Images that fit the others better elsewhere, the clearest first; each is removed before the next is sought."""
    found: list[_Place] = []
    left = list(names)
    while len(left) > 1:
        place = max(_Place.of(m, [o for o in left if o != m], moved, flipped) for m in left)
        if place.gain < _GAIN or place.fit < _LEAST:
            break
        found.append(place)
        left.remove(place.name)
    return found


def _displaced_label(
    classes: UInt8[np.ndarray, "d h w"], peers: Mapping[str, Codes], box: Slices3, offsets: Sequence[Offset]
) -> list[_Place]:
    own = label_codes(classes, np.logical_or.reduce([image > 0 for image in peers.values()]), box)
    moved = {(LABEL, m): by_offset(own, image, offsets) for m, image in peers.items()}
    flipped = {(LABEL, m): by_flip(own, image) for m, image in peers.items()}
    place = _Place.of(LABEL, list(peers), moved, flipped)
    return [place] if place.gain >= _GAIN and place.fit >= _LEAST_OF_LABEL else []


def _offsets(pitch: Sequence[float]) -> list[Offset]:
    """Displacements along every axis, both ways, by about `STEP_MM` and twice as far."""
    found = []
    for axis, mm in enumerate(pitch):
        for positions in (-2, -1, 1, 2):
            offset = [0, 0, 0]
            offset[axis] = positions * max(1, round(STEP_MM / mm))
            found.append((offset[0], offset[1], offset[2]))
    return found


def _strangers(flips: Mapping[str, int], information: ByFlip, files: Mapping[str, Path]) -> list[Finding]:
    """Groups of images that have nothing in common with the largest group."""
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
