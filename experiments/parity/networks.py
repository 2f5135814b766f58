"""Compares both families of networks with nnU-Net's: logits, gradients of losses, optimiser steps, first weights."""

import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float32, UInt8
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from scipy import stats

from data_pipeline.conventions import CLASSES, REGION_CLASSES
from experiments.parity.check import GOLDEN, Check
from experiments.parity.draws import PLAIN, RESIDUAL, Topology, draw_image, draw_labels, summarise
from experiments.parity.originals import (
    build_loss,
    build_network,
    fill,
    from_torch,
    gradients_of,
    shapes_of,
    state_of,
    targets_of,
    to_torch,
)
from kd_jax.config.network import NetworkConfig
from kd_jax.config.schema import Config, LossConfig, OptimiserConfig, TrainConfig
from kd_jax.models.protocol import Params
from kd_jax.models.unet import UNet
from kd_jax.nnunet.weights import convert_weights
from kd_jax.objective.supervised import segmentation_loss
from kd_jax.ops.operators import conv3d, instance_norm_leaky_relu
from kd_jax.training.step import make_optimiser, make_schedule

BOUND = 1e-4
RELATIVE = "difference, relative to the largest entry"
Axes = tuple[int, int, int]
THREE = (3, 3, 3)
TOPOLOGIES = {
    "plain, three stages": Topology(
        NetworkConfig(modalities=("t1ce",), features=(4, 6, 8), convs_encoder=(2,), convs_decoder=(2,)), (16, 16, 16)
    ),
    "plain, BraTS plan with few features": Topology(
        NetworkConfig(features=(4, 6, 8, 8, 10, 10), convs_encoder=(2,), convs_decoder=(2,)), (64, 64, 64), batch=1
    ),
    "plain, anisotropic, unequal stages": PLAIN,
    "residual, every kind of skip": RESIDUAL,
    "residual, BraTS plan with few features": Topology(
        NetworkConfig(encoder="residual", features=(4, 6, 8, 8, 10, 10), convs_encoder=(1, 3, 4, 6, 6, 6)),
        (64, 64, 64),
        batch=1,
    ),
}
LOSSES = LossConfig(segmentation="dice_ce"), LossConfig(segmentation="dice_bce")
EPOCHS, ITERATIONS = 5, 2
"""Epochs and steps per epoch of the ten steps: the learning rate falls after every other step."""
CLIP_NORMS = 12.0, 0.2
"""nnU-Net's, which no gradient of these small networks reaches, and one that all of them do."""
BLOCKS = (
    ((1, 4, 6), THREE, (1, 1, 1)),
    ((1, 2, 1), THREE, (1, 1, 1)),
    ((7, 5, 9), THREE, (2, 2, 2)),
    ((3, 3, 3), THREE, (2, 2, 2)),
    ((1, 5, 3), (1, 3, 3), (1, 2, 2)),
    ((2, 1, 3), (3, 1, 3), (2, 1, 2)),
)
"""Sizes of one voxel and odd ones, kernels and strides where padding could go wrong. (Of a single voxel in all, which
InstanceNorm makes its bias, PyTorch refuses the norm.)"""
INITIAL = NetworkConfig(
    encoder="residual",
    features=(32, 48, 64),
    kernels=((1, 3, 3), THREE, THREE),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    convs_encoder=(1, 2, 1),
)
INITIAL_OUTPUTS = 64
"""Many, so that the heads have enough weights to compare distributions."""


def checks() -> Iterator[Check]:
    """All of it, with what the ordinary tests keep."""
    torch.set_num_threads(1)
    for seed, (name, topology) in enumerate(TOPOLOGIES.items()):
        yield Check(f"{name}: logits of every head", _logits_difference(topology, seed), BOUND)
    yield Check("z y x arrays, modalities and outputs reordered: logits", _reordered_difference(), BOUND)
    for name, topology in (("plain", PLAIN), ("residual", RESIDUAL)):
        for loss in LOSSES:
            yield from _gradient_checks(f"{name}, {loss.segmentation}", topology, loss)
        for clip_norm in CLIP_NORMS:
            yield from _training_checks(f"{name}, ten steps, clipped at {clip_norm:g}", topology, clip_norm)
        _write_golden(name, topology)
    yield Check(
        "convolution and norm of thin and odd sizes", _block_difference(), 1e-5, "abs difference, relative above 1"
    )
    yield from _initialisation_checks()


def _filled(topology: Topology, outputs: int, seed: int, axes: Axes = (0, 1, 2)) -> torch.nn.Module:
    module = build_network(topology.network, outputs, axes)
    fill(module, seed)
    return module


def _logits_difference(topology: Topology, seed: int) -> float:
    module, image = _filled(topology, len(CLASSES), seed), draw_image(topology, seed)
    with torch.no_grad():
        theirs = [from_torch(level) for level in module(to_torch(image))]
    return _largest(_our_logits(topology, convert_weights(state_of(module), topology.network), image), theirs)


