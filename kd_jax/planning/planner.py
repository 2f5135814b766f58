"""Patch, batch and network from a data set's fingerprint and the accelerator's memory: nnU-Net v2's rules.

Sources: nnunetv2/experiment_planning/experiment_planners/default_experiment_planner.py and, for the residual encoder,
residual_unets/residual_encoder_unet_planners.py. Only the 3-D full-resolution configuration is planned. Two networks
are trained at once here, so the memory of one is a share of the accelerator's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float64

from data_pipeline.conventions import CLASSES, Shape3, Spacing
from data_pipeline.errors import InputError
from data_pipeline.preprocessing.fingerprint import Fingerprint
from kd_jax.config.network import NetworkConfig
from kd_jax.planning.presets import NETWORKS, PRESETS, Preset, Rules
from kd_jax.planning.topology import MIN_EDGE, Topology, feature_map_size, pool

T = TypeVar("T", int, float)

_LARGEST_PATCH = 256**3  # voxels of the first guess
_FIRST_FEATURES, _MOST_FEATURES = 32, 320
_SMALLEST_BATCH = 2  # also the batch of `Rules.feature_maps`
_ANISOTROPY = 3  # times as coarse, and as few voxels, as the other axes
_LOW_RESOLUTION_SHARE = 0.25  # of the median case in a patch, below which a coarser configuration comes first
_COARSER = 1.03  # step of the search for its spacing


@dataclass(frozen=True)
class Plan:
    """The settings of a run that follow from its data and its accelerator; axes are canonical.

    Attributes:
      spacing: mm per axis.
      patch: voxels per axis.
      batch: patches per step.
      network: settings of teacher and student, except their modalities.
      batch_dice: whether the soft Dice is taken over the batch; nnU-Net does so if patches show little of a case.
      median_shape: voxels per axis of the median case at `spacing`.
      feature_maps: `feature_map_size` of one network and one patch.
      budget: the one at which one network fills its share of the memory at batch 2.
    """

    spacing: Spacing
    patch: Shape3
    batch: int
    network: NetworkConfig
    batch_dice: bool
    median_shape: tuple[float, float, float]
    feature_maps: int
    budget: float


def plan_networks(
    fingerprint: Fingerprint,
    preset: Preset,
    *,
    memory: float,
    networks: int = NETWORKS,
    spacing: Spacing | None = None,
) -> Plan:
    """The plan of nnU-Net's planner for one network that has its share of the memory.

    Args:
      fingerprint: the data set's.
      preset: name of the rules.
      memory: GB of the accelerator that holds the batch.
      networks: number of networks trained at once.
      spacing: mm per axis; None follows from the data.

    Raises:
      InputError: the memory is too small for any patch, or the images are too small for a 3-D U-Net.
    """
    rules = PRESETS[preset]
    budget = rules.feature_maps * (memory / networks / rules.memory)
    # nnU-Net's arrays are z, y, x, and its plans begin with the coarsest axis: this order decides ties.
    spacings, shapes = (np.array(values, float)[:, ::-1] for values in (fingerprint.spacings, fingerprint.shapes))
    target = _target_spacing(spacings, shapes) if spacing is None else np.array(spacing[::-1])
    order = sorted(range(3), key=lambda axis: axis != target.argmax())
    resampled = np.rint(spacings / target * shapes)
    back = [order.index(axis) for axis in (2, 1, 0)]
    target, median = target[order], np.median(resampled, axis=0)[order]
    sizes = " x ".join(f"{n:g}" for n in median[back])
    if min(median) < 2:
        raise InputError(f"the median case has {sizes} voxels; a 3-D network needs 2 or more along every axis")
    try:
        topology, feature_maps = _fit(target, median, rules, budget)
        batch_dice = _has_low_resolution(target, median, topology.patch, rules, budget)
    except _TooSmall as error:
        raise InputError(
            f"no patch fits a median case of {sizes} voxels and {memory / networks:g} GB of memory for each "
            f"of {networks} network(s): give more memory, or a finer spacing if the images are small"
        ) from error
    planned = _permuted(topology, back)
    return Plan(
        spacing=_triple(target[back].tolist()),
        patch=planned.patch,
        batch=_batch(topology.patch, feature_maps, budget, rules, float(np.prod(median)) * len(shapes)),
        network=_network(planned, rules),
        batch_dice=batch_dice,
        median_shape=_triple(median[back].tolist()),
        feature_maps=feature_maps,
        budget=budget,
    )


class _TooSmall(Exception):
    """No patch of an edge of `MIN_EDGE` and a network of two stages fits."""


def _target_spacing(
    spacings: Float64[np.ndarray, "n 3"], shapes: Float64[np.ndarray, "n 3"]
) -> Float64[np.ndarray, "3"]:
    """The median, in mm; along an axis much coarser and shorter than the others the 10th percentile."""
    target, size = np.percentile(spacings, 50, axis=0), np.percentile(shapes, 50, axis=0)
    coarsest = int(target.argmax())
    others = [axis for axis in range(3) if axis != coarsest]
    next_coarsest = max(target[others])
    is_coarse = target[coarsest] > _ANISOTROPY * next_coarsest
    if is_coarse and size[coarsest] * _ANISOTROPY < min(size[others]):
        finer = np.percentile(spacings[:, coarsest], 10)
        # Never finer than the others: the axis stays the coarsest.
        target[coarsest] = finer if finer >= next_coarsest else next_coarsest + 1e-5
    return target


def _fit(
    spacing: Float64[np.ndarray, "3"], shape: Float64[np.ndarray, "3"], rules: Rules, budget: float
) -> tuple[Topology, int]:
    """The largest patch of a case's proportions within the budget, and its feature maps.

    Raises:
      _TooSmall: there is none.
    """
    first = 1 / spacing * (_LARGEST_PATCH / np.prod(1 / spacing)) ** (1 / 3)
    size = [min(round(n), limit) for n, limit in zip(first.tolist(), shape.tolist(), strict=True)]
    smallest = [min(MIN_EDGE, n) for n in size]
    topology = pool(spacing.tolist(), size)
    while True:
        if len(topology.strides) < 2 or any(n < least for n, least in zip(topology.patch, smallest, strict=True)):
            raise _TooSmall
        feature_maps = feature_map_size(_network(topology, rules), topology.patch, len(CLASSES))
        if feature_maps <= budget:
            return topology, feature_maps
        topology = _shrunk(topology, spacing.tolist(), shape.tolist())


def _shrunk(topology: Topology, spacing: Sequence[float], shape: Sequence[float]) -> Topology:
    """Shrinks the patch by one step along the axis that shows the largest share of the case.

    The step is the multiple that the patch must have after it has shrunk by the present multiple: the shorter axis may
    be pooled less often, and sizes in between would be missed.
    """
    axis = max(range(3), key=lambda axis: (topology.patch[axis] / shape[axis], axis))
    size = list(topology.patch)
    size[axis] -= topology.total_stride[axis]
    step = pool(spacing, size).total_stride[axis]
    size[axis] = topology.patch[axis] - step
    return pool(spacing, size)


def _network(topology: Topology, rules: Rules) -> NetworkConfig:
    stages = len(topology.strides)
    return NetworkConfig(
        features=tuple(min(_MOST_FEATURES, _FIRST_FEATURES * 2**stage) for stage in range(stages)),
        kernels=topology.kernels,
        strides=topology.strides,
        encoder=rules.encoder,
        convs_encoder=rules.convs_encoder[:stages],
        convs_decoder=(rules.convs_decoder,) * (stages - 1),
    )


def _batch(patch: Shape3, feature_maps: int, budget: float, rules: Rules, voxels: float) -> int:
    """As many patches as the memory holds, at most a share of the data set's voxels, and at least two."""
    fitting = round(budget / feature_maps * _SMALLEST_BATCH)
    varied = round(voxels * rules.largest_share / math.prod(patch))
    return max(min(fitting, varied), _SMALLEST_BATCH)


