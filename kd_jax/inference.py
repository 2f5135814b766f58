"""Sliding-window inference: a network that sees patches, applied to a whole volume.

nnU-Net's procedure (`nnunetv2/inference/sliding_window_prediction.py`): windows half a patch apart, blended with
a Gaussian, mirrored copies averaged as logits. Windows go through the network in batches of one fixed size and
parameters are an argument, so one program is compiled for all cases and all networks of one architecture. The sums
are held on the host, for large volumes on its disk, so memory does not grow with the volume.

Sums and weights are float32. nnU-Net's are float16, which rounds its logits to three digits.
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

from data_pipeline import storage

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
    """Networks of one architecture applied to whole volumes."""

    def __call__(
        self,
        params: PyTree,
        images: Float32[np.ndarray, "d h w m"],
        on_windows: Callable[[int], object] | None = None,
    ) -> Float32[np.ndarray, "d h w k"]:
        """Logits on the grid of `images`; `on_windows` is told how many more windows are done."""


def make_predictor(
    forward: Forward,
    patch: Shape3,
    *,
    inputs: Sequence[int],
    outputs: int,
    batch: int = 1,
    mirror_axes: Sequence[int] = (),
) -> Predictor:
    """Compile a network once, to apply it with any parameters to any number of volumes of any size.

    Args:
      forward: (params, patches [N, D, H, W, C]) -> logits [N, D, H, W, K].
      patch: size in voxels of the windows.
      inputs: C channels of the images, those that the network sees.
      outputs: K, channels of the logits.
      batch: windows per call of the network; the last call of a volume is filled up with zeros.
      mirror_axes: spatial axes to mirror; logits are averaged over all their combinations (three axes: 8).

    Returns:
      A function from parameters and images [D, H, W, M] to logits [D, H, W, K] on the host, float32. Beside the two
      it holds one volume of weights (both on disk where large, see `storage`), and on the device two batches.
    """
    flat_importance = gaussian_importance(patch)[..., None]
    mirrorings = [np.isin(ALL_AXES, axes) for n in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, n)]

    @jax.jit
    def weighted_logits(
        params: PyTree, importance: Float[Array, "d h w 1"], patches: Float[Array, "n d h w c"], flips: Bool[Array, "3"]
    ) -> Float32[Array, "n d h w k"]:
        # Which axes are flipped is data, not structure: all mirrorings share one program.
        logits = _flip(forward(params, _flip(patches, flips)), flips)
        return logits.astype(jnp.float32) * (importance / len(mirrorings))

    def weighted_batches(
        params: PyTree, images: Float32[np.ndarray, "d h w m"], starts: Sequence[Shape3]
    ) -> Iterator[tuple[Sequence[Shape3], Float32[Array, "n d h w k"]]]:
        params, importance = jax.device_put((params, flat_importance))
        for i in range(0, len(starts), batch):
            group = starts[i : i + batch]
            patches = np.zeros((batch, *patch, len(inputs)), np.float32)
            for slot, start in zip(patches, group, strict=False):
                _fill(slot, images, start, inputs)
            on_device = jax.device_put(patches)
            total = weighted_logits(params, importance, on_device, mirrorings[0])
            for flips in mirrorings[1:]:
                total = total + weighted_logits(params, importance, on_device, flips)
            yield group, total

    def predict(
        params: PyTree,
        images: Float32[np.ndarray, "d h w m"],
        on_windows: Callable[[int], object] | None = None,
    ) -> Float32[np.ndarray, "d h w k"]:
        shape = [max(size, edge) for size, edge in zip(images.shape, patch, strict=False)]
        starts = window_starts(shape, patch)
        logits, weights = storage.zeros((*shape, outputs)), storage.zeros((*shape, 1))
        for group, on_device in _one_ahead(weighted_batches(params, images, starts)):
            for start, window_logits in zip(group, np.asarray(on_device), strict=False):
                logits[_window(start, patch)] += window_logits
                weights[_window(start, patch)] += flat_importance
            if on_windows is not None:
                on_windows(len(group))
        logits /= weights
        return logits[_window(_margin(images, patch), images.shape[:3])]

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


def _window(start: Shape3, patch: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(first, first + edge) for first, edge in zip(start, patch, strict=True))


def _margin(images: Float32[np.ndarray, "d h w m"], patch: Sequence[int]) -> Shape3:
    """Zeros in front of each axis of images that are smaller than the patch there; as many, or one more, follow."""
    d, h, w = (max(edge - size, 0) // 2 for size, edge in zip(images.shape, patch, strict=False))
    return d, h, w


def _fill(
    slot: Float32[np.ndarray, "d h w c"],
    images: Float32[np.ndarray, "D H W m"],
    start: Shape3,
    inputs: Sequence[int],
) -> None:
    """Put the part of a window that lies inside the images into a slot of zeros."""
    places = zip(start, _margin(images, slot.shape[:3]), slot.shape, images.shape, strict=False)
    source, target = [], []
    for first, margin, edge, size in places:
        inside = slice(max(first - margin, 0), min(first - margin + edge, size))
        source.append(inside)
        target.append(slice(inside.start - first + margin, inside.stop - first + margin))
    slot[tuple(target)] = images[tuple(source)][..., list(inputs)]


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each handed out once the next exists: the device computes it while the host uses this one."""
    iterator = iter(items)
    for previous in iterator:
        for current in iterator:
            yield previous
            previous = current
        yield previous
