"""Compares plans with those of nnU-Net's planners, and the fingerprint with that of its extractor.

nnU-Net's planners run whole, on fabricated fingerprints. Its networks are built without memory (PyTorch's meta device),
which changes none of its estimates.
"""

import contextlib
import io
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)

from data_pipeline.conventions import CLASSES, MODALITIES, Shape3, Spacing
from data_pipeline.layouts.find import find_cases
from data_pipeline.preprocessing.fingerprint import FOREGROUND_SAMPLES, Fingerprint, measure_cases
from data_pipeline.preprocessing.resample import as_spacing
from experiments.parity.check import GOLDEN, Check
from kd_jax.config.network import NetworkConfig
from kd_jax.planning.plan_file import plan_settings
from kd_jax.planning.planner import Plan, Preset, plan_networks
from kd_jax.planning.topology import feature_map_size

FILE = GOLDEN / "planner.json"
FINGERPRINT_FILE = GOLDEN / "fingerprint.npz"
DATASET = "Dataset001_Test"
MEASURE = "number of differing fields"
Group = tuple[Spacing, Shape3, int]
"""Spacing in mm, shape in voxels (x, y, z) and number of alike cases."""

DATA: dict[str, list[Group]] = {
    "BraTS 2021": [
        ((1, 1, 1), (136, 168, 134), 400),
        ((1, 1, 1), (140, 171, 137), 451),
        ((1, 1, 1), (145, 175, 142), 400),
    ],
    "MSD brain tumour": [((1, 1, 1), (138, 169, 138), 484)],
    "MSD heart": [((1.25, 1.25, 1.37), (320, 320, 90), 6), ((1.25, 1.25, 1.37), (320, 320, 115), 14)],
    "MSD hippocampus": [((1, 1, 1), (35, 50, 36), 131), ((1, 1, 1), (34, 51, 35), 129)],
    "MSD prostate": [((0.625, 0.625, 3.6), (320, 320, 20), 25), ((0.6, 0.6, 4), (384, 384, 24), 7)],
    "ACDC": [
        ((1.56, 1.56, 10), (216, 256, 9), 120),
        ((1.37, 1.37, 10), (224, 256, 10), 40),
        ((1.68, 1.68, 5), (216, 256, 18), 40),
    ],
    "LiTS": [
        ((0.77, 0.77, 1), (512, 512, 432), 70),
        ((0.7, 0.7, 0.8), (512, 512, 685), 30),
        ((0.8, 0.8, 5), (512, 512, 127), 31),
    ],
    "sagittal slices": [((4.4, 0.7, 0.72), (24, 380, 401), 30), ((3.3, 0.75, 0.7), (30, 352, 384), 9)],
    "thick slices": [((0.61, 0.45, 3.08), (304, 506, 85), 40)],
    "two spacings": [((0.9, 1, 2.3), (201, 230, 60), 8), ((1, 0.8, 1.2), (190, 251, 121), 8)],
}
PLANNERS: dict[Preset, tuple[type[ExperimentPlanner], tuple[float, ...]]] = {
    "plain": (ExperimentPlanner, (2, 5.5, 8, 12, 24, 80)),
    "M": (nnUNetPlannerResEncM, (8, 11)),
    "L": (nnUNetPlannerResEncL, (24, 16)),
    "XL": (nnUNetPlannerResEncXL, (40, 80)),
}
"""nnU-Net's planner of each preset, and the memory in GB of one network, its default among them."""


def checks() -> Iterator[Check]:
    """Estimates, plans and fingerprints."""
    GOLDEN.mkdir(exist_ok=True)
    yield _estimates()
    golden = []
    with tempfile.TemporaryDirectory() as folder, _folders(Path(folder)):
        for name, groups in DATA.items():
            different = 0
            for preset, memory in _settings():
                theirs = _their_plan(Path(folder), groups, preset, memory)
                golden.append({"data": name, "preset": preset, "memory": memory, "plan": theirs})
                different += _different(groups, preset, memory, theirs)
            yield Check(f"plans of {name}, all presets, several memories", different, 0, MEASURE)
        spacing = (0.9, 1.1, 2.5)
        theirs = _their_plan(Path(folder), DATA["BraTS 2021"], "plain", 8, spacing)
        golden.append({"data": "BraTS 2021", "preset": "plain", "memory": 8, "spacing": spacing, "plan": theirs})
        different = _different(DATA["BraTS 2021"], "plain", 8, theirs, spacing)
        yield Check("plan of BraTS 2021 at a given spacing", different, 0, MEASURE)
        yield _drawn_plans(Path(folder), 40)
        yield from _fingerprints(Path(folder))
    FILE.write_text(json.dumps({"data": DATA, "plans": golden}, separators=(",", ":")) + "\n")


