"""Where patches are cut: nnU-Net's foreground oversampling; and boxes read from memory-mapped volumes."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, Integer, Shaped, UInt8

from data_pipeline.conventions import CLASSES, REGION_CLASSES, Index3, Modality, Shape3

Groups = tuple[tuple[int, ...], ...]

EACH_CLASS: Groups = tuple((c,) for c in range(1, len(CLASSES)))
"""Draw foreground from each tumour class equally often, as nnU-Net does for labels that exclude one another."""

EACH_REGION: Groups = tuple(REGION_CLASSES.values())
"""Draw foreground from each region equally often, as nnU-Net does when it trains on regions."""


@runtime_checkable
class PatchSource(Protocol):
    """What the loader needs of a prepared case (`data_pipeline.cache.entry.PreparedCase` is one).

    Worker processes receive cases by pickle, so volumes are opened on demand and never kept.
    """

    @property
    def id(self) -> str:
        """Name of the case, unique in its data set."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities that exist; the channels of the others are zero."""

    @property
    def shape(self) -> Shape3:
        """Voxels along each axis."""

    @property
    def source(self) -> Any:
        """The `data_pipeline.case.Case` it was prepared from; its `label` is None if there is no ground truth."""

    def images(self) -> Float32[np.ndarray, "D H W C"]:
        """All modalities, channels last, zero outside the brain."""

    def label(self) -> UInt8[np.ndarray, "D H W"]:
        """Internal classes, OUTSIDE_BRAIN outside the brain."""

    def foreground(self) -> Mapping[int, Integer[np.ndarray, "K 3"]]:
        """Voxel coordinates of each foreground class."""


def is_foreground_position(position: int, batch: int, fraction: float) -> bool:
    """Whether this position of a batch must hold foreground: the last `fraction` of it, rounded as nnU-Net does.

    With 1/3: 1 of 2, 1 of 3, 3 of 8. Source: nnU-Net v2, `nnUNetDataLoader._oversample_last_XX_percent`.
    """
    return position >= round(batch * (1 - fraction))


def enlarged_offset(patch: Shape3, enlarged: Shape3) -> Int64[np.ndarray, "3"]:
    """First voxel of the patch inside the box that augmentation reads (nnU-Net crops about the voxel `size // 2`)."""
    return np.array(enlarged) // 2 - np.array(patch) // 2


def start_bounds(
    shape: Shape3, patch: Shape3, enlarged: Shape3
) -> tuple[Int64[np.ndarray, "3"], Int64[np.ndarray, "3"]]:
    """Lowest and highest first voxel of a random patch.

    nnU-Net draws the enlarged patch, padded so that the patch inside reaches the volume's border; rounding may put it
    one voxel beyond. An axis shorter than the patch is centred in it.
    """
    pad = np.array(enlarged) - np.minimum(patch, shape)
    low = enlarged_offset(patch, enlarged) - (pad + 1) // 2
    return low, low + np.array(shape) - enlarged + (pad + 1) // 2 * 2


def uniform_start(low: Integer[np.ndarray, "3"], high: Integer[np.ndarray, "3"], rng: np.random.Generator) -> Index3:
    """First voxel of a patch drawn uniformly between the bounds, both included."""
    x, y, z = rng.integers(low, high, endpoint=True).tolist()
    return x, y, z


def foreground_voxel(case: PatchSource, groups: Groups, rng: np.random.Generator) -> Integer[np.ndarray, "3"] | None:
    """A random voxel of a random group of classes; all groups present are equally likely. None if there are none.

    The cache holds equally many voxels of each class, whatever its size. A class of the group is therefore drawn first,
    with a probability proportional to its volume.
    """
    stored = case.foreground()
    present = [group for group in groups if any(len(stored[c]) for c in group)]
    if not present:
        return None
    members = present[rng.integers(len(present))]
    chosen = members[0]
    if len(members) > 1:
        label = case.label()
        sizes = np.array([np.count_nonzero(label == c) for c in members])
        chosen = members[rng.choice(len(members), p=sizes / sizes.sum())]
    return stored[chosen][rng.integers(len(stored[chosen]))]


def choose_start(
    case: PatchSource,
    patch: Shape3,
    forced: bool,
    rng: np.random.Generator,
    *,
    enlarged: Shape3 | None = None,
    groups: Groups = EACH_CLASS,
) -> Index3:
    """First voxel of the patch to cut from a case; source: nnU-Net v2, `nnUNetDataLoader.get_bbox`.

    Args:
      case: the case to cut from.
      patch: voxels along each axis.
      forced: the patch's voxel `patch // 2` must be foreground, if the case has any; such a patch may reach beyond the
        far end of the volume, but not beyond the lowest start.
      rng: source of randomness.
      enlarged: from `augment.reach`; None if the patch is not augmented.
      groups: the groups to draw foreground from, EACH_CLASS or EACH_REGION.
    """
    low, high = start_bounds(case.shape, patch, enlarged or patch)
    voxel = foreground_voxel(case, groups, rng) if forced else None
    if voxel is None:
        return uniform_start(low, high, rng)
    x, y, z = np.maximum(low, voxel - np.array(patch) // 2).tolist()
    return x, y, z


def read_box(
    volume: Shaped[np.ndarray, "D H W *c"], start: Index3, size: Shape3, fill: float
) -> Shaped[np.ndarray, "d h w *c"]:
    """The box of `size` voxels at `start`, filled with `fill` outside the volume.

    Only the box is read from a memory map. A box that lies wholly inside is a view of `volume`: copy it before writing.
    """
    extent = volume.shape[:3]
    low = [min(max(s, 0), e) for s, e in zip(start, extent, strict=True)]
    high = [min(max(s + n, 0), e) for s, n, e in zip(start, size, extent, strict=True)]
    inside = volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    if inside.shape[:3] == tuple(size):
        return inside
    box = np.full((*size, *volume.shape[3:]), fill, volume.dtype)
    box[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))] = inside
    return box
