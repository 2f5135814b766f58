"""The post-processing rule of a network: reads, describes and applies it.

`kd_jax.postprocess` decides it on held-out cases and writes it to `RUN/postprocessing.json`, which holds a rule for
each network.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from data_pipeline.conventions import CLASSES, REGION_CLASSES, Region
from data_pipeline.errors import InputError
from data_pipeline.files import write_json
from kd_jax.config.data import PositiveFloat
from kd_jax.config.network import Axis
from kd_jax.config.schema import Outputs, Which
from kd_jax.postprocessing.components import FOREGROUND_CLASSES, keep_largest_of, remove_small_enhancing

POSTPROCESSING_FILE = "postprocessing.json"

LabelOrRegion = Literal["NCR", "ED", "WT", "TC", "ET"]
Step = Literal["foreground", LabelOrRegion]
When = Literal["before", "after"]
Figures = Mapping[str, float | None]
"""Mean Dice by part; None where it is undefined."""

STEP_CLASSES: Mapping[Step, tuple[int, ...]] = MappingProxyType(
    {
        "foreground": FOREGROUND_CLASSES,
        "NCR": (CLASSES.index("NCR"),),
        "ED": (CLASSES.index("ED"),),
        "WT": REGION_CLASSES["WT"],
        "TC": REGION_CLASSES["TC"],
        "ET": REGION_CLASSES["ET"],
    }
)
"""The internal classes of which a step keeps the largest component."""

PARTS: Mapping[Outputs, tuple[LabelOrRegion, ...]] = MappingProxyType(
    {"classes": ("NCR", "ED", "ET"), "regions": ("WT", "TC", "ET")}
)
"""The parts that Dice is computed for and components are removed from, in order: those the network was trained on."""

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class DecidedOn:
    """The origin of a rule.

    Attributes:
      runs: training step of the checkpoint of each run, by the run's folder.
      cases: ids of the cases, pooled over the runs; no network trained on a case that it segmented.
      checkpoint: best or latest.
      mirror: axes mirrored.
      parts: decided on the Dice of classes, or of regions.
    """

    runs: Mapping[str, int]
    cases: tuple[str, ...]
    checkpoint: Which
    mirror: tuple[Axis, ...]
    parts: Outputs


@dataclass(frozen=True, config=_STRICT)
class Decision:
    """One step that was tried.

    Attributes:
      step: the part whose largest component was kept.
      applied: whether the step belongs to the rule.
      before: mean Dice by part without the step, and their `mean`; as in nnU-Net, cases are left out if neither
        prediction nor reference has a voxel of the part.
      after: the same with the step.
    """

    step: Step
    applied: bool
    before: Figures
    after: Figures


@dataclass(frozen=True, config=_STRICT)
class Threshold:
    """A smallest volume of enhancing tumour that was tried, and the mean Dice of ET, 1 where both are empty."""

    min_et_ml: PositiveFloat | None
    et_dice: float


@dataclass(frozen=True, config=_STRICT)
class Postprocessing:
    """A rule for changing predicted label maps.

    Attributes:
      steps: parts whose largest components are kept, in this order.
      min_et_ml: volume in ml below which enhancing tumour becomes necrotic core; None leaves it.
      decided_on: None if the rule was not decided, but is a threshold from the command line.
      decisions: every step that was tried.
      thresholds: every threshold that was tried, none (`min_et_ml` None) among them.
      region_dice: mean Dice of WT, TC and ET `before` and `after` all of it, 1 where both are empty.
    """

    steps: tuple[Step, ...] = ()
    min_et_ml: PositiveFloat | None = None
    decided_on: DecidedOn | None = None
    decisions: tuple[Decision, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    region_dice: Mapping[When, Mapping[Region, float]] | None = None

    def does_as(self, other: "Postprocessing") -> bool:
        """Both treat every label map alike."""
        return (self.steps, self.min_et_ml) == (other.steps, other.min_et_ml)


_FILE = TypeAdapter(dict[str, Postprocessing])


def load_postprocessing(run: Path, network: str) -> Postprocessing | None:
    """The rule decided for a network of a run; None if there is none.

    Raises:
      InputError: the file is damaged.
    """
    path = run / POSTPROCESSING_FILE
    return read_rules(path).get(network) if path.is_file() else None


def save_postprocessing(run: Path, network: str, rule: Postprocessing) -> None:
    """Write the rule for a network of a run, atomically; rules of other networks stay.

    Raises:
      InputError: the existing file is damaged, or the file cannot be written.
    """
    path = run / POSTPROCESSING_FILE
    rules = (read_rules(path) if path.is_file() else {}) | {network: rule}
    write_json(path, _FILE.dump_python(rules, mode="json"))


def apply_postprocessing(
    classes: UInt8[np.ndarray, "d h w"], spacing_mm: tuple[float, float, float], rule: Postprocessing
) -> UInt8[np.ndarray, "d h w"]:
    """Post-process a map of internal classes on the original grid of its case; the map given is not changed."""
    for step in rule.steps:
        classes = keep_largest_of(classes, STEP_CLASSES[step])
    return classes if rule.min_et_ml is None else remove_small_enhancing(classes, spacing_mm, rule.min_et_ml)


def describe_rule(rule: Postprocessing) -> str:
    """The effect of a rule and the cases it was decided on, in one line."""
    does = [f"only the largest component of {', then of '.join(rule.steps)} is kept"] if rule.steps else []
    if rule.min_et_ml is not None:
        does.append(describe_threshold(rule.min_et_ml))
    line = "; ".join(does) or "none"
    if rule.decided_on is None:
        return line
    cases, runs = len(rule.decided_on.cases), ", ".join(rule.decided_on.runs)
    return f"{line} (decided on {cases} held-out {'case' if cases == 1 else 'cases'} of {runs})"


def describe_threshold(min_ml: float) -> str:
    """A threshold on the volume of enhancing tumour, in words."""
    return f"ET below {min_ml:g} ml ({1000 * min_ml:g} voxels of 1 mm³) becomes NCR"


def read_rules(path: Path) -> dict[str, Postprocessing]:
    """The rules of a file that `kd_jax.postprocess` wrote, by network.

    Raises:
      InputError: it is not there, or not such a file.
    """
    try:
        return _FILE.validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); give a file that kd-jax postprocess wrote"
        ) from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the top"
        raise InputError(
            f"{path}: not a rule that kd-jax postprocess wrote, found at {where}: {problem['msg']}; delete it and "
            "decide again, or pass --postprocess none"
        ) from error
