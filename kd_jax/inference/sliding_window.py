"""Sliding-window inference: a network that sees patches, applied to a whole volume.

nnU-Net's procedure (`nnUNetPredictor` of `nnunetv2/inference/predict_from_raw_data.py`): windows half a patch apart,
blended with a Gaussian, mirrored copies averaged as logits. Windows go through the network in batches of one fixed
size and parameters are an argument, so the network is compiled once for all cases and all networks of one
architecture. Only two small programs, which cut out windows and add up their logits, are compiled for every shape.

Images and sums are on the device, in one box or, where a volume is too large for it, in several that the host adds
up. What a window weighs at a voxel is known as a share of all weights there before any network has run: the sums are
the logits as they stand, no volume of weights is kept, and boxes need nothing but adding.

Sums and weights are float32. nnU-Net's are float16, which rounds its logits to three digits.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32, PyTree

from data_pipeline.preprocessing import scratch
from kd_jax.inference.windows import Box, Shape3, Shares, padded_shape, split_into_boxes, window_shares

Forward = Callable[[PyTree, Float[Array, "n d h w c"]], Float[Array, "n d h w k"]]
Weights = tuple[Float32[Array, "n d"], Float32[Array, "n h"], Float32[Array, "n w"]]
T = TypeVar("T")

BOX_BYTES = 2 << 30
"""Of images and logits on the device: four channels each of 406³ voxels. A BraTS case has 0.29 GB."""
_ACCELERATOR_VOXELS = 128**3
"""Voxels in one batch of windows that keep an accelerator busy: one patch of nnU-Net's plan for BraTS."""


class _Added(NamedTuple):
    """What there is once the work on a batch of windows has been ordered.

    Attributes:
      windows: how many.
      logits: of the windows, mirrored last; once they are there the network is done with them.
      sums: of the box so far; those of the batch before no longer exist.
    """

    windows: int
    logits: Float32[Array, "n d h w k"]
    sums: Float32[Array, "d h w k"]


def make_predictor(
    forward: Forward,
    patch: Shape3,
    *,
    inputs: Sequence[int],
    outputs: int,
    batch: int = 1,
    mirror_axes: Sequence[int] = (),
) -> "Predictor":
    """Compile a network once, to apply it with any parameters to any number of volumes of any size.

    Args:
      forward: (params, patches [N, D, H, W, C]) -> logits [N, D, H, W, K].
      patch: size in voxels of the windows.
      inputs: C channels of the images, those that the network sees.
      outputs: K, channels of the logits.
      batch: windows per call of the network; the last call is filled up with windows that weigh nothing.
      mirror_axes: spatial axes to mirror; logits are averaged over all their combinations (three axes: 8).
    """

    @jax.jit
    def network(
        params: PyTree, patches: Float32[Array, "n d h w c"], flips: Bool[Array, " axes"]
    ) -> Float32[Array, "n d h w k"]:
        # Which axes are flipped is data, not structure: all mirrorings share one program.
        logits = forward(params, _flip(patches, mirror_axes, flips))
        return _flip(logits.astype(jnp.float32), mirror_axes, flips)

    subsets = (axes for n in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, n))
    flips = tuple(np.isin(mirror_axes, axes) for axes in subsets)
    return Predictor(network, patch, tuple(inputs), outputs, batch, flips)


@dataclass(frozen=True, eq=False)
class Predictor:
    """Networks of one architecture applied to whole volumes; see `make_predictor`.

    Attributes:
      network: (params, patches, which of the mirrored axes to flip) -> logits, flipped back.
      flips: of every mirroring; the first flips nothing.
    """

    network: Callable[[PyTree, Float32[Array, "n d h w c"], Bool[np.ndarray, " axes"]], Float32[Array, "n d h w k"]]
    patch: Shape3
    inputs: tuple[int, ...]
    outputs: int
    batch: int
    flips: tuple[Bool[np.ndarray, " axes"], ...]

    def __call__(
        self,
        params: PyTree,
        images: Float32[np.ndarray, "d h w m"],
        on_windows: Callable[[int], object] | None = None,
    ) -> Float32[np.ndarray, "d h w k"]:
        """Logits on the grid of `images`, on the host, to be read only.

        Those of several boxes are on its disk where they are large, see `scratch.zeros`. The device holds a box and two
        batches.

        Args:
          params: of the network.
          images: all channels of the case.
          on_windows: is told how many more windows are done.
        """
        shape = padded_shape(images.shape[:3], self.patch)
        shares, params = window_shares(shape, self.patch), jax.device_put(params)
        voxels = BOX_BYTES // (4 * (len(self.inputs) + self.outputs))
        boxes = split_into_boxes(shape, self.patch, voxels)
        parts = (
            self._predict_box(params, _read(images, box, shape, self.inputs), box, shares, on_windows) for box in boxes
        )
        if len(boxes) == 1:
            total = next(parts)
        else:
            total = scratch.zeros((*shape, self.outputs))
            for box, part in zip(boxes, parts, strict=True):
                total[box.place] += part
        return total[_inside(images.shape, shape)]

    def _predict_box(
        self,
        params: PyTree,
        images: Float32[np.ndarray, "D H W c"],
        box: Box,
        shares: Shares,
        on_windows: Callable[[int], object] | None,
    ) -> Float32[np.ndarray, "d h w k"]:
        """What the windows of a box add up to."""
        for added in _one_ahead(self._sum_windows(params, jax.device_put(images), box, shares)):
            added.logits.block_until_ready()
            if on_windows is not None:
                on_windows(added.windows)
        d, h, w = box.size
        return np.asarray(added.sums)[:d, :h, :w]

    def _sum_windows(
        self, params: PyTree, images: Float32[Array, "D H W c"], box: Box, shares: Shares
    ) -> Iterator[_Added]:
        """Orders one batch of windows after the other."""
        sums = jnp.zeros((*box.room, self.outputs), jnp.float32)
        for i in range(0, len(box.windows), self.batch):
            group = box.windows[i : i + self.batch]
            starts, weights = _fill_up(group, shares, self.batch, len(self.flips))
            starts = starts - np.array(box.start, np.int32)
            patches = _cut_out(images, starts, self.patch)
            for flips in self.flips:
                logits = self.network(params, patches, flips)
                sums = _add(sums, logits, starts, weights)
            yield _Added(len(group), logits, sums)


