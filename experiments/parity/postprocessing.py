"""Compares post-processing, its decisions and its effect, with nnU-Net's own commands on maps with stray components."""

import contextlib
import io
import json
import multiprocessing
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from jaxtyping import UInt8
from nnunetv2.postprocessing.remove_connected_components import apply_postprocessing_to_folder, determine_postprocessing

from data_pipeline.conventions import CLASSES, REGION_CLASSES
from experiments.parity.check import GOLDEN, Check
from kd_jax.config.schema import Outputs
from kd_jax.postprocessing.decision import count_case, decide_steps
from kd_jax.postprocessing.rule import PARTS, STEP_CLASSES, Postprocessing, Step, apply_postprocessing

FILE = GOLDEN / "postprocessing.npz"
SHAPE = (16, 18, 14)
CASES = 5
SPACING = (1.0, 1.0, 1.0)
PLANS = {"image_reader_writer": "NibabelIO", "label_manager": "LabelManager"}
DATASETS: dict[Outputs, dict[str, Any]] = {
    "classes": {"labels": {name: index for index, name in enumerate(CLASSES)}, "file_ending": ".nii.gz"},
    "regions": {
        "labels": {"background": 0} | {name: list(members) for name, members in REGION_CLASSES.items()},
        "regions_class_order": [2, 1, 3],
        "file_ending": ".nii.gz",
    },
}
"""dataset.json as nnU-Net needs it: the same label values, trained on as classes or as regions."""

Labels = UInt8[np.ndarray, "n d h w"]

SCENARIOS: dict[str, dict[str, Any]] = {
    "one lesion, many strays": {"seed": 0, "strays": 6},
    "one lesion, strays of oedema": {"seed": 1, "strays": 4, "of": (2,)},
    "one lesion, strays of enhancing tumour": {"seed": 2, "strays": 4, "of": (3,)},
    "two lesions, few strays": {"seed": 3, "lesions": 2, "strays": 1},
    "two lesions, strays of necrosis": {"seed": 4, "lesions": 2, "strays": 4, "of": (1,)},
    "no necrosis anywhere": {"seed": 5, "strays": 3, "of": (2, 3), "absent": 1},
    "no necrosis anywhere, strays of oedema": {"seed": 10, "strays": 4, "of": (2,), "absent": 1},
    "enhancing tumour only by mistake": {"seed": 6, "strays": 2, "of": (3,), "absent": 3},
    "empty references and predictions": {"seed": 7, "strays": 3, "empty": True},
    "no stray": {"seed": 8, "strays": 0},
    "components of one size, touching at corners": {"seed": 9, "strays": 3, "twins": True},
}
"""How the label maps of each scenario are drawn."""


def checks() -> Iterator[Check]:
    """Decisions, figures and voxels of every scenario, for classes and for regions."""
    golden: dict[str, Any] = {}
    for outputs in DATASETS:
        decisions, figures, voxels = 0, 0.0, 0
        for name, options in SCENARIOS.items():
            prediction, reference = draw(**options)
            steps, dice, output = original(prediction, reference, outputs)
            ours = decide_steps(
                [count_case(p, r, SPACING, PARTS[outputs]) for p, r in zip(prediction, reference, strict=True)],
                PARTS[outputs],
            )
            found = tuple(decision.step for decision in ours if decision.applied)
            last = next((d.after for d in reversed(ours) if d.applied), ours[0].before)
            decisions += found != steps
            figures = max(figures, *(_apart(d, o) for d, o in zip(dice, (ours[0].before, last), strict=True)))
            applied = [apply_postprocessing(p, SPACING, Postprocessing(steps)) for p in prediction]
            voxels += sum(int(np.count_nonzero(np.stack(applied) != o)) for o in output)
            key = f"{outputs}/{name}"
            golden |= {f"{key}/prediction": prediction, f"{key}/reference": reference, f"{key}/output": output[0]}
            golden[f"{key}/decision"] = json.dumps({"steps": steps, "before": dice[0], "after": dice[1]})
        yield Check(f"{outputs}: decisions in {len(SCENARIOS)} scenarios", decisions, 0, "scenarios that differ")
        yield Check(f"{outputs}: mean Dice before and after", figures, 1e-15)
        yield Check(f"{outputs}: label maps after", voxels, 0, "voxels that differ")
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **golden)


