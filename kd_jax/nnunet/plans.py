"""Reads nnU-Net's plans.json: the network, its patch and its preprocessing, in our axis order.

nnU-Net's arrays have the axes of the file reversed (z, y, x, as SimpleITK reads them), then ordered by
`transpose_forward`; ours are x, y, z. Source: nnunetv2/utilities/plans_handling/plans_handler.py, which also reads the
form of the plans before nnU-Net 2.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from data_pipeline.conventions import Shape3, Spacing
from data_pipeline.errors import InputError
from kd_jax.nnunet.json_table import UNDERSTOOD, JsonTable
from kd_jax.ops.operators import NEGATIVE_SLOPE, NORM_EPSILON

AxisOrder = tuple[int, int, int]
"""For each of our axes x, y, z, its index among the axes of nnU-Net's arrays."""
T = TypeVar("T")

_REORIENTING = "NibabelIOWithReorient", "SimpleITKIOWithReorient"
"""Readers that bring every file to R, A, S; the other two keep the stored orientation."""
_READERS = "SimpleITKIO", "NibabelIO", *_REORIENTING
_ENCODERS: Mapping[str, Literal["plain", "residual"]] = {"PlainConvUNet": "plain", "ResidualEncoderUNet": "residual"}
_RESAMPLING = "resample_data_or_seg_to_shape"
_ONE = "kd_jax has nnU-Net's residual network and one other: 3-D convolution with bias, InstanceNorm, LeakyReLU"


@dataclass(frozen=True)
class NnunetPlan:
    """One configuration of the plans, every triple in the order x, y, z.

    Attributes:
      dataset: nnU-Net's name of the data set.
      name: of the plans.
      axes: axis of nnU-Net's arrays that is our x, our y, our z.
      reoriented: nnU-Net's reader brings every file to R, A, S.
      network: settings of `kd_jax.config.schema.NetworkConfig`.
      spacing: mm.
      patch: voxels.
      batch: patches per step.
      batch_dice: soft Dice over the batch as one volume.
      modalities: number of input channels that are normalised.
      notes: differences from nnU-Net's defaults that do not prevent using the network.
    """

    dataset: str
    name: str
    axes: AxisOrder
    reoriented: bool
    network: Mapping[str, Any]
    spacing: Spacing
    patch: Shape3
    batch: int
    batch_dice: bool
    modalities: int
    notes: tuple[str, ...]


def read_nnunet_plan(plans: JsonTable, configuration: str) -> NnunetPlan:
    """The plan of one configuration.

    Raises:
      InputError: a key is missing or unknown, the configuration is not 3-D at full resolution, or kd_jax lacks the
        network or its preprocessing.
    """
    table = _configuration(plans, configuration)
    _refuse_other_configurations(table)
    plans.expect("label_manager", ("LabelManager",), "with another one the outputs have an unknown meaning")
    plans.expect("image_reader_writer", _READERS, "what other readers make of a file is unknown")
    modalities = _check_preprocessing(table)
    forward = plans.get("transpose_forward", tuple[int, int, int])
    if sorted(forward) != [0, 1, 2]:
        raise InputError(f"{plans.file}: transpose_forward is {list(forward)}, expected an order of 0, 1, 2")
    x, y, z = (forward.index(2 - axis) for axis in range(3))
    axes = x, y, z
    patch, spacing = table.get("patch_size", tuple[int, int, int]), table.get("spacing", tuple[float, float, float])
    return NnunetPlan(
        plans.get("dataset_name", str),
        plans.get("plans_name", str),
        axes,
        plans.get("image_reader_writer", str) in _REORIENTING,
        _network(table, axes),
        _ordered(spacing, axes),
        _ordered(patch, axes),
        table.get("batch_size", int),
        table.get("batch_dice", bool),
        modalities,
        tuple(_notes(table)),
    )