def windows_per_batch(patch: Shape3, backend: str) -> int:
    """Windows that fill an accelerator; one on a CPU, where a larger batch only costs memory and padding."""
    return 1 if backend == "cpu" else max(1, _ACCELERATOR_VOXELS // int(np.prod(patch)))


@functools.partial(jax.jit, static_argnames="patch")
def _cut_out(
    images: Float32[Array, "D H W c"], starts: Int32[Array, "n 3"], patch: Shape3
) -> Float32[Array, "n d h w c"]:
    size = (*patch, images.shape[3])
    return lax.map(lambda start: lax.dynamic_slice(images, (*start, 0), size), starts)


@functools.partial(jax.jit, donate_argnums=0)
def _add(
    sums: Float32[Array, "D H W k"], logits: Float32[Array, "n d h w k"], starts: Int32[Array, "n 3"], weights: Weights
) -> Float32[Array, "D H W k"]:
    """The sums with weighted logits of some windows, in place."""

    def add_window(i: Array, sums: Float32[Array, "D H W k"]) -> Float32[Array, "D H W k"]:
        place = (*starts[i], 0)
        d, h, w = (along[i] for along in weights)
        weighted = logits[i] * d[:, None, None, None] * h[:, None, None] * w[:, None]
        return lax.dynamic_update_slice(sums, lax.dynamic_slice(sums, place, weighted.shape) + weighted, place)

    return lax.fori_loop(0, logits.shape[0], add_window, sums)


def _flip(x: Float[Array, "n d h w c"], axes: Sequence[int], flips: Bool[Array, " axes"]) -> Float[Array, "n d h w c"]:
    for i, axis in enumerate(axes):
        x = jnp.where(flips[i], jnp.flip(x, axis + 1), x)
    return x


def _fill_up(
    group: Sequence[Shape3], shares: Shares, batch: int, mirrorings: int
) -> tuple[Int32[np.ndarray, "n 3"], tuple[Float32[np.ndarray, "n _edge"], ...]]:
    """First voxels and weights of a batch of windows; what it lacks is the last window again, without weight."""
    starts = np.array([*group, *[group[-1]] * (batch - len(group))], np.int32)
    d, h, w = (np.stack([along[start] for start in starts[:, axis]]) for axis, along in enumerate(shares))
    d = d / np.float32(mirrorings)
    d[len(group) :] = 0
    return starts, (d, h, w)


def _read(
    images: Float32[np.ndarray, "d h w m"], box: Box, shape: Shape3, inputs: Sequence[int]
) -> Float32[np.ndarray, "D H W c"]:
    """What lies in a box's room of the images, which are in the middle of `shape`, with zeros around."""
    source, padding = [], []
    for place, room, inside in zip(box.place, box.room, _inside(images.shape, shape), strict=True):
        low, high = max(place.start, inside.start), min(place.stop, inside.stop)
        source.append(slice(low - inside.start, high - inside.start))
        padding.append((low - place.start, place.start + room - high))
    return np.pad(images[tuple(source)][..., list(inputs)], (*padding, (0, 0)))


def _inside(images: Sequence[int], shape: Shape3) -> tuple[slice, ...]:
    """Where images lie that are padded with zeros on both sides, with one more behind them where that is odd."""
    firsts = ((padded - size) // 2 for size, padded in zip(images, shape, strict=False))
    return tuple(slice(first, first + size) for first, size in zip(firsts, images, strict=False))


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each handed out once the next exists: the device computes it while the host waits for this."""
    iterator = iter(items)
    for previous in iterator:
        for current in iterator:
            yield previous
            previous = current
        yield previous