def _has_low_resolution(
    spacing: Float64[np.ndarray, "3"], shape: Float64[np.ndarray, "3"], patch: Shape3, rules: Rules, budget: float
) -> bool:
    """Whether nnU-Net would put a configuration of coarser spacing before this one.

    It does where a patch holds less than a quarter of the median case. The spacing then grows, coarsest axes last,
    until a patch planned for it holds enough; the configuration is kept if that halves the voxels of the case at least.
    """
    coarser, full, voxels, found = spacing.copy(), np.prod(shape), np.prod(shape), False
    while math.prod(patch) / voxels < _LOW_RESOLUTION_SHARE:
        behind = coarser.max() / coarser > 2
        coarser[behind if behind.any() else slice(None)] *= _COARSER
        size = spacing / coarser * shape
        voxels = np.prod(size)
        patch, found = _fit(coarser, np.rint(size), rules, budget)[0].patch, True
    return found and bool(full / voxels >= 2)


def _permuted(topology: Topology, axes: Sequence[int]) -> Topology:
    def permuted(triple: Shape3) -> Shape3:
        return _triple([triple[axis] for axis in axes])

    strides, kernels = (tuple(map(permuted, part)) for part in (topology.strides, topology.kernels))
    return Topology(permuted(topology.patch), strides, kernels)


def _triple(values: Sequence[T]) -> tuple[T, T, T]:
    x, y, z = values
    return x, y, z
