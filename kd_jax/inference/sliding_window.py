"""Sliding-window inference: applies a network that sees patches to a whole volume.

The procedure is nnU-Net's (`nnUNetPredictor` of `nnunetv2/inference/predict_from_raw_data.py`): windows half a patch
apart, blended with a Gaussian; logits averaged over mirrored copies. Windows go through the network in batches of one
fixed size, and the parameters are an argument, so the network is compiled once for all cases and for all networks of
one architecture. Only two small programs, which cut out windows and add up their logits, are compiled for every shape.

Images and sums are on the device, in one chunk, or in several that the host adds up if the volume is too large for the
device. The weight of a window at a voxel is known as a share of all weights there before any network has run. So the
sums are the logits already, no volume of weights is kept, and chunks can simply be added.

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

from data_pipeline.conventions import Shape3
from data_pipeline.preprocessing import scratch
from kd_jax.inference.windows import Chunk, Shares, padded_shape, split_into_chunks, window_shares

Forward = Callable[[PyTree, Float[Array, "n d h w c"]], Float[Array, "n d h w k"]]
Weights = tuple[Float32[Array, "n d"], Float32[Array, "n h"], Float32[Array, "n w"]]
T = TypeVar("T")

CHUNK_BYTES = 2 << 30
"""Most memory of images and logits on the device: four channels each of 406³ voxels. A BraTS case needs 0.29 GB."""
_ACCELERATOR_VOXELS = 128**3
"""Voxels in one batch of windows that keep an accelerator busy: one patch of nnU-Net's plan for BraTS."""


class _Added(NamedTuple):
    """A batch of windows whose computation has been dispatched to the device, but may not be finished.

    Attributes:
      windows: how many.
      logits: of the windows, from the last mirroring; when they are ready, the network has finished the batch.
      sums: of the chunk so far. They replace those of the batch before, whose memory is donated to them.
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
    """Prepare a network to be compiled once and applied, with any parameters, to any number of volumes of any size.

    Args:
      forward: (params, patches [N, D, H, W, C]) -> logits [N, D, H, W, K].
      patch: size in voxels of the windows.
      inputs: the C channels of the images that the network sees, in its order.
      outputs: K, channels of the logits.
      batch: windows per call of the network; the last call is filled up with windows of weight 0.
      mirror_axes: spatial axes to mirror; logits are averaged over all combinations of them (8 for three axes).
    """

    @jax.jit
    def network(
        params: PyTree, patches: Float32[Array, "n d h w c"], flips: Bool[Array, " axes"]
    ) -> Float32[Array, "n d h w k"]:
        # Which axes are flipped is an argument, not part of the program: all mirrorings share one compilation.
        logits = forward(params, _flip(patches, mirror_axes, flips))
        return _flip(logits.astype(jnp.float32), mirror_axes, flips)

    subsets = (axes for n in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, n))
    flips = tuple(np.isin(mirror_axes, axes) for axes in subsets)
    return Predictor(network, patch, tuple(inputs), outputs, batch, flips)


@dataclass(frozen=True, eq=False)
class Predictor:
    """Applies networks of one architecture to whole volumes; see `make_predictor`.

    Attributes:
      network: (params, patches, which of the mirrored axes to flip) -> logits, flipped back.
      patch: size in voxels of the windows.
      inputs: channels of the images that the network sees.
      outputs: channels of the logits.
      batch: windows per call of the network.
      flips: which of the mirrored axes to flip, for every mirroring; the first flips none.
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
        """Logits on the grid of `images`, on the host, read-only.

        Large logits of several chunks are in a file on disk, see `scratch.zeros`. The device holds one chunk and two
        batches.

        Args:
          params: of the network.
          images: all channels of the case.
          on_windows: called with the number of windows that have been finished since the last call.
        """
        shape = padded_shape(images.shape[:3], self.patch)
        shares, params = window_shares(shape, self.patch), jax.device_put(params)
        voxels = CHUNK_BYTES // (4 * (len(self.inputs) + self.outputs))
        chunks = split_into_chunks(shape, self.patch, voxels)
        parts = (
            self._predict_chunk(params, _read(images, chunk, shape, self.inputs), chunk, shares, on_windows)
            for chunk in chunks
        )
        if len(chunks) == 1:
            total = next(parts)
        else:
            total = scratch.zeros((*shape, self.outputs))
            for chunk, part in zip(chunks, parts, strict=True):
                total[chunk.place] += part
        return total[_inside(images.shape, shape)]

    def _predict_chunk(
        self,
        params: PyTree,
        images: Float32[np.ndarray, "D H W c"],
        chunk: Chunk,
        shares: Shares,
        on_windows: Callable[[int], object] | None,
    ) -> Float32[np.ndarray, "d h w k"]:
        """The weighted sum of the logits of a chunk's windows."""
        for added in _one_ahead(self._sum_windows(params, jax.device_put(images), chunk, shares)):
            added.logits.block_until_ready()
            if on_windows is not None:
                on_windows(added.windows)
        d, h, w = chunk.size
        return np.asarray(added.sums)[:d, :h, :w]

    def _sum_windows(
        self, params: PyTree, images: Float32[Array, "D H W c"], chunk: Chunk, shares: Shares
    ) -> Iterator[_Added]:
        """Dispatches one batch of windows after the other."""
        sums = jnp.zeros((*chunk.room, self.outputs), jnp.float32)
        for i in range(0, len(chunk.windows), self.batch):
            group = chunk.windows[i : i + self.batch]
            starts, weights = _fill_up(group, shares, self.batch, len(self.flips))
            starts = starts - np.array(chunk.start, np.int32)
            patches = _cut_out(images, starts, self.patch)
            for flips in self.flips:
                logits = self.network(params, patches, flips)
                sums = _add(sums, logits, starts, weights)
            yield _Added(len(group), logits, sums)


