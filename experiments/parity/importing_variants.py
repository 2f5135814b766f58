"""Data sets of nnU-Net and the networks trained on them, small ones, as nnU-Net's planner would write them down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.conventions import Modality
from kd_jax.config.network import AXES, Axis


@dataclass(frozen=True)
class Variant:
    """A data set of nnU-Net and the network that is trained on it; triples in the order of its plans."""

    name: str
    network: str
    patch: Sequence[int]
    kernels: Sequence[Sequence[int]]
    strides: Sequence[Sequence[int]]
    channel_names: Mapping[str, Modality]
    labels: Mapping[str, int | list[int]]
    regions_class_order: Sequence[int] | None = None
    transpose_forward: Sequence[int] = (0, 1, 2)
    mirror: Sequence[Axis] = ()
    features: Sequence[int] = (4, 6, 8)
    seed: int = 0
    file_classes: Mapping[int, int] = field(default_factory=lambda: {0: 0, 1: 2, 2: 1, 3: 3})

    def dataset(self) -> dict[str, Any]:
        """dataset.json."""
        order = {} if self.regions_class_order is None else {"regions_class_order": list(self.regions_class_order)}
        return {
            "channel_names": {str(i): name for i, name in enumerate(self.channel_names)},
            "labels": dict(self.labels),
            "numTraining": 5,
            "file_ending": ".nii.gz",
            **order,
        }

    def plans(self) -> dict[str, Any]:
        """plans.json, in the form of `ExperimentPlanner.plan_experiment`."""
        channels = len(self.channel_names)
        resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
        return {
            "dataset_name": f"Dataset137_{self.name}",
            "plans_name": "nnUNetPlans",
            "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
            "original_median_shape_after_transp": [40, 60, 80],
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": list(self.transpose_forward),
            "transpose_backward": [list(self.transpose_forward).index(i) for i in range(3)],
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {str(i): {} for i in range(channels)},
            "configurations": {
                "3d_fullres": {
                    "data_identifier": "nnUNetPlans_3d_fullres",
                    "preprocessor_name": "DefaultPreprocessor",
                    "batch_size": 2,
                    "patch_size": list(self.patch),
                    "median_image_size_in_voxels": [40.0, 60.0, 80.0],
                    "spacing": [1.0, 1.0, 1.0],
                    "normalization_schemes": ["ZScoreNormalization"] * channels,
                    "use_mask_for_norm": [True] * channels,
                    "resampling_fn_data": "resample_data_or_seg_to_shape",
                    "resampling_fn_seg": "resample_data_or_seg_to_shape",
                    "resampling_fn_data_kwargs": resampling,
                    "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                    "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                    "architecture": self.architecture(),
                    "batch_dice": False,
                }
            },
        }

    def architecture(self) -> dict[str, Any]:
        """As `ExperimentPlanner.get_plans_for_configuration` writes it."""
        stages = len(self.features)
        plain = self.network == "PlainConvUNet"
        convs = {"n_conv_per_stage": [2] * stages} if plain else {"n_blocks_per_stage": [1, 2, 2, 2][:stages]}
        decoder = [2, 1, 1][: stages - 1] if plain else [1] * (stages - 1)
        return {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{self.network}",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(self.features),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [list(k) for k in self.kernels],
                "strides": [list(s) for s in self.strides],
                **convs,
                "n_conv_per_stage_decoder": decoder,
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }


PLAIN = Variant(
    "MSD",
    "PlainConvUNet",
    patch=(16, 32, 48),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    channel_names={"FLAIR": "flair", "T1w": "t1", "t1gd": "t1ce", "T2w": "t2"},
    labels={"background": 0, "edema": 1, "non-enhancing tumor": 2, "enhancing tumour": 3},
)
RESIDUAL = Variant(
    "BraTS2021",
    "ResidualEncoderUNet",
    patch=(32, 16, 32),
    kernels=((3, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (2, 2, 2), (2, 1, 2)),
    channel_names={"T2": "t2", "T1ce": "t1ce", "T1": "t1", "Flair": "flair"},
    labels={"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
    regions_class_order=(1, 2, 3),
    mirror=AXES,
    seed=4,  # gives every class
)
SMALL = Variant(
    "Small",
    "PlainConvUNet",
    patch=(12, 8, 16),
    kernels=((3, 1, 3), (3, 3, 3)),
    strides=((1, 1, 1), (2, 1, 2)),
    channel_names={"t2f": "flair", "t1c": "t1ce"},
    labels={"background": 0, "tumor core": [2, 3], "enhancing tumor": 3, "whole tumor": [1, 2, 3]},
    regions_class_order=(2, 3, 1),
    transpose_forward=(0, 2, 1),  # makes x, y, z of its axes a cycle, which no exchange of two undoes
    features=(3, 4),
)