def _configuration(plans: JsonTable, name: str) -> JsonTable:
    """One configuration, merged over those that it inherits from."""
    configurations = plans.table("configurations")
    values: dict[str, Any] = {}
    seen: list[str] = []
    parent: str | None = name
    while parent is not None:
        if parent in seen:
            raise InputError(f"{plans.file}: configurations {', '.join(seen)} inherit from each other in a circle")
        seen.append(parent)
        table = configurations.table(parent)
        values = {**table.values, **values}
        parent = table.get("inherits_from", str) if "inherits_from" in table.values else None
    return JsonTable(plans.file, configurations.name(name), values)


def _refuse_other_configurations(table: JsonTable) -> None:
    patch = table.get("patch_size", list[int])
    found = None
    if len(patch) != 3:
        found = f"has {len(patch)}-D patches"
    elif table.values.get("previous_stage") is not None:
        found = "is the second stage of a cascade, which also sees the segmentation of the first"
    elif table.values.get("next_stage") is not None or table.place.endswith("3d_lowres"):
        found = "is at low resolution, for the first stage of a cascade"
    if found:
        raise InputError(f"{table.file}: {table.place} {found}; import a 3d_fullres network instead")


def _check_preprocessing(table: JsonTable) -> int:
    """Checks that kd_jax prepares images in the same way; returns the number of channels."""
    table.expect("preprocessor_name", ("DefaultPreprocessor",), "what another one does to the images is unknown")
    schemes = table.get("normalization_schemes", list[str])
    masked = table.get("use_mask_for_norm", list[bool])
    for channel, scheme in enumerate(schemes):
        if scheme != "ZScoreNormalization":
            raise InputError(
                f"{table.file}: {table.name('normalization_schemes')} has {scheme} for channel {channel}; kd_jax "
                "z-scores every modality inside the brain (ZScoreNormalization): train nnU-Net with that, e.g. by MR "
                "channel names in dataset.json"
            )
    if len(masked) != len(schemes) or not all(masked):
        raise InputError(
            f"{table.file}: {table.name('use_mask_for_norm')} is {masked}; kd_jax takes mean and deviation inside the "
            "brain alone (all true, as nnU-Net plans for images without skull)"
        )
    return len(schemes)


def _notes(table: JsonTable) -> Sequence[str]:
    orders = {"data": 3, "probabilities": 1}
    notes = []
    for what, order in orders.items():
        function = table.values.get(f"resampling_fn_{what}", _RESAMPLING)
        kwargs = table.values.get(f"resampling_fn_{what}_kwargs", {})
        if function != _RESAMPLING or not isinstance(kwargs, dict) or kwargs.get("order", order) != order:
            notes.append(
                f"{what} were resampled by {function} {kwargs}, here by splines of order {order}: results differ "
                "for images that have another voxel size than the network"
            )
    return notes


def _network(table: JsonTable, axes: AxisOrder) -> dict[str, Any]:
    """Settings of the network from either form of the plans."""
    if "architecture" not in table.values and "UNet_class_name" in table.values:
        return _old_network(table, axes)
    architecture = table.table("architecture")
    class_name, arguments = architecture.get("network_class_name", str), architecture.table("arch_kwargs")
    package, _, name = class_name.rpartition(".")
    if name not in _ENCODERS or package.split(".")[0] != "dynamic_network_architectures":
        raise InputError(
            f"{table.file}: {architecture.name('network_class_name')} is {class_name}; kd_jax has PlainConvUNet and "
            "ResidualEncoderUNet of dynamic_network_architectures"
        )
    convs = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    _check_layers(arguments, convs)
    stages = arguments.get("n_stages", int)
    return _settings(
        arguments,
        axes,
        _ENCODERS[name],
        features=_each(arguments, "features_per_stage", stages),
        kernels="kernel_sizes",
        strides="strides",
        convs=convs,
    )


