"""Imports results that nnU-Net itself wrote and compares: logits of a patch, labels of a whole case."""

import importlib
import inspect
import os
import pkgutil
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from copy import deepcopy
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
import nibabel as nib
import nnunetv2.training.nnUNetTrainer
import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import save_json
from jaxtyping import Float32, UInt8
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from scipy import ndimage

from data_pipeline.conventions import CLASSES, MODALITIES, Modality
from data_pipeline.layouts.find import find_cases
from experiments.parity.check import GOLDEN, Check
from experiments.parity.importing_variants import PLAIN, RESIDUAL, SMALL, Variant
from kd_jax.import_nnunet import main as import_nnunet
from kd_jax.inference.load import load_segmenter
from kd_jax.inference.segmenter import segment_case
from kd_jax.nnunet.json_table import JsonTable
from kd_jax.nnunet.plans import read_nnunet_plan
from kd_jax.nnunet.trainers import is_known
from kd_jax.runs.restore import restore_network

FOLDER = GOLDEN / "nnunet_result"
"""A result folder of nnU-Net, as small as one can be."""
LOGITS = GOLDEN / "nnunet_result.npz"
"""A patch in nnU-Net's order, and the logits of nnU-Net's network at full resolution."""
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
IN_HALF = 0.001
"""Share of voxels that may differ. nnU-Net weights and sums windows in float16, which in the corners of a volume, where
one window's smallest weights stand alone, rounds logits to steps of a half and more."""
IN_FLOAT = 2e-5
"""The same with nnU-Net in float32: only logits that are equal up to rounding remain."""


def checks() -> Iterator[Check]:
    """Each result folder, then the importer's assumptions about nnU-Net."""
    torch.set_num_threads(1)
    for variant in (PLAIN, RESIDUAL, SMALL):
        with tempfile.TemporaryDirectory() as place:
            result = train_a_little(variant, Path(place))
            run = Path(place) / "run"
            _quietly(lambda result=result, run=run: import_nnunet([str(result), "--run", str(run)]))
            patch, theirs = _their_patch(variant, result)
            name = f"{variant.network}, {variant.name}"
            yield Check(f"{name}: logits of a patch", float(np.abs(_ours(variant, run, patch) - theirs).max()), 1e-4)
            if variant is SMALL:
                _keep(result, patch, theirs)
            else:
                yield from _whole_case(variant, result, run, Path(place), name)
    yield Check("trainers that keep the network", _differing_trainers(), 0, "trainers judged otherwise")
    yield Check("plans before nnU-Net 2.2", _old_plans_difference(), 0, "settings")
    yield Check("reader that reorients to R, A, S", _reorienting_difference(), 0)


def train_a_little(variant: Variant, place: Path) -> Path:
    """A result folder by nnU-Net's own trainer: one step of its optimiser, logged and saved; returns the folder."""
    plans, dataset = variant.plans(), variant.dataset()
    names = {f"nnUNet_{kind}": str(place / kind) for kind in ("raw", "preprocessed", "results")}
    # nnU-Net looks at a file there to tell the format of its preprocessed cases.
    prepared = place / "preprocessed" / plans["dataset_name"] / "nnUNetPlans_3d_fullres"
    prepared.mkdir(parents=True)
    (prepared / "case.b2nd").touch()
    torch.manual_seed(variant.seed)
    with _environment({**names, "nnUNet_compile": "f"}):
        trainer = _quietly(lambda: _trainer(deepcopy(plans), dataset))
        folder = Path(trainer.output_folder_base)
        save_json(plans, str(folder / "plans.json"), sort_keys=False)
        save_json(dataset, str(folder / "dataset.json"), sort_keys=False)
        trainer.save_checkpoint(str(folder / "fold_0" / "checkpoint_final.pth"))
    return folder


