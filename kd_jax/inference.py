"""Sliding-window inference: a network that sees patches, applied to a whole volume.

nnU-Net's procedure (`nnunetv2/inference/sliding_window_prediction.py`): windows half a patch apart, blended with
a Gaussian, mirrored copies averaged as logits. Windows go through the network in batches of one fixed size, so
one program is compiled for all cases, and the sums are held on the host, so device memory does not grow with
the volume.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations, product
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, PyTree
from scipy import ndimage

from data_pipeline.conventions import CLASSES

Shape3 = tuple[int, int, int]
Forward = Callable[[PyTree, Float[Array, "n d h w c"]], Float[Array, "n d h w k"]]
T = TypeVar("T")

STEP = 0.5
"""Largest distance between neighbouring windows, as a fraction of the patch."""
SIGMA = 1 / 8
"""Standard deviation of the blending Gaussian, as a fraction of the patch."""
ALL_AXES = (0, 1, 2)

_ACCELERATOR_VOXELS = 128**3
"""Voxels in one batch of windows that keep an accelerator busy: one patch of nnU-Net's plan for BraTS."""


class Predictor(Protocol):
    """A network applied to whole volumes."""

    def __call__(
        self, images: Float32[np.ndarray, "d h w c"], on_windows: Callable[[int], object] | None = None
    ) -> Float32[np.ndarray, "d h w k"]:
        """Logits on the grid of `images`; `on_windows` is told how many more windows are done."""


def make_predictor(
    forward: Forward,
    params: PyTree,
    patch: Shape3,
    *,
    batch: int = 1,
    mirror_axes: Sequence[int] = (),
    classes: int = len(CLASSES),
) -> Predictor:
    """Compile a network once, to apply it to any number of volumes of any size.

    Args:
      forward: (params, patches [N, D, H, W, C]) -> logits [N, D, H, W, K].
      params: what `forward` takes first; copied to the device once.
      patch: size in voxels of the windows.
      batch: windows per call of the network; the last call of a volume is filled up with zeros.
      mirror_axes: spatial axes to mirror; logits are averaged over all their combinations (three axes: 8).
      classes: K.

    Returns:
      A function from images [D, H, W, C] to logits [D, H, W, K], both float32 on the host. Beside the two it
      holds one volume of weights, and on the device two batches of windows.
    """
    params, importance = jax.device_put((params, gaussian_importance(patch)[..., None]))
    mirrorings = [np.isin(ALL_AXES, axes) for n in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, n)]

    @jax.jit
    def weighted_logits(
        params: PyTree, importance: Float[Array, "d h w 1"], patches: Float[Array, "n d h w c"], flips: Bool[Array, "3"]
    ) -> Float32[Array, "n d h w k"]:
        # Which axes are flipped is data, not structure: all mirrorings share one program.
        logits = _flip(forward(params, _flip(patches, flips)), flips)
        return logits.astype(jnp.float32) * (importance / len(mirrorings))

    def weighted_batches(
        volume: Float32[np.ndarray, "d h w c"], starts: Sequence[Shape3]
    ) -> Iterator[tuple[Sequence[Shape3], Float32[Array, "n d h w k"]]]:
        for i in range(0, len(starts), batch):
            group = starts[i : i + batch]
            patches = np.zeros((batch, *patch, volume.shape[-1]), np.float32)
            for slot, start in zip(patches, group, strict=False):
                slot[:] = volume[_window(start, patch)]
            on_device = jax.device_put(patches)
            total = weighted_logits(params, importance, on_device, mirrorings[0])
            for flips in mirrorings[1:]:
                total = total + weighted_logits(params, importance, on_device, flips)
            yield group, total

    def predict(
        images: Float32[np.ndarray, "d h w c"], on_windows: Callable[[int], object] | None = None
    ) -> Float32[np.ndarray, "d h w k"]:
        volume, inside = _pad_to(images, patch)
        starts = window_starts(volume.shape[:3], patch)
        logits = np.zeros((*volume.shape[:3], classes), np.float32)
        weights = np.zeros((*volume.shape[:3], 1), np.float32)
        host_importance = np.asarray(importance)
        for group, on_device in _one_ahead(weighted_batches(volume, starts)):
            for start, window_logits in zip(group, np.asarray(on_device), strict=False):
                logits[_window(start, patch)] += window_logits
                weights[_window(start, patch)] += host_importance
            if on_windows is not None:
                on_windows(len(group))
        logits /= weights
        return logits[inside]

    return predict


