"""Where patches are cut: nnU-Net's foreground oversampling, and boxes read out of memory-mapped volumes."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, Integer, Shaped, UInt8

from data_pipeline.conventions import Modality

Triple = tuple[int, int, int]


class PatchSource(Protocol):
    """What the loader needs of a prepared case (`data_pipeline.prepare.PreparedCase` is one).

    Worker processes get their copy by pickle, so volumes are opened when asked for and never kept.
    """

    @property
    def id(self) -> str:
        """Name of the case, unique in its data set."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities that exist; the channels of the others are zero."""

    @property
    def shape(self) -> Triple:
        """Voxels along each axis."""

    @property
    def source(self) -> Any:
        """The `formats.Case` it was prepared from; its `label` is None if there is no ground truth."""

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


def uniform_start(shape: Triple, patch: Triple, rng: np.random.Generator) -> Triple:
    """First voxel of a patch drawn uniformly inside the volume; an axis shorter than the patch is centred in it."""
    room = [volume - size for volume, size in zip(shape, patch, strict=True)]
    x, y, z = (int(rng.integers(r + 1)) if r >= 0 else -((-r) // 2) for r in room)
    return x, y, z


def foreground_start(
    foreground: Mapping[int, Integer[np.ndarray, "K 3"]], patch: Triple, rng: np.random.Generator
) -> Triple | None:
    """First voxel of a patch whose voxel `patch // 2` is a random voxel of a random class, each class equally likely.

    The patch may reach beyond the volume; what lies there is outside the brain like the rest of the crop's border.
    None if the case has no foreground.
    """
    present = sorted(c for c, voxels in foreground.items() if len(voxels))
    if not present:
        return None
    voxels = foreground[present[rng.integers(len(present))]]
    x, y, z = (int(v) - size // 2 for v, size in zip(voxels[rng.integers(len(voxels))], patch, strict=True))
    return x, y, z


def choose_start(case: PatchSource, patch: Triple, forced: bool, rng: np.random.Generator) -> Triple:
    """First voxel of the patch to cut from a case: on the foreground if `forced` and there is any, else uniform."""
    start = foreground_start(case.foreground(), patch, rng) if forced else None
    return uniform_start(case.shape, patch, rng) if start is None else start


def read_box(
    volume: Shaped[np.ndarray, "D H W *c"], start: Triple, size: Triple, fill: float
) -> Shaped[np.ndarray, "d h w *c"]:
    """The box of `size` voxels at `start`; what lies outside the volume is `fill`.

    Only the box is read from a memory map. A box that lies wholly inside is a view of `volume`: copy before writing.
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
