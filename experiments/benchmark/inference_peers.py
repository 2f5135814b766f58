"""The other sides of segmenting a case: nnU-Net's predictor and MONAI's, around one PyTorch network.

Both as they are: nnU-Net sums in float16 and computes under autocast on a GPU; MONAI sums in float32 and lays its
windows a little differently, as many.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from experiments.benchmark.inference_task import (
    OUTPUTS,
    TASKS,
    WEIGHTS_FILE,
    Task,
    draw_images,
    draw_layers,
    keep,
)
from experiments.benchmark.workload import Workload
from experiments.parity.originals import build_network, state_of

Predict = Callable[[torch.Tensor], torch.Tensor]
"""Images [C, D, H, W] to logits [K, D, H, W]."""


def nnunet(*, task: str, folder: str, seed: int, device: str = "cpu") -> Workload:
    """`predict_sliding_window_return_logits`, as `inference_jax.segment`; leaves the weights in `folder`."""
    chosen = TASKS[task]
    predictor = nnUNetPredictor(
        use_mirroring=bool(chosen.mirror),
        device=torch.device(device),
        allow_tqdm=False,
        perform_everything_on_device=True,
    )
    predictor.network = _network(chosen, seed, save=Path(folder) / WEIGHTS_FILE)
    predictor.configuration_manager = SimpleNamespace(patch_size=list(chosen.patch))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=OUTPUTS)
    predictor.allowed_mirroring_axes = chosen.mirror
    return _workload("nnU-Net", predictor.predict_sliding_window_return_logits, chosen, Path(folder), seed, device)


def monai(*, task: str, folder: str, seed: int, device: str = "cpu") -> Workload:
    """`sliding_window_inference`, which does not mirror; images and sums are on the device."""
    from monai.inferers import sliding_window_inference

    chosen = TASKS[task]
    network = _network(chosen, seed).to(device).eval()

    def predict(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device, enabled=device == "cuda"):
            return sliding_window_inference(
                images.to(device)[None], chosen.patch, 1, network, overlap=0.5, mode="gaussian", sigma_scale=0.125
            )[0]

    return _workload("MONAI", predict, chosen, Path(folder), seed, device)


def _workload(side: str, predict: Predict, task: Task, folder: Path, seed: int, device: str) -> Workload:
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    case = torch.from_numpy(np.moveaxis(draw_images(task.shape, len(task.modalities), seed), -1, 0).copy())
    shapes = iter([task.patch])

    def run() -> float:
        images = case if (shape := next(shapes, None)) is None else case[:, : shape[0], : shape[1], : shape[2]]
        return keep(folder, side, np.moveaxis(predict(images).cpu().numpy(), 0, -1))

    return Workload(run, lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None)


def _network(task: Task, seed: int, save: Path | None = None) -> torch.nn.Module:
    torch.manual_seed(seed)
    if not task.is_unet:
        return _layers(task, seed)
    network = build_network(task.network, OUTPUTS)
    network.decoder.deep_supervision = False
    if save is not None:
        np.savez(save, **state_of(network))  # type: ignore[arg-type]
    return network


def _layers(task: Task, seed: int) -> torch.nn.Module:
    *kernels, head = draw_layers(task, seed)
    layers: list[torch.nn.Module] = []
    for kernel in kernels:
        layers += [_convolution(kernel), torch.nn.InstanceNorm3d(kernel.shape[-1]), torch.nn.LeakyReLU(0.01, True)]
    return torch.nn.Sequential(*layers, _convolution(head))


def _convolution(kernel: np.ndarray) -> torch.nn.Module:
    size, _, _, channels, outputs = kernel.shape
    layer = torch.nn.Conv3d(channels, outputs, size, padding=size // 2, bias=False)
    layer.weight.data = torch.from_numpy(kernel.transpose(4, 3, 0, 1, 2).copy())
    return layer