def window_starts(shape: Sequence[int], patch: Shape3) -> list[Shape3]:
    """First voxels of the windows covering a volume at least as large as the patch.

    Along each axis ceil((size - patch) / (patch * STEP)) + 1 windows, evenly spaced, the first at 0 and the last
    ending at the border (nnU-Net, `compute_steps_for_sliding_window`).

    Raises:
      ValueError: the volume is smaller than the patch.
    """
    per_axis = []
    for size, edge in zip(shape, patch, strict=True):
        room = size - edge
        if room < 0:
            raise ValueError(f"volume {tuple(shape)} is smaller than the patch {patch}")
        count = math.ceil(room / (edge * STEP)) + 1
        per_axis.append([round(i * room / max(count - 1, 1)) for i in range(count)])
    d, h, w = per_axis
    return list(product(d, h, w))


def window_count(shape: Sequence[int], patch: Shape3) -> int:
    """Windows a predictor runs for a volume of this spatial shape, however small."""
    return len(window_starts([max(size, edge) for size, edge in zip(shape, patch, strict=True)], patch))


def gaussian_importance(patch: Shape3) -> Float32[np.ndarray, "d h w"]:
    """Weight of each voxel of a window: a Gaussian around its centre, maximum 1, nowhere zero.

    nnU-Net, `compute_gaussian`: a unit impulse filtered with sigma = patch / 8; what vanishes is raised to the
    smallest weight that does not, so that every voxel can be divided by its sum of weights.
    """
    impulse = np.zeros(patch, np.float64)
    impulse[tuple(edge // 2 for edge in patch)] = 1
    weights = ndimage.gaussian_filter(impulse, [edge * SIGMA for edge in patch], mode="constant")
    weights = (weights / weights.max()).astype(np.float32)
    weights[weights == 0] = weights[weights > 0].min()
    return weights


def windows_per_batch(patch: Shape3, backend: str) -> int:
    """Windows that fill an accelerator; one on a CPU, where a larger batch only costs memory and padding."""
    return 1 if backend == "cpu" else max(1, _ACCELERATOR_VOXELS // math.prod(patch))


def _flip(x: Float[Array, "n d h w c"], flips: Bool[Array, "3"]) -> Float[Array, "n d h w c"]:
    for axis in ALL_AXES:
        x = jnp.where(flips[axis], jnp.flip(x, axis + 1), x)
    return x


def _window(start: Shape3, patch: Shape3) -> tuple[slice, ...]:
    return tuple(slice(first, first + edge) for first, edge in zip(start, patch, strict=True))


def _pad_to(
    images: Float32[np.ndarray, "d h w c"], patch: Shape3
) -> tuple[Float32[np.ndarray, "D H W c"], tuple[slice, ...]]:
    """Zeros on both sides of the axes shorter than the patch, and where the images lie in the result."""
    before = [max(edge - size, 0) // 2 for size, edge in zip(images.shape, patch, strict=False)]
    after = [max(edge - size, 0) - b for size, edge, b in zip(images.shape, patch, before, strict=False)]
    inside = tuple(slice(b, b + size) for b, size in zip(before, images.shape, strict=False))
    if not any(before) and not any(after):
        return images, inside
    return np.pad(images, [*zip(before, after, strict=True), (0, 0)]), inside


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each handed out once the next exists: the device computes it while the host uses this one."""
    iterator = iter(items)
    for previous in iterator:
        for current in iterator:
            yield previous
            previous = current
        yield previous
