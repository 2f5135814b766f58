"""The plan of a run as a file to read and to edit: measurements, reasons, and the settings themselves."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import InputError
from data_pipeline.files import write_atomically
from data_pipeline.preprocessing.fingerprint import Fingerprint
from kd_jax.config.load import parse_config
from kd_jax.planning.planner import Plan
from kd_jax.planning.presets import PRESETS, Preset

_KEYS = ("data", "why", "settings")
_SPACING_DECIMALS = 6  # mm; below, headers hold rounding
_NUMBERS = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")


def plan_document(
    plan: Plan, fingerprint: Fingerprint, *, root: str, preset: Preset, memory: float, networks: int
) -> dict[str, Any]:
    """The content of the file.

    Args:
      plan: from `planner.plan_networks`.
      fingerprint: the fingerprint it was made from.
      root: place of the cases, in words.
      preset: name of the rules.
      memory: GB of the accelerator.
      networks: number of networks that share it.
    """
    return {
        "data": {
            "root": root,
            "cases": len(fingerprint.shapes),
            "median_spacing_mm": _rounded(np.median(fingerprint.spacings, axis=0)),
            "median_shape_after_crop": _rounded(np.median(fingerprint.shapes, axis=0)),
            "median_shape_at_spacing": list(plan.median_shape),
            "median_relative_size_after_cropping": round(fingerprint.relative_size, 4),
            "foreground_intensities": {
                modality: {name: float(f"{value:.6g}") for name, value in asdict(values).items()}
                for modality, values in fingerprint.intensities.items()
            },
        },
        "why": {
            "rules": f"nnU-Net v2, {PRESETS[preset].planner}, 3d_fullres; axes are x, y, z",
            "memory_gb": memory,
            "networks": networks,
            "feature_maps_of_one_network_and_patch": plan.feature_maps,
            "feature_maps_that_fill_the_memory_at_batch_2": round(plan.budget),
            "share_of_the_median_case_in_a_patch": round(patch_share(plan), 3),
            "batch_dice": "on where nnU-Net would put a network of coarser spacing first",
        },
        "settings": plan_settings(plan),
    }


def patch_share(plan: Plan) -> float:
    """Voxels of a patch per voxel of the median case."""
    return float(np.prod(plan.patch) / np.prod(plan.median_shape))


def plan_settings(plan: Plan) -> dict[str, Any]:
    """The plan as tables of `config.Config`; the networks keep their modalities."""
    network = {
        "features": list(plan.network.features),
        "kernels": [list(kernel) for kernel in plan.network.stage_kernels],
        "strides": [list(stride) for stride in plan.network.stage_strides],
        "encoder": plan.network.encoder,
        "convs_encoder": list(plan.network.stage_convs_encoder),
        "convs_decoder": list(plan.network.stage_convs_decoder),
    }
    return {
        "data": {"spacing": _rounded(np.asarray(plan.spacing)), "patch": list(plan.patch)},
        "teacher": network,
        "student": network,
        "loss": {"batch_dice": plan.batch_dice},
        "train": {"batch": plan.batch},
    }


def write_plan(path: Path, document: Mapping[str, Any]) -> None:
    """Write the file, atomically, a list of numbers to a line.

    Raises:
      InputError: it cannot be written.
    """
    text = _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", json.dumps(document, indent=2))
    write_atomically(path, f"{text}\n".encode())


def read_plan(path: Path) -> dict[str, Any]:
    """The settings of a plan file, as nested tables for `settings.load_config`.

    Raises:
      InputError: there is no such file, it is damaged or no plan, a key is unknown, or the settings are impossible.
    """
    settings = _settings_table(path)
    parse_config(settings, source=f"{path}, settings")
    return settings


def _settings_table(path: Path) -> dict[str, Any]:
    make = "kd-jax plan makes one"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a plan ({error.strerror or error}); {make}") from error
    except ValueError as error:  # of JSON or of UTF-8
        raise InputError(f"{path}: not readable JSON ({error}); correct it there, or plan again: {make}") from error
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        found = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: expected a plan with a table settings, found {found or 'nothing'}; {make}")
    if unknown := set(content) - set(_KEYS):
        raise InputError(
            f"{path}: unknown key {', '.join(sorted(unknown))}; allowed at the top: {', '.join(_KEYS)} "
            "(settings of the run belong into the table settings)"
        )
    return content["settings"]


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), _SPACING_DECIMALS) for value in values]