def _settings() -> Iterator[tuple[Preset, float]]:
    return ((preset, memory) for preset, (_, memories) in PLANNERS.items() for memory in memories)


def _drawn_plans(root: Path, count: int) -> Check:
    """Three kinds of cases each, of any proportions."""
    rng, settings, different = np.random.default_rng(0), list(_settings()), 0
    for number in range(count):
        groups: list[Group] = []
        base, size = rng.uniform(0.5, 3, 3) * rng.choice([1, 4], 3, p=[0.7, 0.3]), rng.integers(24, 400, 3)
        for cases in rng.integers(1, 30, 3).tolist():
            spacing, shape = base * rng.uniform(0.8, 1.2, 3), size * rng.uniform(0.8, 1.2, 3)
            groups.append((as_spacing(spacing.tolist()), _shape(shape), cases))
        preset, memory = settings[number % len(settings)]
        different += _different(groups, preset, memory, _their_plan(root, groups, preset, memory))
    return Check(f"plans of {count} drawn data sets", different, 0, MEASURE)


def _shape(sizes: Any) -> Shape3:
    d, h, w = (int(n) for n in sizes)
    return d, h, w


def fingerprint_of(groups: list[Group]) -> Fingerprint:
    """The fingerprint of a data set described by its groups of alike cases."""
    spacings = tuple(spacing for spacing, _, count in groups for _ in range(count))
    return Fingerprint(spacings, tuple(shape for _, shape, count in groups for _ in range(count)), 0.5, {})


def _different(
    groups: list[Group], preset: Preset, memory: float, theirs: dict[str, Any], spacing: Spacing | None = None
) -> int:
    """Fields in which our plan for one network, or for two with twice the memory, is another."""
    fingerprint = fingerprint_of(groups)
    alone = plan_networks(fingerprint, preset, memory=memory, networks=1, spacing=spacing)
    pair = plan_networks(fingerprint, preset, memory=2 * memory, networks=2, spacing=spacing)
    return sum(_fields(plan)[name] != value for plan in (alone, pair) for name, value in theirs.items())


def _fields(plan: Plan) -> dict[str, Any]:
    settings = plan_settings(plan)
    return settings["data"] | settings["teacher"] | settings["train"] | settings["loss"]


@contextlib.contextmanager
def _folders(root: Path) -> Iterator[None]:
    """Sets nnU-Net's folders, which it reads from the environment at its first import, and silences it."""
    modules = default_experiment_planner, fingerprint_extractor
    before = [
        (module, name, getattr(module, name)) for module in modules for name in ("nnUNet_raw", "nnUNet_preprocessed")
    ]
    for module, name, _ in before:
        setattr(module, name, str(root / name))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "WARNING: You are running nnUNetPlanner")
            yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _their_plan(
    root: Path, groups: list[Group], preset: Preset, memory: float, spacing: Spacing | None = None
) -> dict[str, Any]:
    """nnU-Net's 3d_fullres plan in our names and our order of axes."""
    fingerprint = fingerprint_of(groups)
    _write_dataset(
        root, {f"case_{i}": {"images": ["x.nii.gz"], "label": "y.nii.gz"} for i in range(len(fingerprint.shapes))}
    )
    properties = {
        "spacings": [spacing[::-1] for spacing in fingerprint.spacings],
        "shapes_after_crop": [shape[::-1] for shape in fingerprint.shapes],
        "median_relative_size_after_cropping": 0.5,
        "foreground_intensity_properties_per_channel": {},
    }
    (root / "nnUNet_preprocessed" / DATASET / "dataset_fingerprint.json").write_text(json.dumps(properties))
    with contextlib.redirect_stdout(io.StringIO()), torch.device("meta"):
        planner = PLANNERS[preset][0](
            DATASET, memory, overwrite_target_spacing=None if spacing is None else list(spacing[::-1])
        )
        plans = planner.plan_experiment()
    return _ours_of(plans)