def windows_per_batch(patch: Shape3, backend: str) -> int:
    """Windows that keep an accelerator busy; one on a CPU, where a larger batch only costs memory and padding."""
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
    """Adds the weighted logits of some windows to the sums, in place."""

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
    """First voxels and weights of a full batch: a smaller group is filled up with its last window at weight 0."""
    starts = np.array([*group, *[group[-1]] * (batch - len(group))], np.int32)
    d, h, w = (np.stack([along[start] for start in starts[:, axis]]) for axis, along in enumerate(shares))
    d = d / np.float32(mirrorings)
    d[len(group) :] = 0
    return starts, (d, h, w)


def _read(
    images: Float32[np.ndarray, "d h w m"], chunk: Chunk, shape: Shape3, inputs: Sequence[int]
) -> Float32[np.ndarray, "D H W c"]:
    """The part of the images inside a chunk's room; they lie in the middle of `shape`, surrounded by zeros."""
    source, padding = [], []
    for place, room, inside in zip(chunk.place, chunk.room, _inside(images.shape, shape), strict=True):
        low, high = max(place.start, inside.start), min(place.stop, inside.stop)
        source.append(slice(low - inside.start, high - inside.start))
        padding.append((low - place.start, place.start + room - high))
    return np.pad(images[tuple(source)][..., list(inputs)], (*padding, (0, 0)))


def _inside(images: Sequence[int], shape: Shape3) -> tuple[slice, ...]:
    """Where images lie after padding on both sides; of an odd number of zeros, the greater half is behind them."""
    firsts = ((padded - size) // 2 for size, padded in zip(images, shape, strict=False))
    return tuple(slice(first, first + size) for first, size in zip(firsts, images, strict=False))


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each yielded after the next exists: a device computes that one while the host waits for this."""
    iterator = iter(items)
    for previous in iterator:
        for current in iterator:
            yield previous
            previous = current
        yield previous
