"""Compares resampling and sliding-window prediction with nnU-Net's own functions and predictor, on whole volumes."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from jaxtyping import Array, Bool, Float, Float32, PyTree
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape

from data_pipeline.conventions import CLASSES, Shape3, Spacing
from data_pipeline.preprocessing.resample import (
    resample_image,
    resample_label,
    resample_linear_rows,
    resampled_shape,
    slice_axis,
)
from experiments.parity.check import GOLDEN, Check
from kd_jax.config.network import NetworkConfig
from kd_jax.inference.sliding_window import Forward, make_predictor
from kd_jax.inference.windows import gaussian_importance, window_starts
from kd_jax.models.unet import UNet
from kd_jax.nnunet.weights import convert_weights
from kd_jax.ops.operators import conv3d, instance_norm_leaky_relu

RESAMPLING: dict[str, tuple[Shape3, Spacing, Spacing]] = {
    "coarser": ((14, 16, 12), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0)),
    "finer": ((10, 9, 8), (1.3, 1.0, 1.1), (1.0, 0.7, 1.0)),
    "slices": ((14, 12, 5), (1.0, 1.0, 5.0), (1.5, 1.5, 2.0)),
    "first axis coarse_axis": ((5, 12, 11), (6.0, 1.0, 1.2), (1.0, 1.0, 1.0)),
    "second axis coarse_axis": ((9, 14, 8), (1.0, 1.0, 1.0), (0.9, 4.0, 0.9)),
    "two coarse": ((16, 6, 5), (0.5, 2.0, 2.0), (1.0, 1.0, 1.0)),
}
"""Shape, spacing and target spacing in mm."""
VOLUMES: dict[str, tuple[Shape3, Shape3, tuple[int, ...]]] = {
    "odd sizes": ((13, 11, 9), (8, 8, 8), (0, 1, 2)),
    "smaller than the patch": ((15, 6, 9), (8, 8, 8), (0, 2)),
    "anisotropic patch": ((10, 17, 7), (8, 12, 4), (1,)),
}
"""Shape, patch and mirrored axes."""
BRATS: Shape3 = (240, 240, 155)
PATCH: Shape3 = (128, 128, 128)

TIE = 1e-6
"""Two largest logits this close are a tie: logits of the two sides differ by as much."""
VALUE_SCALING = 10
"""Largest weight of nnU-Net's Gaussian."""

Logits = Float32[np.ndarray, "d h w k"]
Sides = tuple[Forward, PyTree, torch.nn.Module]
"""Our forward function, its parameters, and nnU-Net's network."""


def checks() -> Iterator[Check]:
    """Resampling, windows, weights, blended logits of small volumes and of one of BraTS's size."""
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    yield from _resampling()
    yield from _windows()
    yield from _small_volumes()
    yield from _whole_case()


def _resampling() -> Iterator[Check]:
    rng = np.random.default_rng(0)
    golden: dict[str, np.ndarray] = {}
    images = logits = labels = shapes = 0.0
    for name, (shape, spacing, target) in RESAMPLING.items():
        image = rng.normal(size=shape).astype(np.float32)
        label = rng.integers(0, len(CLASSES), shape).astype(np.uint8)
        new, coarse_axis = resampled_shape(shape, spacing, target), slice_axis(spacing, target)
        shapes += float(np.abs(compute_new_shape(shape, spacing, target) - new).max())
        theirs = partial(_resampled, new_shape=new, current_spacing=spacing, new_spacing=target)
        spline, linear = theirs(image, order=3), theirs(image, order=1)
        classes = theirs(label, order=1, is_seg=True)
        images = max(images, _difference(resample_image(image, new, coarse_axis), spline))
        rows = [resample_linear_rows(image[..., None], new, slice(i, i + 1), coarse_axis) for i in range(new[0])]
        logits = max(logits, _difference(np.concatenate(rows)[..., 0], linear))
        labels += np.count_nonzero(resample_label(label, new, coarse_axis) != classes)
        golden |= {
            f"{name}/spacings": np.array([spacing, target]),
            f"{name}/image": image,
            f"{name}/label": label,
            f"{name}/image resampled": spline,
            f"{name}/logits resampled": linear,
            f"{name}/label resampled": classes,
        }
    np.savez_compressed(GOLDEN / "resampling.npz", **golden)  # type: ignore[arg-type]
    yield Check("resampling: shapes", shapes, 0)
    yield Check("resampling: images, order 3", images, 1e-5)
    yield Check("resampling: logits, order 1", logits, 1e-5)
    yield Check("resampling: labels", labels, 0, "voxels that differ")