def _ours_of(plans: dict[str, Any]) -> dict[str, Any]:
    configuration = plans["configurations"]["3d_fullres"]
    network = configuration["architecture"]["arch_kwargs"]
    place = [list(plans["transpose_forward"]).index(axis) for axis in (2, 1, 0)]  # of x, y, z

    def ordered(triple: Any) -> list[Any]:
        return [np.asarray(triple)[axis].item() for axis in place]

    residual = "n_blocks_per_stage" in network
    return {
        "spacing": [round(size, 6) for size in ordered(configuration["spacing"])],
        "patch": ordered(configuration["patch_size"]),
        "batch": configuration["batch_size"],
        "batch_dice": configuration["batch_dice"],
        "features": list(network["features_per_stage"]),
        "strides": [ordered(stride) for stride in network["strides"]],
        "kernels": [ordered(kernel) for kernel in network["kernel_sizes"]],
        "encoder": "residual" if residual else "plain",
        "convs_encoder": list(network["n_blocks_per_stage" if residual else "n_conv_per_stage"]),
        "convs_decoder": list(network["n_conv_per_stage_decoder"])[::-1],
    }


def _write_dataset(root: Path, cases: dict[str, Any]) -> None:
    description = {
        "channel_names": {str(i): m for i, m in enumerate(MODALITIES)},
        "labels": {name: i for i, name in enumerate(CLASSES)},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": cases,
    }
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        (root / name / DATASET).mkdir(parents=True, exist_ok=True)
    (root / "nnUNet_raw" / DATASET / "dataset.json").write_text(json.dumps(description))


def _estimates() -> Check:
    """Networks that no preset plans, too: any number of convolutions, any strides."""
    rng, different = np.random.default_rng(0), 0
    for index in range(40):
        stages = int(rng.integers(2, 7))
        residual = bool(index % 2)
        drawn: dict[str, Any] = {
            "features": (2 ** rng.integers(2, 5, stages)).tolist(),
            "strides": [[1, 1, 1], *(1 + rng.integers(0, 2, (stages - 1, 3))).tolist()],
            "convs_encoder": rng.integers(1, 5, stages).tolist(),
            "convs_decoder": rng.integers(1, 4, stages - 1).tolist(),
        }
        ours = NetworkConfig(encoder="residual" if residual else "plain", **drawn)
        patch = _shape(np.multiply(ours.total_stride, rng.integers(1, 4, 3)))
        with torch.device("meta"):
            theirs = (ResidualEncoderUNet if residual else PlainConvUNet)(
                input_channels=2,
                n_stages=stages,
                features_per_stage=drawn["features"],
                conv_op=torch.nn.Conv3d,
                kernel_sizes=3,
                strides=drawn["strides"],
                num_classes=4,
                n_conv_per_stage_decoder=drawn["convs_decoder"][::-1],
                **{"n_blocks_per_stage" if residual else "n_conv_per_stage": drawn["convs_encoder"]},
            )
        different += feature_map_size(ours, patch, 4) != int(theirs.compute_conv_feature_map_size(patch))
    return Check("feature maps of 40 drawn networks", different, 0, "number of differing estimates")