def draw(
    seed: int,
    *,
    strays: int,
    lesions: int = 1,
    of: Sequence[int] = (1, 2, 3),
    absent: int | None = None,
    empty: bool = False,
    twins: bool = False,
) -> tuple[Labels, Labels]:
    """Predictions and references.

    Args:
      seed: of everything drawn.
      strays: small boxes that the prediction has and the reference mostly has not, at most.
      lesions: true tumours, each with all classes.
      of: classes of the strays.
      absent: a class that no reference has.
      empty: some references, and some predictions, are background alone.
      twins: tumours have the same size, and strays are chains of voxels that touch at corners.
    """
    rng = np.random.default_rng(seed)
    references = np.stack([_tumours(rng, 2 if twins else lesions, 4 if twins else None) for _ in range(CASES)])
    if absent is not None:
        references[references == absent] = 0
    predictions = references.copy()
    for case in predictions:
        wrong = (case > 0) & (rng.random(SHAPE) < 0.05)
        case[wrong & (not twins)] = 0
        for _ in range(rng.integers(strays // 2, strays + 1)):
            corner = [int(rng.integers(0, n - 4)) for n in SHAPE]
            box = case[tuple(slice(c, c + int(rng.integers(1, 4))) for c in corner)]
            if twins:
                box = np.einsum("iii->i", case[tuple(slice(c, c + 4) for c in corner)])
            box[box == 0] = rng.choice(of)
    if empty:
        references[0], predictions[1], references[2], predictions[2] = 0, 0, 0, 0
    return predictions, references


def _tumours(rng: np.random.Generator, lesions: int, radius: int | None) -> UInt8[np.ndarray, "d h w"]:
    """Balls of oedema around one of enhancing tumour around one of necrosis."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    labels = np.zeros(SHAPE, np.uint8)
    for _ in range(lesions):
        size = radius or rng.uniform(3, 5)
        distance = np.linalg.norm(grid - [rng.integers(3, n - 3) for n in SHAPE], axis=-1)
        for share, label in ((1.0, 2), (0.7, 3), (0.35, 1)):
            labels[distance < share * size] = label
    return labels


Figures = dict[str, float | None]


def original(
    prediction: Labels, reference: Labels, outputs: Outputs
) -> tuple[tuple[Step, ...], tuple[Figures, Figures], tuple[Labels, Labels]]:
    """nnU-Net's steps, mean Dice before and after, and label maps as it decided and as it applied them."""
    with tempfile.TemporaryDirectory() as temporary, _without_processes():
        folders = [Path(temporary) / name for name in ("prediction", "reference", "applied")]
        for folder, labels in zip(folders, (prediction, reference), strict=False):
            folder.mkdir()
            for number, volume in enumerate(labels):
                nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / f"case_{number}.nii.gz")
        predicted, referred, applied = map(str, folders)
        functions, settings = determine_postprocessing(predicted, referred, PLANS, DATASETS[outputs], 1)
        apply_postprocessing_to_folder(predicted, applied, functions, settings, PLANS, DATASETS[outputs], 1)
        record = load_json(str(folders[0] / "postprocessing.json"))
        maps = _volumes(folders[0] / "postprocessed"), _volumes(folders[2])
    steps = tuple(_step(setting["labels_or_regions"], outputs) for setting in settings)
    return steps, (_figures(record["input_folder"], outputs), _figures(record["postprocessed"], outputs)), maps


def _step(labels: Any, outputs: Outputs) -> Step:
    if isinstance(labels, list):
        return "foreground"
    members = tuple(np.atleast_1d(labels).tolist())
    return next(part for part in PARTS[outputs] if STEP_CLASSES[part] == members)


def _figures(results: Any, outputs: Outputs) -> Figures:
    """Dice by part, in the order of nnU-Net's labels or regions, and the mean; None for NaN."""
    values = {
        part: results["mean"][str(STEP_CLASSES[part] if outputs == "regions" else STEP_CLASSES[part][0])]["Dice"]
        for part in PARTS[outputs]
    } | {"mean": results["foreground_mean"]["Dice"]}
    return {name: None if np.isnan(value) else value for name, value in values.items()}


def _apart(first: Figures, second: Any) -> float:
    """Largest difference; infinite where only one of the two is undefined."""
    if [name for name in first if first[name] is None] != [name for name in second if second[name] is None]:
        return np.inf
    return max((abs(value - second[name]) for name, value in first.items() if value is not None), default=0.0)


def _volumes(folder: Path) -> Labels:
    return np.stack([np.asanyarray(nib.load(file).dataobj).astype(np.uint8) for file in sorted(folder.glob("*.gz"))])


@contextlib.contextmanager
def _without_processes() -> Iterator[None]:
    """nnU-Net starts processes for every folder; in one process the same functions run in seconds, and silently."""
    threads = mock.Mock(Pool=ThreadPool)
    with (
        mock.patch.object(multiprocessing, "get_context", return_value=threads),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(action="ignore"),  # the mean Dice of a class without a case
    ):
        yield
