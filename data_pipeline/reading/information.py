"""Mutual information of two images of one grid, inside both brains.

It is highest where both show the same tissue at the same place, whatever their contrasts (Wells et al. 1996; Maes et
al. 1997), so that it tells whether files are aligned without knowing the modalities.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from data_pipeline.conventions import Index3, Slices3
from data_pipeline.reading.checks import CheckedImage

Codes = UInt8[np.ndarray, "a b c"]
Offset = Index3
ByFlip = Mapping[tuple[str, str], Float64[np.ndarray, "8"]]
"""By ordered pair of images, a value for each of `FLIPS`."""
ByOffset = Mapping[tuple[str, str], Float64[np.ndarray, "offsets"]]
"""By ordered pair of images, a value for each of several displacements."""

FLIPS: tuple[tuple[int, ...], ...] = tuple(tuple(a for a in range(3) if code >> a & 1) for code in range(8))
"""Mirrored canonical axes by code; the code of two mirrorings in sequence is the exclusive or of their codes."""

SAMPLED_VOXELS = 100_000
"""Most voxels of the box around the brain that are sampled."""
COMMON_VOXELS = 2_000
"""Sampled voxels inside both brains below which two images are not compared."""

_BINS = 32
_SPECK = 0.003  # of the largest slice's brain: slices with less do not belong to the box


def brain_box(crop: Slices3, mask: Bool[np.ndarray, "d2 h2 w2"]) -> Slices3:
    """The box around the brain, without slices that hold only a speck: they would move its centre."""
    box = []
    for axis, whole in enumerate(crop):
        thinned = mask[tuple(slice(None) if a == axis else slice(None, None, 2) for a in range(3))]
        counts = np.count_nonzero(thinned, axis=tuple(a for a in range(3) if a != axis))
        inside = np.flatnonzero(counts >= _SPECK * counts.max())
        box.append(slice(int(whole.start + inside[0]), int(whole.start + inside[-1] + 1)))
    return box[0], box[1], box[2]


def stride(box: Slices3) -> int:
    """Voxels from one sampled position to the next."""
    return max(1, math.ceil((math.prod(s.stop - s.start for s in box) / SAMPLED_VOXELS) ** (1 / 3)))


def codes(image: CheckedImage, box: Slices3) -> Codes | None:
    """Intensities inside the brain in `_BINS` steps from 1, outside 0; None if they are all the same.

    The sampled positions mirror each other, so that flipping the result equals flipping the image inside the box.
    """
    lattice = _lattice(box)
    inside, values = image.foreground[lattice], image.data[lattice].astype(np.float64)
    low, high = np.percentile(values[inside], (1, 99)) if inside.any() else (0, 0)
    if not low < high:
        return None
    steps = np.clip((values - low) / (high - low) * _BINS, 0, _BINS - 1)
    return np.where(inside, steps + 1, 0).astype(np.uint8)


def label_codes(classes: UInt8[np.ndarray, "d h w"], brain: Bool[np.ndarray, "a b c"], box: Slices3) -> Codes:
    """Classes plus 1 inside the brain, 0 outside, at the positions of `codes`, for which `brain` is given."""
    return np.where(brain, classes[_lattice(box)] + 1, 0).astype(np.uint8)


def _lattice(box: Slices3) -> tuple[Int64[np.ndarray, "..."], ...]:
    return np.ix_(*(_symmetric(s, stride(box)) for s in box))


def _symmetric(extent: slice, step: int) -> Int64[np.ndarray, "n"]:
    half = np.arange((step - 1) // 2, (extent.stop - extent.start + 1) // 2, step)
    return np.unique(np.concatenate([extent.start + half, extent.stop - 1 - half]))


def when_flipped(images: Mapping[str, Codes]) -> ByFlip:
    """`by_flip` of all pairs."""
    pairs: dict[tuple[str, str], np.ndarray] = {}
    for a, b in combinations(images, 2):
        pairs[a, b] = pairs[b, a] = by_flip(images[a], images[b])
    return pairs


def when_moved(images: Mapping[str, Codes], offsets: Sequence[Offset]) -> ByOffset:
    """`by_offset` of all ordered pairs, the first moved; every offset needs its opposite among the offsets."""
    opposite = [offsets.index((-x, -y, -z)) for x, y, z in offsets]
    pairs: dict[tuple[str, str], np.ndarray] = {}
    for a, b in combinations(images, 2):
        pairs[a, b] = by_offset(images[a], images[b], offsets)
        pairs[b, a] = pairs[a, b][opposite]
    return pairs


def by_flip(first: Codes, second: Codes) -> Float64[np.ndarray, "8"]:
    """Mutual information in nats for each of `FLIPS`, applied to either of the two."""
    return np.array([_information(first, np.flip(second, axes)) for axes in FLIPS])


def by_offset(moved: Codes, still: Codes, offsets: Sequence[Offset]) -> Float64[np.ndarray, "n"]:
    """Mutual information in nats for each displacement of the first, in sampled positions per axis."""
    return np.array([_information(*_overlap(moved, still, offset)) for offset in offsets])


def _overlap(
    moved: Codes, still: Codes, offset: Offset
) -> tuple[UInt8[np.ndarray, "a2 b2 c2"], UInt8[np.ndarray, "a2 b2 c2"]]:
    of_still = tuple(slice(max(0, by), n + min(0, by)) for by, n in zip(offset, still.shape, strict=True))
    of_moved = tuple(slice(max(0, -by), n + min(0, -by)) for by, n in zip(offset, still.shape, strict=True))
    return moved[of_moved], still[of_still]


def _information(first: Codes, second: Codes) -> float:
    """Mutual information in nats; 0 if the brains overlap too little."""
    side = _BINS + 1
    counts = np.bincount((first.astype(np.uint16) * side + second).ravel(), minlength=side**2)
    joint = counts.reshape(side, side)[1:, 1:]
    total = int(joint.sum())
    if total < COMMON_VOXELS:
        return 0.0
    return _entropy(joint.sum(0), total) + _entropy(joint.sum(1), total) - _entropy(joint.ravel(), total)


def _entropy(counts: Int64[np.ndarray, "n"], total: int) -> float:
    """Entropy in nats, with Miller's (1955) correction for few samples per bin."""
    share = counts[counts > 0] / total
    return float(-(share * np.log(share)).sum() + (share.size - 1) / (2 * total))