def _trainer(plans: dict[str, Any], dataset: dict[str, Any]) -> Any:
    trainer = nnUNetTrainer({**plans, "continue_training": False}, "3d_fullres", 0, dataset, torch.device("cpu"))
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    with torch.no_grad():
        for name, parameter in trainer.network.named_parameters():
            if name.endswith("bias") or ".norm." in name:
                parameter += 0.3 * torch.randn_like(parameter)
            if "seg_layers" in name:  # logits as far apart as a trained network's
                parameter *= 5
    channels = len(dataset["channel_names"])
    levels = trainer.network(torch.randn(1, channels, *plans["configurations"]["3d_fullres"]["patch_size"]))
    sum(level.square().mean() for level in levels).backward()
    trainer.optimizer.step()
    trainer.logger.log("mean_fg_dice", np.float64(0.5), 0)
    trainer.logger.log("dice_per_class_or_region", [np.float64(0.5), np.float32(0.25)], 0)
    trainer._best_ema = trainer.logger.get_value("ema_fg_dice", step=0)
    return trainer


def _predictor(result: Path, mirror: bool) -> nnUNetPredictor:
    predictor = nnUNetPredictor(
        use_mirroring=mirror, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(result), (0,), "checkpoint_final.pth")
    return predictor


def _their_patch(
    variant: Variant, result: Path
) -> tuple[Float32[np.ndarray, "c d h w"], Float32[np.ndarray, "k d h w"]]:
    patch = np.random.default_rng(1).standard_normal((len(variant.channel_names), *variant.patch)).astype(np.float32)
    predictor = _quietly(lambda: _predictor(result, mirror=False))
    with torch.no_grad():
        logits = predictor.network(torch.from_numpy(patch)[None])[0].numpy()
    return patch, logits


def _ours(variant: Variant, run: Path, patch: Float32[np.ndarray, "c d h w"]) -> Float32[np.ndarray, "k d h w"]:
    """Our network on a patch of nnU-Net: to x, y, z, to R, A, S, modalities and outputs by name, and back."""
    axes = [list(variant.transpose_forward).index(2 - axis) for axis in range(3)]
    names = list(variant.channel_names.values())
    restored = restore_network(run, "teacher", "best")
    volume = np.transpose(patch, (*(1 + axis for axis in axes), 0))[::-1, ::-1]
    image = volume[..., [names.index(m) for m in MODALITIES if m in names]]
    output = restored.module.apply({"params": restored.params}, jnp.asarray(image[None]))
    logits = np.asarray(output.logits[0][0])[::-1, ::-1]
    back = np.transpose(logits, (3, *np.argsort(axes)))
    return back[list(_our_outputs(variant))]


def _our_outputs(variant: Variant) -> Iterator[int]:
    """Our channel of each of nnU-Net's outputs."""
    if variant.regions_class_order is None:
        yield from (variant.file_classes[value] for value in range(len(CLASSES)))
    else:
        sizes = [len(v) if isinstance(v, list) else 1 for name, v in variant.labels.items() if name != "background"]
        yield from (3 - size for size in sizes)  # WT has three values, TC two, ET one


def _whole_case(variant: Variant, result: Path, run: Path, place: Path, name: str) -> Iterator[Check]:
    """The same files through nnU-Net's preprocessing and predictor, and through ours."""
    case, files = _write_case(variant, place / "cases")
    predictor = _quietly(lambda: _predictor(result, mirror=bool(variant.mirror)))
    image, properties = SimpleITKIO().read_images([str(files[m]) for m in variant.channel_names.values()])
    segmenter = load_segmenter([run], None, "best", mirror=variant.mirror)
    ours = segment_case(segmenter, find_cases(case)[0], progress=False).classes[::-1, ::-1].transpose(2, 1, 0)
    for half, bound in ((True, IN_HALF), (False, IN_FLOAT)):
        with _precision(half):
            values = _quietly(lambda: predictor.predict_single_npy_array(image, dict(properties)))
        theirs = np.vectorize(variant.file_classes.__getitem__)(values)
        what = f"{name}: labels of a case, nnU-Net's sums in float{16 if half else 32}"
        yield Check(what, float((ours != theirs).mean()), bound, "share of voxels")
    yield Check(f"{name}: classes absent from the case", len(CLASSES) - np.unique(ours).size, 0, "classes")


