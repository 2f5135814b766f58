"""The joint training step in PyTorch, with nnU-Net's own networks, losses and targets."""

from typing import Any

import numpy as np
import torch

from experiments.benchmark.step_task import draw_batch, make_config
from experiments.benchmark.workload import Workload
from experiments.parity.originals import build_loss, build_network, state_of, targets_of, to_torch
from kd_jax.config.schema import Config
from kd_jax.objective.terms import barlow_twins as ours


class JointLoss(torch.nn.Module):
    """Teacher and student with their losses: from a batch to the scalar to minimise."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.teacher = build_network(config.teacher, config.output_channels)
        self.student = build_network(config.student, config.output_channels)
        self.loss = build_loss(config.loss, len(config.teacher.features) - 1)
        self.weight, self.settings = config.distillation.weight, ours.Settings()
        self.register_buffer("channels", torch.tensor(config.student.channels))

    def forward(self, image: torch.Tensor, targets: list[torch.Tensor]) -> torch.Tensor:
        """Image [N, 4, D, H, W], targets of every decoder level [N, 1, D/s, H/s, W/s]."""
        teacher_skips = self.teacher.encoder(image)
        student_skips = self.student.encoder(image.index_select(1, self.channels))
        pull = barlow_twins(teacher_skips[-1].detach(), student_skips[-1], self.settings)
        segmentation = self.loss(self.teacher.decoder(teacher_skips), targets)
        segmentation = segmentation + self.loss(self.student.decoder(student_skips), targets)
        return segmentation + 2 + self.weight * pull  # each Dice is returned negative


def barlow_twins(teacher: torch.Tensor, student: torch.Tensor, settings: ours.Settings) -> torch.Tensor:
    """Barlow Twins as in `main.py` of facebookresearch/barlowtwins; voxels of [N, F, P, Q, R] are the samples."""
    with torch.autocast(teacher.device.type, enabled=False):
        z = [
            torch.nn.functional.batch_norm(x.float(), None, None, training=True, eps=ours.EPSILON)
            .movedim(1, -1)
            .flatten(0, -2)
            for x in (teacher, student)
        ]
        correlation = z[0].T @ z[1] / z[0].shape[0]
        diagonal = correlation.diagonal()
        off_diagonal = correlation.square().sum() - diagonal.square().sum()
        return ((diagonal - 1).square().sum() + settings.off_diagonal * off_diagonal) / correlation.shape[0]


def joint_step(
    *,
    size: str,
    precision: str,
    seed: int,
    device: str = "cpu",
    channels_last: bool = False,
    compiled: bool = False,
    weights: str,
) -> Workload:
    """A step of two networks as `nnUNetTrainer.train_step` takes it; its value is the joint loss.

    Args:
      size: one of `step_task.SIZES`.
      precision: float32, or bfloat16 by autocast.
      seed: of the batch and the weights.
      device: cpu or cuda.
      channels_last: memory format of weights and images.
      compiled: the networks and losses through `torch.compile`.
      weights: file for the first weights, which the other side reads.
    """
    _set_up(device)
    torch.manual_seed(seed)
    config = make_config(size, precision, seed)
    joint = JointLoss(config)
    np.savez(weights, **_states(joint))
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    joint = joint.to(device, memory_format=layout)
    optimisers = [_optimiser(network, config) for network in (joint.teacher, joint.student)]
    loss_of: Any = torch.compile(joint, dynamic=False) if compiled else joint
    image, labels = draw_batch(config, seed)
    host_image = to_torch(image).contiguous(memory_format=layout)
    host_targets = targets_of(labels, config.teacher.stage_strides, regions=False)

    def run() -> float:
        image = host_image.to(device, non_blocking=True)
        targets = [target.to(device, non_blocking=True) for target in host_targets]
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of(image, targets)
        loss.backward()
        for network, optimiser in zip((joint.teacher, joint.student), optimisers, strict=True):
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.optimiser.clip_norm)
            optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return Workload(run, lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None)


def _optimiser(network: torch.nn.Module, config: Config) -> torch.optim.Optimizer:
    settings = config.optimiser
    return torch.optim.SGD(
        network.parameters(),
        settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=True,
        fused=True,
    )


def _set_up(device: str) -> None:
    torch.set_flush_denormal(True)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("this PyTorch has no CUDA, and JAX runs on a GPU: install a CUDA build of PyTorch")


def _states(joint: JointLoss) -> dict[str, Any]:
    return {
        f"{name}.{key}": value
        for name, network in (("teacher", joint.teacher), ("student", joint.student))
        for key, value in state_of(network).items()
    }