def _our_logits(topology: Topology, params: Params, image: np.ndarray) -> list[Float32[np.ndarray, "n _d _h _w k"]]:
    module = UNet(topology.network, classes=params["head_0"]["bias"].size)
    return [np.asarray(level) for level in jax.jit(module.apply)({"params": params}, image)[0]]


def _largest(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def _reordered_difference() -> float:
    """nnU-Net sees the volume with its axes reversed in order, modalities and outputs in another order."""
    axes, channels, outputs = (2, 1, 0), [2, 0, 3, 1], [1, 3, 0, 2]
    module, image = _filled(PLAIN, len(CLASSES), 0, axes), draw_image(PLAIN, 0)
    params = convert_weights(state_of(module), PLAIN.network, axes=axes, channels=channels, outputs=outputs)
    seen = np.empty_like(image)
    seen[..., channels] = image
    with torch.no_grad():
        theirs = [from_torch(level) for level in module(to_torch(seen.transpose(0, 3, 2, 1, 4)))]
    theirs = [level.transpose(0, 3, 2, 1, 4)[..., outputs] for level in theirs]
    return _largest(_our_logits(PLAIN, params, image), theirs)


def _gradient_checks(name: str, topology: Topology, loss: LossConfig) -> Iterator[Check]:
    value, gradients, state = _their_gradients(topology, loss)
    params = convert_weights(state, topology.network)
    ours, our_gradients = jax.jit(_value_and_gradient(topology, loss))(
        params, draw_image(topology, 0), draw_labels(topology, 0)
    )
    yield Check(f"{name}: loss", abs(float(ours) - value), 1e-5)
    pairs = list(zip(jax.tree.leaves(our_gradients), jax.tree.leaves(gradients), strict=True))
    largest = max(float(np.abs(theirs).max()) for _, theirs in pairs)
    yield Check(f"{name}: gradients", max(float(np.abs(a - b).max()) for a, b in pairs) / largest, BOUND, RELATIVE)
    seen = [(a, b) for a, b in pairs if np.abs(b).max() > 1e-4 * largest]  # biases before a norm have none
    worst = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in seen)
    yield Check(f"{name}: gradients", worst, BOUND, "the same, of each tensor's")


def _value_and_gradient(topology: Topology, loss: LossConfig) -> Any:
    module = UNet(topology.network, _outputs(loss))

    def value(params: Params, image: Any, labels: Any) -> Any:
        return segmentation_loss(module.apply({"params": params}, image).logits, labels, loss)[0]

    return jax.value_and_grad(value)


def _outputs(loss: LossConfig) -> int:
    return len(REGION_CLASSES if loss.segmentation == "dice_bce" else CLASSES)


def _their_loss(
    module: torch.nn.Module,
    topology: Topology,
    loss: LossConfig,
    image: np.ndarray,
    labels: UInt8[np.ndarray, "n d h w"],
) -> torch.Tensor:
    """nnU-Net's loss plus 1 (its Dice is returned negative)."""
    targets = targets_of(labels, topology.network.stage_strides, loss.segmentation == "dice_bce")
    return build_loss(loss, len(targets))(module(to_torch(image)), targets) + 1


def _their_gradients(topology: Topology, loss: LossConfig) -> tuple[float, Params, dict[str, np.ndarray]]:
    module = _filled(topology, _outputs(loss), 0)
    value = _their_loss(module, topology, loss, draw_image(topology, 0), draw_labels(topology, 0))
    value.backward()
    return value.item(), convert_weights(gradients_of(module), topology.network), state_of(module)


def _training_checks(name: str, topology: Topology, clip_norm: float) -> Iterator[Check]:
    """Parameters after ten steps as in `nnUNetTrainer.train_step`, also relative to how far they had moved."""
    module = _filled(topology, len(CLASSES), 0)
    start = convert_weights(state_of(module), topology.network)
    ours = _train_ours(start, topology, clip_norm)
    _train_theirs(module, topology, clip_norm)
    theirs = convert_weights(state_of(module), topology.network)
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
    worst = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
    yield Check(f"{name}: parameters", worst, BOUND, "difference, relative to each tensor's largest entry")
    # The coarsest head is in no loss. PyTorch then leaves it as it is, here its weights decay: nothing reads it.
    unread = f"head_{len(topology.network.features) - 2}"
    read = [jax.tree.leaves({**tree, unread: {}}) for tree in (ours, theirs, start)]
    far = _largest(read[0], read[1]) / _largest(read[1], read[2])
    yield Check(f"{name}: parameters", far, BOUND, "difference, relative to the largest move")