@contextmanager
def _precision(half: bool) -> Iterator[None]:
    """nnU-Net as it is, or with its Gaussian and its sums over windows in float32."""
    compute_gaussian.cache_clear()
    with ExitStack() as changes:
        if not half:
            single = partial(compute_gaussian, dtype=torch.float32)
            changes.enter_context(mock.patch.object(predict_from_raw_data, "compute_gaussian", single))
            changes.enter_context(mock.patch.object(torch, "half", torch.float32))
        yield


def _write_case(variant: Variant, folder: Path) -> tuple[Path, dict[Modality, Path]]:
    """Textures in a box of brain that takes two windows per axis, placed alike from either side."""
    axes = [list(variant.transpose_forward).index(2 - axis) for axis in range(3)]
    box = [variant.patch[axis] * 3 // 2 for axis in axes]
    rng = np.random.default_rng(2)
    files = {}
    for modality in MODALITIES:
        texture = ndimage.gaussian_filter(rng.standard_normal(box), 3)
        image = np.pad(400 + 3000 * texture, ((5, 7), (4, 9), (3, 2))).clip(0).astype(np.int16)
        files[modality] = folder / "BraTS2021_00000" / f"BraTS2021_00000_{modality}.nii.gz"
        files[modality].parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(image, LPS), files[modality])
    return folder, files


def _keep(result: Path, patch: Float32[np.ndarray, "c d h w"], logits: Float32[np.ndarray, "k d h w"]) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth"):
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(result / name, FOLDER / name)
    np.savez_compressed(LOGITS, patch=patch, logits=logits)


def _differing_trainers() -> int:
    """Trainers of the package that we know although they build another network, or the reverse."""
    package = nnunetv2.training.nnUNetTrainer
    trainers: dict[str, Any] = {}
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        try:
            members = inspect.getmembers(importlib.import_module(module.name), inspect.isclass)
        except ModuleNotFoundError:  # Primus, a transformer, wants a package that nnU-Net does not install
            continue
        trainers |= {name: member for name, member in members if issubclass(member, nnUNetTrainer)}
    builds = nnUNetTrainer.build_network_architecture
    return sum(is_known(name) != (trainer.build_network_architecture is builds) for name, trainer in trainers.items())


def _old_plans_difference() -> int:
    """Settings that we read from old plans in another way than nnU-Net does."""
    plans = PLAIN.plans()
    configuration = plans["configurations"]["3d_fullres"]
    network = configuration.pop("architecture")["arch_kwargs"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 10,
        "n_conv_per_stage_encoder": network["n_conv_per_stage"],
        "n_conv_per_stage_decoder": network["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [1, 2, 2],
        "pool_op_kernel_sizes": network["strides"],
        "conv_kernel_sizes": network["kernel_sizes"],
    }
    old = read_nnunet_plan(JsonTable(Path("plans.json"), "", deepcopy(plans)), "3d_fullres").network
    plans["configurations"]["3d_fullres"] = ConfigurationManager(configuration).configuration
    new = read_nnunet_plan(JsonTable(Path("plans.json"), "", plans), "3d_fullres").network
    return sum(old[key] != new[key] for key in new)


def _reorienting_difference() -> float:
    volume = np.random.default_rng(3).integers(1, 99, (4, 5, 6)).astype(np.int16)
    with tempfile.TemporaryDirectory() as place:
        file = str(Path(place) / "image.nii.gz")
        nib.save(nib.Nifti1Image(volume, LPS), file)
        stored, _ = SimpleITKIO().read_images([file])
        canonical, _ = SimpleITKIOWithReorient().read_images([file])
    wanted: UInt8[np.ndarray, "z y x"] = volume.transpose(2, 1, 0)
    return float(max(np.abs(stored[0] - wanted).max(), np.abs(canonical[0] - wanted[:, ::-1, ::-1]).max()))


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _quietly(function: Any) -> Any:
    with redirect_stdout(StringIO()):
        return function()