def _fingerprints(root: Path) -> Iterator[Check]:
    drawn = _drawn_cases()
    cases = find_cases(_write_cases(root / "cases", drawn))
    ours = measure_cases(cases, workers=0, progress=False)
    _write_dataset(
        root, {c.id: {"images": [str(c.images[m]) for m in MODALITIES], "label": str(c.label)} for c in cases}
    )
    theirs = _their_fingerprint(FOREGROUND_SAMPLES)
    _keep_fingerprint(drawn, theirs)
    shapes = [tuple(shape[::-1]) for shape in theirs["shapes_after_crop"]]
    different = sum(a != b for a, b in zip(ours.shapes, shapes, strict=True))
    yield Check("fingerprint: shapes after cropping", different, 0, "number of differing cases")
    spacings = [spacing[::-1] for spacing in theirs["spacings"]]
    yield Check("fingerprint: spacings", float(np.abs(np.subtract(ours.spacings, spacings)).max()), 1e-6)
    size = abs(ours.relative_size - theirs["median_relative_size_after_cropping"])
    yield Check("fingerprint: relative size after cropping", size, 1e-12)
    difference = _largest_difference(ours, theirs, tuple(vars(ours.intensities[MODALITIES[0]])))
    yield Check("fingerprint: intensities, as many samples", difference, 1e-5, "difference, in standard deviations")
    # Not the percentiles: with the few voxels of these cases they jump from one value to the next.
    difference = _largest_difference(ours, _their_fingerprint(10 * FOREGROUND_SAMPLES), ("mean", "std"))
    yield Check("fingerprint: mean and std, ten times as many", difference, 0.005, "difference, in standard deviations")


def _their_fingerprint(samples: int) -> dict[str, Any]:
    extractor = fingerprint_extractor.DatasetFingerprintExtractor(DATASET, num_processes=1)
    extractor.num_foreground_voxels_for_intensitystats = samples
    extractor.show_progress_bar = False
    with contextlib.redirect_stdout(io.StringIO()):
        return extractor.run(overwrite_existing=True)


def _largest_difference(ours: Fingerprint, theirs: dict[str, Any], statistics: tuple[str, ...]) -> float:
    """Over modalities and statistics."""
    found = 0.0
    for index, m in enumerate(MODALITIES):
        expected = theirs["foreground_intensity_properties_per_channel"][index]
        values = vars(ours.intensities[m])
        found = max(found, *(abs(values[name] - expected[name]) / expected["std"] for name in statistics))
    return found


def _drawn_cases() -> list[dict[str, Any]]:
    """Images [x, y, z, modality], label and spacing of five cases of several shapes."""
    rng, cases = np.random.default_rng(0), []
    for _ in range(5):
        shape, spacing = rng.integers(10, 16, 3), rng.uniform(0.6, 4, 3)
        label, images = np.zeros(shape, np.uint8), np.zeros((*shape, len(MODALITIES)), np.int16)
        label[3:7, 4:7, 4:8] = rng.choice([0, 1, 2, 4], (4, 3, 4))
        for channel in range(len(MODALITIES)):
            low, high = rng.integers(1, 4, 3), shape - rng.integers(1, 4, 3)
            inside: Any = (*(slice(a, b) for a, b in zip(low, high, strict=True)), channel)
            images[inside] = rng.gamma(3, 100, images[inside].shape) + 1
        cases.append({"images": images, "label": label, "spacing": spacing})
    return cases


def _write_cases(folder: Path, cases: list[dict[str, Any]]) -> Path:
    """In the order of axes that both read alike, so that the drawn voxels are the same."""
    for number, case in enumerate(cases):
        home = folder / f"BraTS2021_{number:05d}"
        home.mkdir(parents=True)
        affine = np.diag([*case["spacing"], 1])
        for channel, m in enumerate(MODALITIES):
            nib.save(nib.Nifti1Image(case["images"][..., channel], affine), home / f"{home.name}_{m}.nii.gz")
        nib.save(nib.Nifti1Image(case["label"], affine), home / f"{home.name}_seg.nii.gz")
    return folder


def _keep_fingerprint(cases: list[dict[str, Any]], theirs: dict[str, Any]) -> None:
    arrays = {f"{name}_{number}": array for number, case in enumerate(cases) for name, array in case.items()}
    properties = theirs["foreground_intensity_properties_per_channel"]
    arrays["shapes"] = np.array([shape[::-1] for shape in theirs["shapes_after_crop"]])
    arrays["relative_size"] = np.array(theirs["median_relative_size_after_cropping"])
    for name in properties[0]:
        arrays[f"intensity_{name}"] = np.array([properties[channel][name] for channel in range(len(MODALITIES))])
    np.savez_compressed(FINGERPRINT_FILE, **arrays)