def _train_theirs(module: torch.nn.Module, topology: Topology, clip_norm: float) -> None:
    optimiser = torch.optim.SGD(module.parameters(), 0.01, weight_decay=3e-5, momentum=0.99, nesterov=True)
    scheduler = PolyLRScheduler(optimiser, 0.01, EPOCHS)
    for step in range(EPOCHS * ITERATIONS):
        scheduler.step(step // ITERATIONS)
        optimiser.zero_grad(set_to_none=True)
        _their_loss(module, topology, LossConfig(), draw_image(topology, step), draw_labels(topology, step)).backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        if (norm > clip_norm) != (clip_norm < 1):
            raise RuntimeError(
                f"step {step}: the gradient's norm is {norm:.2g}; no longer between the bounds {CLIP_NORMS}"
            )
        optimiser.step()


def _train_ours(params: Params, topology: Topology, clip_norm: float) -> Params:
    config = Config(
        optimiser=OptimiserConfig(learning_rate=0.01, momentum=0.99, clip_norm=clip_norm),
        train=TrainConfig(epochs=EPOCHS, iterations=ITERATIONS),
    )
    optimiser = make_optimiser(config.optimiser, make_schedule(config))
    gradient = _value_and_gradient(topology, LossConfig())

    @jax.jit
    def update(params: Params, state: Any, image: Any, labels: Any) -> tuple[Params, Any]:
        updates, state = optimiser.update(gradient(params, image, labels)[1], state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state = optimiser.init(params)
    for step in range(EPOCHS * ITERATIONS):
        params, state = update(params, state, draw_image(topology, step), draw_labels(topology, step))
    return params


def _write_golden(name: str, topology: Topology) -> None:
    """Logits, and the norm of every gradient and its product with a random direction."""
    module = _filled(topology, len(CLASSES), 0)
    with torch.no_grad():
        logits = [from_torch(level) for level in module(to_torch(draw_image(topology, 0)))]
    value, gradients, _ = _their_gradients(topology, LossConfig())
    golden: dict[str, Any] = {f"logits_{i}": level for i, level in enumerate(logits)}
    golden |= {"shapes": json.dumps(shapes_of(module)), "loss": value, "gradients": summarise(gradients)}
    GOLDEN.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN / f"network_{name}.npz", **golden)


def _block_difference() -> float:
    """Values, and gradients to input and kernel (which almost vanish behind the norm of two voxels)."""
    worst = 0.0
    for seed, (size, kernel, stride) in enumerate(BLOCKS):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((2, *size, 3)).astype(np.float32)
        w = rng.standard_normal((*kernel, 3, 4)).astype(np.float32)
        scale, bias = rng.standard_normal((2, 4)).astype(np.float32)
        padding = [k // 2 for k in kernel]
        their_x = to_torch(x).requires_grad_()
        their_w = torch.from_numpy(w.transpose(4, 3, 0, 1, 2).copy()).requires_grad_()
        y = torch.conv3d(their_x, their_w, None, stride, padding)
        y = torch.nn.functional.instance_norm(y, weight=torch.from_numpy(scale), bias=torch.from_numpy(bias))
        theirs = torch.nn.functional.leaky_relu(y, 0.01)
        target = rng.standard_normal(from_torch(theirs).shape).astype(np.float32)
        (theirs * to_torch(target)).sum().backward()
        form = jax.jit(lambda x, w, s=stride, g=scale, b=bias: instance_norm_leaky_relu(conv3d(x, w, s), g, b))
        ours, pull = jax.vjp(form, x, w)
        expected = from_torch(theirs), from_torch(their_x.grad), their_w.grad.numpy().transpose(2, 3, 4, 1, 0)
        for a, b in zip((ours, *pull(target)), expected, strict=True):
            worst = max(worst, float(np.abs(np.asarray(a) - b).max() / max(1, np.abs(b).max())))
    return worst


def _initialisation_checks() -> Iterator[Check]:
    """Freshly built networks, kind of kernel by kind of kernel; what is constant must be equal."""
    torch.manual_seed(0)
    theirs = convert_weights(state_of(build_network(INITIAL, INITIAL_OUTPUTS)), INITIAL)
    image = jnp.zeros((1, 4, 8, 8, len(INITIAL.modalities)))
    init = jax.jit(UNet(INITIAL, INITIAL_OUTPUTS).init)
    ours = init(jax.random.key(0, impl="rbg"), image)["params"]
    kinds: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    leaves = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    for (path, a), b in leaves:
        kinds.setdefault(_kind([key.key for key in path]), []).append((np.asarray(a), b))
    constant = kinds.pop("constant")
    yield Check("first weights: biases, scales and shifts", _largest(*map(list, zip(*constant, strict=True))), 0)
    for kind, pairs in kinds.items():
        yield Check(
            f"first weights: {kind}", max(abs(float(a.std() / b.std()) - 1) for a, b in pairs), 0.1, "ratio of std - 1"
        )
        a, b = (np.concatenate([pair[i].ravel() / pair[1].std() for pair in pairs]) for i in (0, 1))
        bound = 1.95 * ((a.size + b.size) / (a.size * b.size)) ** 0.5  # of equal distributions with probability .999
        yield Check(f"first weights: {kind}", float(stats.ks_2samp(a, b).statistic), bound, "Kolmogorov-Smirnov")
        yield Check(f"first weights: {kind}", abs(float(stats.kurtosis(a) - stats.kurtosis(b))), 0.3, "kurtosis")


def _kind(keys: list[str]) -> str:
    if keys[-1] != "kernel":
        return "constant"
    for prefix, kind in (("up_", "transposed convolutions"), ("head_", "heads")):
        if keys[0].startswith(prefix):
            return kind
    return "skip convolutions" if keys[-2] == "skip" else "convolutions"