def _resampled(values: np.ndarray, *, order: int, is_seg: bool = False, **grids: Any) -> np.ndarray:
    """nnU-Net's, with the settings of its default plan."""
    return resample_data_or_seg_to_shape(
        values[None], order=order, is_seg=is_seg, order_z=0, force_separate_z=None, **grids
    )[0]


def _windows() -> Iterator[Check]:
    patches: tuple[Shape3, ...] = PATCH, (16, 16, 16), (20, 28, 12)
    starts = differing = 0.0
    for patch in patches:
        for extra in range(0, 150, 7):
            shape = [edge + extra * (axis + 1) // 2 for axis, edge in enumerate(patch)]
            per_axis = compute_steps_for_sliding_window(tuple(shape), patch, 0.5)
            theirs = [(d, h, w) for d in per_axis[0] for h in per_axis[1] for w in per_axis[2]]
            starts += theirs != window_starts(shape, patch)
        gaussian = compute_gaussian(patch, 1 / 8, dtype=torch.float32, device=torch.device("cpu")).numpy()
        differing = max(differing, float((np.abs(gaussian_importance(patch) - gaussian) / gaussian).max()))
    yield Check("windows: starts", starts, 0, "shapes that differ")
    yield Check("windows: Gaussian, float32", differing, 1e-6, "relative difference")


def _small_volumes() -> Iterator[Check]:
    golden: dict[str, np.ndarray] = {}
    forward, params, network = _convolutions()
    for name, (shape, patch, axes) in VOLUMES.items():
        images = _images(shape)
        for mirrored in ((), axes):
            ours = make_predictor(forward, patch, inputs=(0, 1), outputs=len(CLASSES), batch=3, mirror_axes=mirrored)
            theirs = _nnunet(network, images, patch, mirrored, half=False)
            golden[f"{name}/{''.join(map(str, mirrored))}"] = theirs
            yield Check(f"{name}, mirrored axes {mirrored}: logits", _difference(ours(params, images), theirs), 1e-4)
    golden |= {"kernel": np.asarray(params["kernel"]), "head": np.asarray(params["head"])}
    for patch in ((16, 24, 8), (9, 16, 5)):
        device = torch.device("cpu")
        golden[f"gaussian/{patch}"] = compute_gaussian(patch, 1 / 8, dtype=torch.float32, device=device).numpy()
    for shape in (BRATS, (128, 200, 191), (129, 333, 512)):
        steps = compute_steps_for_sliding_window(shape, PATCH, 0.5)
        golden[f"starts/{shape}"] = np.array([(d, h, w) for d in steps[0] for h in steps[1] for w in steps[2]])
    np.savez_compressed(GOLDEN / "inference.npz", **golden)  # type: ignore[arg-type]


def _whole_case() -> Iterator[Check]:
    images = _images(BRATS)
    yield from _compared("U-Net", _unet(), images, ())
    for axes in ((), (0, 1), (0, 1, 2)):
        yield from _compared("convolution", _convolutions(), images, axes)
    forward, params, network = _convolutions()
    predict = make_predictor(forward, PATCH, inputs=(0, 1), outputs=len(CLASSES))
    ours, rounded = predict(params, images), _nnunet(network, images, PATCH, (), half=True)
    # nnU-Net as it is: Gaussian, sums and weights in float16, also on a CPU. Towards the corners of the volume, where
    # a window's Gaussian is all the weight there is, sums leave the normal range of float16 and logits become coarse.
    coarse_axis = np.abs(ours - rounded).max(axis=-1) / np.abs(ours).max()
    normal = VALUE_SCALING * _weights(BRATS, PATCH) >= np.finfo(np.float16).smallest_normal
    name, measure = "240 x 240 x 155, nnU-Net in float16", "difference, relative to the largest"
    yield Check(f"{name}: logits where weights are normal", float(coarse_axis[normal].max()), 4 * 2.0**-10, measure)
    yield Check(f"{name}: voxels where they are not", float(1 - normal.mean()), 0.1, "share of voxels")
    yield Check(f"{name}: logits there", float(coarse_axis[~normal].max()), 0.2, measure)
    yield Check(f"{name}: classes", float(_differing(ours, rounded).mean()), 0.01, "share of voxels that differ")


def _weights(shape: Shape3, patch: Shape3) -> Float32[np.ndarray, "d h w"]:
    total, weights = np.zeros(shape, np.float32), gaussian_importance(patch)
    for start in window_starts(shape, patch):
        total[tuple(slice(first, first + edge) for first, edge in zip(start, patch, strict=True))] += weights
    return total


def _compared(name: str, sides: Sides, images: Float32[np.ndarray, "d h w 2"], axes: Sequence[int]) -> Iterator[Check]:
    forward, params, network = sides
    predict = make_predictor(forward, PATCH, inputs=(0, 1), outputs=len(CLASSES), mirror_axes=axes)
    ours, seconds = _timed(lambda: predict(params, images))
    theirs, seconds_theirs = _timed(lambda: _nnunet(network, images, PATCH, axes, half=False))
    what = f"240 x 240 x 155, patch 128, {name}, mirrored axes {axes}"
    print(f"{what}: {seconds:.1f} s, nnU-Net {seconds_theirs:.1f} s", file=sys.stderr)
    yield Check(f"{what}: logits", _difference(ours, theirs), 1e-4)
    # An untrained network gives ties, and rounding decides them.
    differing, largest = _differing(ours, theirs), np.sort(theirs, axis=-1)
    decided = largest[..., -1] - largest[..., -2] > TIE
    count = float(np.count_nonzero(differing & decided))
    yield Check(f"{what}: classes", count, 0, f"voxels that differ, margin > {TIE:g}")
    yield Check(f"{what}: classes, ties too", float(differing.mean()), 1e-5, "share of voxels that differ")


def _unet() -> Sides:
    """A small U-Net of nnU-Net's, its weights carried over."""
    torch.manual_seed(0)
    network = PlainConvUNet(
        2,
        2,
        [4, 8],
        torch.nn.Conv3d,
        3,
        [1, 2],
        1,
        len(CLASSES),
        1,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    config = NetworkConfig(modalities=("t1ce", "flair"), features=(4, 8), convs_encoder=(1,), convs_decoder=(1,))
    module = UNet(config, classes=len(CLASSES))

    def forward(params: PyTree, x: Float[Array, "n d h w c"]) -> Float[Array, "n d h w k"]:
        return module.apply({"params": params}, x).logits[0]

    return forward, convert_weights(state, config), network


def _convolutions() -> Sides:
    """One network on both sides: convolution, normalisation over the window, LeakyReLU, classes.

    The normalisation makes logits depend on the whole window, so that a window in another place shows.
    """
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(3, 3, 3, 2, 4)).astype(np.float32) / 7
    head = rng.normal(size=(1, 1, 1, 4, len(CLASSES))).astype(np.float32)

    def forward(params: PyTree, x: Float[Array, "n d h w c"]) -> Float[Array, "n d h w k"]:
        y = conv3d(x, params["kernel"], (1, 1, 1))
        y = instance_norm_leaky_relu(y, jnp.ones(y.shape[-1]), jnp.zeros(y.shape[-1]))
        return y @ params["head"][0, 0, 0]

    first = torch.nn.Conv3d(2, 4, 3, padding=1, bias=False)
    last = torch.nn.Conv3d(4, len(CLASSES), 1, bias=False)
    for layer, weights in ((first, kernel), (last, head)):
        layer.weight.data = torch.from_numpy(weights.transpose(4, 3, 0, 1, 2).copy())
    network = torch.nn.Sequential(first, torch.nn.InstanceNorm3d(4), torch.nn.LeakyReLU(0.01), last)
    return forward, {"kernel": jnp.asarray(kernel), "head": jnp.asarray(head)}, network


def _images(shape: Sequence[int]) -> Float32[np.ndarray, "d h w 2"]:
    return np.random.default_rng(sum(shape)).normal(size=(*shape, 2)).astype(np.float32)


def _nnunet(
    network: torch.nn.Module,
    images: Float32[np.ndarray, "d h w c"],
    patch: Shape3,
    axes: Sequence[int],
    *,
    half: bool,
) -> Logits:
    """Logits of nnU-Net's predictor on the CPU; not `half` keeps its sums and its Gaussian in float32."""
    predictor = nnUNetPredictor(0.5, True, bool(axes), False, torch.device("cpu"), allow_tqdm=False)
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=list(patch))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=len(CLASSES))
    predictor.allowed_mirroring_axes = tuple(axes)
    compute_gaussian.cache_clear()
    with ExitStack() as changes:
        if not half:
            single = partial(compute_gaussian, dtype=torch.float32)
            changes.enter_context(mock.patch.object(predict_from_raw_data, "compute_gaussian", single))
            changes.enter_context(mock.patch.object(torch, "half", torch.float32))
        data = torch.from_numpy(np.moveaxis(images, -1, 0).copy())
        logits = predictor.predict_sliding_window_return_logits(data)
    return np.moveaxis(logits.float().numpy(), 0, -1)


def _timed(work: Any) -> tuple[Logits, float]:
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max())


def _differing(ours: Logits, theirs: Logits) -> Bool[np.ndarray, "d h w"]:
    return ours.argmax(axis=-1) != theirs.argmax(axis=-1)
