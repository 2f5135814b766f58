import json
from copy import deepcopy
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from kd_jax.nnunet.channels import read_modalities, read_outputs
from kd_jax.nnunet.json_table import JsonTable, read_table
from kd_jax.nnunet.plans import read_nnunet_plan

RESULT = Path(__file__).resolve().parents[2] / "golden" / "nnunet_result"
"""Written by nnU-Net 2.8.1 with transpose_forward 0 2 1."""
AXES = 1, 2, 0
"""Axis of its plans that is our x, y, z: x is axis 2 of the file's arrays, which the plans put at 1, and so on."""


def _plans(change=lambda configuration: None) -> JsonTable:
    plans = json.loads((RESULT / "plans.json").read_text())
    change(plans["configurations"]["3d_fullres"])
    return JsonTable(Path("plans.json"), "", plans)


def _dataset(**values) -> JsonTable:
    return JsonTable(Path("dataset.json"), "", values)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("T1 T1ce T2 Flair", "t1 t1ce t2 flair"),
        ("FLAIR T1w t1gd T2w", "flair t1 t1ce t2"),
        ("t1n t1c t2w t2f", "t1 t1ce t2 flair"),
        ("T2-FLAIR T1_Gd", "flair t1ce"),
    ],
)
def test_channels_go_by_name(names, expected):
    dataset = _dataset(channel_names={str(i): name for i, name in enumerate(names.split())})
    assert read_modalities(dataset, None, len(names.split())) == tuple(expected.split())


def test_channels_that_are_unknown_or_too_few_are_refused():
    with pytest.raises(InputError, match=r'calls channel 0 "CT".*--channels'):
        read_modalities(_dataset(channel_names={"0": "CT"}), None, 1)
    with pytest.raises(InputError, match="the network has 2 channels and these are t1"):
        read_modalities(_dataset(channel_names={"0": "CT"}), ("t1",), 2)
    with pytest.raises(InputError, match=r"has no channel_names \(found labels\)"):
        read_modalities(_dataset(labels={}), None, 1)
    assert read_modalities(_dataset(modality={"0": "T2"}), None, 1) == ("t2",)
    assert read_modalities(_dataset(), ("flair", "t1"), 2) == ("flair", "t1")


def test_classes_go_by_name():
    labels = {"background": 0, "edema": 1, "non-enhancing tumor": 2, "enhancing tumour": 3}
    outputs = read_outputs(_dataset(labels=labels), None)
    assert outputs.segmentation == "dice_ce" and outputs.order == (0, 2, 1, 3)
    labels = {"background": 0, "ET": [3], "NCR/NET": 1, "Peritumoural Oedema": 2, "ignore": 4}
    assert read_outputs(_dataset(labels=labels), None).order == (0, 1, 2, 3)
    labels = {"background": 0, "a": 1, "b": 2, "c": 3}
    assert read_outputs(_dataset(labels=labels), "1=ET,2=NCR,3=ED").order == (0, 2, 3, 1)


def test_regions_go_by_name_or_by_their_classes():
    labels = {"background": 0, "enhancing tumor": 3, "Whole Tumour": [1, 2, 3], "TC": [2, 3]}
    outputs = read_outputs(_dataset(labels=labels, regions_class_order=[3, 1, 2]), None)
    assert outputs.segmentation == "dice_bce" and outputs.order == (1, 2, 0)
    labels = {"background": 0, "a": [4], "b": [1, 2, 4], "c": [1, 4]}
    assert read_outputs(_dataset(labels=labels, regions_class_order=[3, 1, 2]), "1=NCR,2=ED,4=ET").order == (1, 2, 0)


@pytest.mark.parametrize(
    ("labels", "label_map", "message"),
    [
        ({"tumor": 1}, None, 'no "background": 0'),
        ({"background": 0, "tumor": 1}, None, "three classes, NCR, ED, ET"),
        ({"background": 0, "NCR": 1, "ED": 2, "ET": 3, "RC": 4}, None, "three classes, NCR, ED, ET"),
        ({"background": 0, "NCR": 1, "ED": 2, "liver": 3}, None, 'calls one "liver".*--labels'),
        ({"background": 0, "NCR": 1, "NET": 2, "ET": 3}, None, "expected each of NCR, ED, ET once"),
        ({"background": 0, "NCR": 1, "ED": 2, "ET": "x"}, None, r"labels is \{.*is understood"),
        ({"background": 0, "WT": [1, 2, 3], "TC": [1, 2], "ET": [3]}, None, "each a part of the one before"),
        ({"background": 0, "WT": [1, 2, 3], "TC": [2, 3]}, None, "regions .*, or train nnU-Net with these"),
        ({"background": 0, "a": [1, 2, 3], "b": [2, 3], "c": 3}, "1=NCR,2=ED,3=ET", "each a part of the one before"),
    ],
)
def test_other_labels_are_refused(labels, label_map, message):
    with pytest.raises(InputError, match=message):
        read_outputs(_dataset(labels=labels, regions_class_order=[1, 2, 3]), label_map)


def test_regions_without_their_order_are_refused():
    with pytest.raises(InputError, match="has no regions_class_order"):
        read_outputs(_dataset(labels={"background": 0, "WT": [1, 2, 3], "TC": [2, 3], "ET": 3}), None)