def _check_layers(arguments: JsonTable, convs: str) -> None:
    """Refuses layers that kd_jax lacks and arguments that it does not know."""
    norm = {"eps": NORM_EPSILON, "affine": True}
    slope = {"negative_slope": NEGATIVE_SLOPE}
    leaky = "torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"
    fixed: dict[str, tuple[Any, ...]] = {
        "conv_op": ("torch.nn.modules.conv.Conv3d", "torch.nn.Conv3d"),
        "conv_bias": (True,),
        "norm_op": ("torch.nn.modules.instancenorm.InstanceNorm3d", "torch.nn.InstanceNorm3d"),
        "norm_op_kwargs": (norm,),
        "nonlin": leaky,
        "nonlin_kwargs": ({"inplace": True}, {}, None, slope, {**slope, "inplace": True}),
        "dropout_op": (None,),
    }
    optional: dict[str, tuple[Any, ...]] = {
        "dropout_op_kwargs": (None, {}),
        "deep_supervision": (True, False),
        "nonlin_first": (False,),
        "block": ("dynamic_network_architectures.building_blocks.residual.BasicBlockD",),
        "bottleneck_channels": (None,),
        "stem_channels": (None,),
    }
    read = {"n_stages", "features_per_stage", "kernel_sizes", "strides", convs, "n_conv_per_stage_decoder"}
    if unknown := set(arguments.values) - set(fixed) - set(optional) - read:
        raise InputError(
            f"{arguments.file}: {arguments.name(min(unknown))} is not known, so that the network may be another; "
            f"{UNDERSTOOD}"
        )
    for key in fixed:
        arguments.get(key, Any)
    for key, allowed in (fixed | optional).items():
        arguments.expect(key, allowed, _ONE)


def _old_network(table: JsonTable, axes: AxisOrder) -> dict[str, Any]:
    """Plans of nnU-Net 2.0 and 2.1, which use other names for the numbers and leave the layers to the code."""
    name = table.get("UNet_class_name", str)
    if name not in _ENCODERS:
        raise InputError(
            f"{table.file}: {table.name('UNet_class_name')} is {name}; kd_jax has PlainConvUNet and ResidualEncoderUNet"
        )
    base, largest = table.get("UNet_base_num_features", int), table.get("unet_max_num_features", int)
    return _settings(
        table,
        axes,
        _ENCODERS[name],
        features=[min(base * 2**i, largest) for i in range(len(table.get("n_conv_per_stage_encoder", list[int])))],
        kernels="conv_kernel_sizes",
        strides="pool_op_kernel_sizes",
        convs="n_conv_per_stage_encoder",
    )


def _settings(
    table: JsonTable,
    axes: AxisOrder,
    encoder: str,
    *,
    features: Sequence[int],
    kernels: str,
    strides: str,
    convs: str,
) -> dict[str, Any]:
    """The settings of `NetworkConfig`, from the keys that hold them. nnU-Net counts decoder stages coarsest first."""
    stages = len(features)
    return {
        "encoder": encoder,
        "features": list(features),
        "kernels": [_ordered(_triple(k), axes) for k in _each(table, kernels, stages, int | Shape3)],
        "strides": [_ordered(_triple(s), axes) for s in _each(table, strides, stages, int | Shape3)],
        "convs_encoder": _each(table, convs, stages),
        "convs_decoder": _each(table, "n_conv_per_stage_decoder", stages - 1)[::-1],
    }


def _each(table: JsonTable, key: str, stages: int, kind: Any = int) -> list[Any]:
    """A value per stage; a single value holds for all stages."""
    values = table.get(key, int | list[kind])
    if isinstance(values, int):
        return [values] * stages
    if len(values) != stages:
        raise InputError(f"{table.file}: {table.name(key)} has {len(values)} entries for {stages} stages")
    return list(values)


def _triple(value: int | Shape3) -> Shape3:
    return (value, value, value) if isinstance(value, int) else value


def _ordered(values: tuple[T, T, T], axes: AxisOrder) -> tuple[T, T, T]:
    """The values for x, y and z."""
    x, y, z = (values[axis] for axis in axes)
    return x, y, z
