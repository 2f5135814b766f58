"""Converts weights of nnU-Net's networks to parameters of `kd_jax.models.unet.UNet`.

Source: `PlainConvUNet` and `ResidualEncoderUNet` of dynamic-network-architectures, whose `state_dict` nnU-Net
saves as `network_weights`. There a tensor of the encoder appears up to four times: a convolution also as
`all_modules.0`, its norm as `all_modules.1`, and the whole encoder again inside the decoder.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from kd_jax.config.network import NetworkConfig
from kd_jax.models.protocol import Params

Tensors = Mapping[str, Float[np.ndarray, "..."]]

_WRAPPERS = "_orig_mod.", "module."
"""Prefixes that `torch.compile` and `DistributedDataParallel` put before every name."""
_COPIES = ("decoder.encoder.", "encoder."), (".all_modules.0.", ".conv."), (".all_modules.1.", ".norm.")
"""Names of copies of a tensor, and the name of the tensor itself."""
_TRANSPOSED, _HEADS = "decoder.transpconvs.", "decoder.seg_layers."


@dataclass(frozen=True)
class _Source:
    """One parameter: its keys in the tree, its shape there (heads still as convolutions), nnU-Net's name for it."""

    keys: tuple[str, ...]
    shape: tuple[int, ...]
    name: str


def convert_weights(
    state: Tensors,
    network: NetworkConfig,
    *,
    axes: tuple[int, int, int] = (0, 1, 2),
    channels: Sequence[int] | None = None,
    outputs: Sequence[int] | None = None,
) -> Params:
    """Parameters with which `UNet` of `network` computes what nnU-Net's network computes.

    Args:
      state: nnU-Net's `state_dict` as NumPy arrays: kernels [O, C, k, k, k], transposed ones [C, O, k, k, k].
      network: the same topology, with kernels and strides along x, y, z.
      axes: `axes[i]` is the spatial axis of nnU-Net's arrays that is axis i here; (2, 1, 0) where its arrays
        are z, y, x.
      channels: `channels[i]` is nnU-Net's input channel of the i-th modality the network sees, in the order of
        `conventions.MODALITIES`; none keeps the order.
      outputs: `outputs[i]` is nnU-Net's output channel that is channel i of the logits; none keeps the order.

    Returns:
      The tree of float32 arrays: kernels [k, k, k, C, O], those of heads [C, K].

    Raises:
      ValueError: a tensor is missing, left over or of another shape, copies of one differ, or an order is no
        permutation. The message tells which and what was expected; the caller adds the file.
    """
    tensors = _without_copies(state)
    sources = [*_encoder(network), *_decoder(network, _count_outputs(tensors, network))]
    _check_names(tensors, [source.name for source in sources])
    params: dict[str, Any] = {}
    for source in sources:
        *parents, leaf = source.keys
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = _take(tensors, source, axes)
    first = params["encoder_0_0" if network.encoder == "plain" else "stem"]
    first["kernel"] = first["kernel"][:, :, :, _permutation("channels", channels, len(network.channels))]
    for i in range(len(network.features) - 1):
        head = params[f"head_{i}"]
        order = _permutation("outputs", outputs, head["bias"].size)
        params[f"head_{i}"] = {"kernel": head["kernel"][0, 0, 0][:, order], "bias": head["bias"][order]}
    return params


def _without_copies(state: Tensors) -> dict[str, Float[np.ndarray, "..."]]:
    """Every tensor once, by its own name."""
    tensors: dict[str, np.ndarray] = {}
    for saved, value in state.items():
        name = saved
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        for copy, own in _COPIES:
            name = name.replace(copy, own)
        if name in tensors and not np.array_equal(tensors[name], value, equal_nan=True):
            raise ValueError(f"tensor {saved} differs from {name}; expected a copy of it")
        tensors[name] = np.asarray(value)
    return tensors


def _count_outputs(tensors: Tensors, network: NetworkConfig) -> int:
    """Output channels, from the head at full resolution: nnU-Net's last."""
    name = f"{_HEADS}{len(network.features) - 2}.bias"
    if name not in tensors:
        raise ValueError(f"tensor {name} is missing; a network of {len(network.features)} stages has it")
    return int(tensors[name].size)