def test_every_axis_order_of_the_plans_is_undone():
    plans = _plans().values
    for forward, axes in (((0, 1, 2), (2, 1, 0)), ((2, 0, 1), (0, 2, 1)), ((0, 2, 1), AXES)):
        plan = read_nnunet_plan(
            JsonTable(Path("plans.json"), "", {**plans, "transpose_forward": forward}), "3d_fullres"
        )
        assert plan.axes == axes
        assert plan.patch == tuple((12, 8, 16)[axis] for axis in axes)


def _make_residual(configuration):
    architecture = configuration["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    arguments = architecture["arch_kwargs"]
    arguments["n_blocks_per_stage"] = [1, 3]
    del arguments["n_conv_per_stage"]


def test_residual_encoders_are_read():
    network = read_nnunet_plan(_plans(_make_residual), "3d_fullres").network
    assert network["encoder"] == "residual" and network["convs_encoder"] == [1, 3]


def test_decoders_are_counted_finest_first():
    def deeper(configuration):
        configuration["architecture"]["arch_kwargs"] |= {
            "n_stages": 3,
            "features_per_stage": [3, 4, 5],
            "kernel_sizes": [[3, 3, 3]] * 3,
            "strides": [[1, 1, 1], [2, 2, 2], 1],
            "n_conv_per_stage": 2,
            "n_conv_per_stage_decoder": [1, 2],
        }

    network = read_nnunet_plan(_plans(deeper), "3d_fullres").network
    assert network["convs_decoder"] == [2, 1] and network["convs_encoder"] == [2, 2, 2]
    assert network["strides"][2] == (1, 1, 1)


def test_plans_before_2_2_say_the_same():
    def old(configuration):
        arguments = configuration.pop("architecture")["arch_kwargs"]
        configuration |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 3,
            "unet_max_num_features": 4,
            "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
            "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
            "pool_op_kernel_sizes": arguments["strides"],
            "conv_kernel_sizes": arguments["kernel_sizes"],
        }

    assert read_nnunet_plan(_plans(old), "3d_fullres") == read_nnunet_plan(_plans(), "3d_fullres")


def test_configurations_inherit():
    plans = deepcopy(_plans().values)
    plans["configurations"] |= {
        "larger": {"inherits_from": "3d_fullres", "batch_size": 8},
        "a": {"inherits_from": "b"},
        "b": {"inherits_from": "a"},
    }
    table = JsonTable(Path("plans.json"), "", plans)
    plan = read_nnunet_plan(table, "larger")
    assert plan.batch == 8 and plan.patch == (8, 16, 12)
    with pytest.raises(InputError, match="inherit from each other in a circle"):
        read_nnunet_plan(table, "a")
    with pytest.raises(InputError, match=r"has no configurations\.2d \(found 3d_fullres, larger"):
        read_nnunet_plan(table, "2d")


def _set(*path_and_value):
    *path, key, value = path_and_value

    def change(configuration):
        for part in path:
            configuration = configuration[part]
        if value is None:
            del configuration[key]
        else:
            configuration[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("patch_size", [8, 8]), "has 2-D patches; import a 3d_fullres"),
        (_set("previous_stage", "3d_lowres"), "second stage of a cascade"),
        (_set("next_stage", "3d_cascade_fullres"), "at low resolution"),
        (_set("normalization_schemes", ["CTNormalization"] * 2), "CTNormalization for channel 0"),
        (_set("use_mask_for_norm", [True, False]), r"use_mask_for_norm is \[True, False\]"),
        (_set("preprocessor_name", "MyPreprocessor"), 'preprocessor_name is "MyPreprocessor"'),
        (_set("architecture", None), r"has no configurations\.3d_fullres\.architecture .*nnU-Net 2\.0 to 2\.8"),
        (_set("architecture", "network_class_name", "my.Net"), r"network_class_name is my\.Net; kd_jax has"),
        (_set("architecture", "arch_kwargs", "norm_op", "torch.nn.BatchNorm3d"), 'norm_op is "torch.nn.BatchNorm3d"'),
        (_set("architecture", "arch_kwargs", "conv_bias", False), "conv_bias is false"),
        (_set("architecture", "arch_kwargs", "nonlin", None), r"has no .*arch_kwargs\.nonlin"),
        (_set("architecture", "arch_kwargs", "squeeze", True), r"arch_kwargs\.squeeze is not known"),
        (_set("architecture", "arch_kwargs", "strides", [[1, 1, 1]]), "strides has 1 entries for 2 stages"),
        (_set("spacing", ["wide", 1, 1]), r"spacing is \[.*: input should be a valid number"),
    ],
)
def test_plans_of_another_network_or_form_are_refused_by_key(change, message):
    with pytest.raises(InputError, match=message):
        read_nnunet_plan(_plans(change), "3d_fullres")


def test_another_resampling_is_noted():
    plan = read_nnunet_plan(_plans(_set("resampling_fn_data", "resample_torch_simple")), "3d_fullres")
    assert len(plan.notes) == 1 and "data were resampled by resample_torch_simple" in plan.notes[0]
    assert read_nnunet_plan(_plans(), "3d_fullres").notes == ()


def test_json_that_is_none_is_named(tmp_path):
    file = tmp_path / "plans.json"
    for content, message in ((b"{", "not readable as JSON"), (b"[]", "holds a list"), (b"\xff", "not readable")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=rf"plans\.json: {message}"):
            read_table(file)
