"""nnU-Net's networks, losses and targets, built as its trainer builds them."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from jaxtyping import Float32, UInt8
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from data_pipeline.conventions import REGION_CLASSES, Shape3
from experiments.parity.draws import draw_state
from kd_jax.config.network import NetworkConfig
from kd_jax.config.schema import LossConfig

State = dict[str, Float32[np.ndarray, "..."]]

_CLASS = "dynamic_network_architectures.architectures.unet."
_IMPORTS = ["conv_op", "norm_op", "dropout_op", "nonlin"]


def build_network(network: NetworkConfig, outputs: int, axes: tuple[int, int, int] = (0, 1, 2)) -> torch.nn.Module:
    """As from a plan whose arrays have the axis i of `network` as their axis `axes[i]`, freshly initialised."""
    residual = network.encoder == "residual"
    arguments = {
        "n_stages": len(network.features),
        "features_per_stage": list(network.features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [_placed(kernel, axes) for kernel in network.stage_kernels],
        "strides": [_placed(stride, axes) for stride in network.stage_strides],
        "n_blocks_per_stage" if residual else "n_conv_per_stage": list(network.stage_convs_encoder),
        "n_conv_per_stage_decoder": list(network.stage_convs_decoder[::-1]),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name = _CLASS + ("ResidualEncoderUNet" if residual else "PlainConvUNet")
    channels = len(network.modalities)
    return get_network_from_plans(name, arguments, _IMPORTS, channels, outputs, deep_supervision=True)


def _placed(sizes: Shape3, axes: tuple[int, int, int]) -> list[int]:
    return [sizes[axes.index(axis)] for axis in range(3)]


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, copies left out."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def fill(module: torch.nn.Module, seed: int) -> None:
    """Replaces every parameter by the draw of a seed."""
    drawn = draw_state(shapes_of(module), seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(drawn[name]))


def state_of(module: torch.nn.Module) -> State:
    """The state dictionary that nnU-Net saves, copies included."""
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def gradients_of(module: torch.nn.Module) -> State:
    """Gradient of every parameter; zero where the loss does not see it."""
    return {
        name: np.zeros(tuple(p.shape), np.float32) if p.grad is None else p.grad.numpy().copy()
        for name, p in module.named_parameters()
    }


def to_torch(image: Float32[np.ndarray, "n d h w c"]) -> torch.Tensor:
    """Channels where PyTorch has them."""
    return torch.from_numpy(np.moveaxis(image, -1, 1).copy())


def from_torch(tensor: torch.Tensor) -> Float32[np.ndarray, "n d h w c"]:
    """Channels where they are here."""
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def build_loss(config: LossConfig, levels: int) -> torch.nn.Module:
    """As `nnUNetTrainer._build_loss` on one device, for so many decoder levels."""
    dice: dict[str, Any] = {"batch_dice": config.batch_dice, "smooth": 1e-5, "ddp": False}
    if config.segmentation == "dice_bce":
        loss = DC_and_BCE_loss({}, {**dice, "do_bg": True}, dice_class=MemoryEfficientSoftDiceLoss)
    else:
        loss = DC_and_CE_loss({**dice, "do_bg": False}, {}, dice_class=MemoryEfficientSoftDiceLoss)
    weights = np.array([1 / 2**i for i in range(levels)])
    weights[-1] = 0
    return DeepSupervisionWrapper(loss, weights / weights.sum())


def targets_of(labels: UInt8[np.ndarray, "n d h w"], strides: Sequence[Shape3], regions: bool) -> list[torch.Tensor]:
    """Targets of every decoder level through nnU-Net's own transforms, as its loader gives them."""
    sizes = accumulate(strides, lambda total, stride: tuple(t * s for t, s in zip(total, stride, strict=True)))
    scales = [[1 / size for size in total] for total in sizes][:-1]
    convert = ConvertSegmentationToRegionsTransform(list(REGION_CLASSES.values()))
    downsample = DownsampleSegForDSTransform(scales)
    cases = []
    for case in labels:
        sample: Mapping[str, Any] = {"segmentation": torch.from_numpy(case[None].astype(np.int16))}
        cases.append(downsample(**(convert(**sample) if regions else sample))["segmentation"])
    return [torch.stack(level) for level in zip(*cases, strict=True)]