def _encoder(network: NetworkConfig) -> Iterator[_Source]:
    features, kernels = network.features, network.stage_kernels
    width = len(network.channels)
    if network.encoder == "residual":
        yield from _block(("stem",), (*kernels[0], width, features[0]), "encoder.stem.convs.0")
        width = features[0]
    for i, convs in enumerate(network.stage_convs_encoder):
        for j in range(convs):
            keys, shape = (f"encoder_{i}_{j}",), (*kernels[i], width, features[i])
            if network.encoder == "plain":
                yield from _block(keys, shape, f"encoder.stages.{i}.0.convs.{j}")
            else:
                pooled = j == 0 and network.stage_strides[i] != (1, 1, 1)
                yield from _residual_block(keys, shape, f"encoder.stages.{i}.blocks.{j}", pooled=pooled)
            width = features[i]


def _decoder(network: NetworkConfig, outputs: int) -> Iterator[_Source]:
    features = network.features
    for i, width in enumerate(features[:-1]):
        level = len(features) - 2 - i  # nnU-Net counts decoder levels from the coarsest
        up = (*network.stage_strides[i + 1], features[i + 1], width)
        yield _Source((f"up_{i}", "kernel"), up, f"{_TRANSPOSED}{level}.weight")
        yield _Source((f"up_{i}", "bias"), (width,), f"{_TRANSPOSED}{level}.bias")
        for j in range(network.stage_convs_decoder[i]):
            shape = (*network.stage_kernels[i], width if j else 2 * width, width)
            yield from _block((f"decoder_{i}_{j}",), shape, f"decoder.stages.{level}.convs.{j}")
        yield _Source((f"head_{i}", "kernel"), (1, 1, 1, width, outputs), f"{_HEADS}{level}.weight")
        yield _Source((f"head_{i}", "bias"), (outputs,), f"{_HEADS}{level}.bias")


def _residual_block(keys: tuple[str, ...], shape: tuple[int, ...], name: str, *, pooled: bool) -> Iterator[_Source]:
    *kernel, channels, width = shape
    yield from _block((*keys, "conv1"), shape, f"{name}.conv1")
    yield from _block((*keys, "conv2"), (*kernel, width, width), f"{name}.conv2")
    if channels != width:  # an average pool before it takes the index 0
        yield from _block((*keys, "skip"), (1, 1, 1, channels, width), f"{name}.skip.{int(pooled)}", bias=False)


def _block(keys: tuple[str, ...], shape: tuple[int, ...], name: str, *, bias: bool = True) -> Iterator[_Source]:
    """A convolution and its norm."""
    yield _Source((*keys, "kernel"), shape, f"{name}.conv.weight")
    if bias:
        yield _Source((*keys, "bias"), shape[-1:], f"{name}.conv.bias")
    yield _Source((*keys, "norm_scale"), shape[-1:], f"{name}.norm.weight")
    yield _Source((*keys, "norm_bias"), shape[-1:], f"{name}.norm.bias")


def _check_names(tensors: Tensors, expected: Sequence[str]) -> None:
    if missing := [name for name in expected if name not in tensors]:
        raise ValueError(f"tensor {missing[0]} is missing{_and_others(missing)}; this network has it")
    if left := [name for name in tensors if name not in set(expected)]:
        shape = tensors[left[0]].shape
        raise ValueError(f"tensor {left[0]} {shape} is left over{_and_others(left)}; this network has no such tensor")


def _and_others(names: Sequence[str]) -> str:
    return f" (as are {len(names) - 1} more)" if len(names) > 1 else ""


def _take(tensors: Tensors, source: _Source, axes: tuple[int, int, int]) -> Float32[np.ndarray, "..."]:
    """The tensor in this form, float32."""
    tensor, order = tensors[source.name], _order(source, axes)
    expected = tuple(source.shape[order.index(axis)] for axis in range(len(order)))
    if tensor.shape != expected:
        raise ValueError(f"tensor {source.name} has shape {tensor.shape}; this network's has {expected}")
    return np.ascontiguousarray(tensor.transpose(order), np.float32)


def _order(source: _Source, axes: tuple[int, int, int]) -> tuple[int, ...]:
    """nnU-Net's axes of a tensor in our order."""
    if len(source.shape) == 1:
        return (0,)
    inputs, outputs = (0, 1) if source.name.startswith(_TRANSPOSED) else (1, 0)
    return (*(2 + axis for axis in axes), inputs, outputs)


def _permutation(name: str, order: Sequence[int] | None, size: int) -> list[int]:
    if order is None:
        return list(range(size))
    if sorted(order) != list(range(size)):
        raise ValueError(f"{name} is {list(order)}; expected each of 0 to {size - 1} once")
    return list(order)
