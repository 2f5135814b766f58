"""The joint training step of teacher and student: ours, and PyTorch's with nnU-Net's own networks and losses."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.benchmark import machine
from experiments.benchmark.figures import Figure, Options, Part
from experiments.benchmark.sides import OURS, Measured, Side, SideError, compare, size_figure, time_figure
from experiments.benchmark.step_task import SIZES
from kd_jax.native import library

PLAIN = "kd_jax without compiled operators"
_KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
"""glibc then keeps freed memory: as it is, every large tensor comes as fresh pages, a million faults in each step."""


@dataclass(frozen=True)
class Form:
    """A way to run the same networks in PyTorch: settings of `pytorch.joint_step`, and environment variables."""

    settings: Mapping[str, bool] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


_LAST, _COMPILED = {"channels_last": True}, {"compiled": True}
FORMS: Mapping[str, Mapping[str, Form]] = {
    "cpu": {
        "PyTorch": Form(),
        "PyTorch, memory kept": Form({}, _KEEP),
        "PyTorch channels_last_3d, memory kept": Form(_LAST, _KEEP),
        "PyTorch compile, memory kept": Form(_COMPILED, _KEEP),
        "PyTorch compile channels_last_3d, memory kept": Form(_LAST | _COMPILED, _KEEP),
    },
    "gpu": {
        "PyTorch": Form(),
        "PyTorch channels_last_3d": Form(_LAST),
        "PyTorch compile": Form(_COMPILED),
        "PyTorch compile channels_last_3d": Form(_LAST | _COMPILED),
    },
    "tpu": {},
}
"""Forms of PyTorch by platform; the fastest of them counts."""
PATIENCE = 600.0
"""Seconds for a form of PyTorch to set up, compile and step once."""
TRIALS = 2
"""Steps that choose the fastest form, not counting those that are compared."""
CONTENDERS_WITHIN = 1.15
"""On a CPU all forms this close to the fastest are compared with ours; an accelerator's memory holds one."""
ORIGINALS = {
    "torch": "torch",
    "nnunetv2": "nnunetv2",
    "dynamic_network_architectures": "dynamic-network-architectures",
    "batchgeneratorsv2": "batchgeneratorsv2",
}


@dataclass(frozen=True)
class Setting:
    """Settings that both sides share.

    Attributes:
      platform: what JAX computes on: cpu, gpu or tpu.
      size: one of `SIZES`.
      precision: float32 or bfloat16.
      seed: of weights and batch.
      folder: for the weights both start with and for what PyTorch compiles.
    """

    platform: str
    size: str
    precision: str
    seed: int
    folder: Path

    def ours(self) -> Side:
        """Ours, as a run uses it."""
        return Side("experiments.benchmark.step_jax:joint_step", self._settings(), self._environment())

    def plain(self) -> Side:
        """Ours, with XLA's own operators."""
        environment = {**self._environment(), library.SWITCH: "0"}
        return Side("experiments.benchmark.step_jax:joint_step", self._settings(), environment)

    def peer(self, form: str) -> Side:
        """PyTorch in one of the platform's `FORMS`."""
        chosen, device = FORMS[self.platform][form], "cuda" if self.platform == "gpu" else "cpu"
        settings = {**self._settings(), **chosen.settings, "device": device}
        environment = {**self._environment(), **chosen.environment}
        return Side("experiments.benchmark.pytorch:joint_step", settings, environment, PATIENCE)

    def _settings(self) -> dict[str, Any]:
        weights = str(self.folder / "weights.npz")
        return {"size": self.size, "precision": self.precision, "seed": self.seed, "weights": weights}

    def _environment(self) -> dict[str, str]:
        """One device per side, no memory taken in advance, and nothing compiled before."""
        environment = {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
        }
        if self.platform == "gpu":
            environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        else:
            environment["JAX_PLATFORMS"] = self.platform
        return environment


def measure(options: Options) -> Part:
    """Time, memory and compilation of a step, in float32 and, where the machine has it, in bfloat16."""
    platform = machine.jax_platform()
    size = "small" if options.small else "cpu" if platform == "cpu" else "accelerator"
    forms, notes = list(FORMS[platform]), [_what_is_done(platform)]
    if lacking := machine.missing(ORIGINALS):
        forms = []
        notes.append(f"without a ratio: {', '.join(lacking)} not installed")
    if options.small:
        forms = forms[:1]
    figures: list[Figure] = []
    found = []
    for precision in ["float32", *(["bfloat16"] if _has_bfloat16(platform) else [])]:
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(platform, size, precision, options.seed, Path(folder))
            comparison = compare_steps(setting, forms, options.rounds)
        figures += step_figures(comparison, f"{SIZES[size]}, {precision}", SIZES[size].batch)
        notes += comparison.notes
        found.append(comparison.measured)
    if len(found) == 1:
        notes.append("bfloat16 is not measured: this CPU has no instructions for it, and both sides would emulate it")
    elif all(set(measured) - {OURS} for measured in found):
        figures.append(_faster_precision(found))
    return Part("step", figures, notes)


@dataclass(frozen=True)
class Comparison:
    """Measurements of one precision.

    Attributes:
      measured: ours and the contenders, in turn.
      tried: every form of PyTorch, alone.
      notes: remarks for the report.
    """

    measured: Mapping[str, Measured]
    tried: Mapping[str, Measured]
    notes: Sequence[str]


def compare_steps(setting: Setting, forms: Sequence[str], rounds: int) -> Comparison:
    """Our step and those of the fastest of `forms` in turn."""
    tried, notes = _try(setting, forms)
    sides = {name: setting.peer(name) for name in contenders(tried, one=setting.platform != "cpu")}
    if setting.platform == "cpu" and setting.precision == "float32" and library.available():
        ours = {PLAIN: setting.plain(), OURS: setting.ours()}
    else:
        ours = {OURS: setting.ours()}
    measured = compare({**sides, **ours}, rounds)
    if tried:
        times = ", ".join(f"{name} {side.median:.3g} s" for name, side in tried.items())
        notes.append(f"{setting.precision}: {TRIALS} steps of each form alone: {times}")
    notes += [_same_loss(name, measured, setting.precision) for name in sides]
    return Comparison(measured, tried, notes)


def contenders(tried: Mapping[str, Measured], *, one: bool) -> list[str]:
    """The fastest form, and unless only `one` may stay those about as fast."""
    ordered = sorted(tried, key=lambda name: tried[name].median)
    if one or not ordered:
        return ordered[:1]
    return [name for name in ordered if tried[name].median <= CONTENDERS_WITHIN * tried[ordered[0]].median]


def _try(setting: Setting, forms: Sequence[str]) -> tuple[dict[str, Measured], list[str]]:
    """Each form alone; one that fails is left out with a note."""
    tried: dict[str, Measured] = {}
    notes = []
    for form in forms:
        try:
            tried |= compare({form: setting.peer(form)}, TRIALS)
        except SideError as error:
            notes.append(f"{setting.precision}: {form} is left out: {str(error).splitlines()[-1]}")
    return tried, notes


def step_figures(found: Comparison, what: str, batch: int) -> list[Figure]:
    """Time, compared with the contenders; memory and compilation, compared with every form that was tried."""
    measured = {name: side for name, side in found.measured.items() if name != PLAIN}
    everyone = {**found.tried, **measured}
    rates = {name: batch / side.median for name, side in measured.items()}
    figures = [
        time_figure(f"joint step, {what}", measured),
        Figure(f"pairs of patches, {what}", "pairs/s", rates.pop(OURS), rates),
        size_figure(f"peak host memory, {what}", "GB", {n: m.peak / 1e9 for n, m in everyone.items()}),
        size_figure(f"the same with set-up, {what}", "GB", {n: m.peak_with_set_up / 1e9 for n, m in everyone.items()}),
    ]
    if measured[OURS].device_peak is not None:
        sizes = {name: (side.device_peak or 0) / 1e9 for name, side in everyone.items()}
        figures.append(size_figure(f"peak device memory, {what}", "GB", sizes))
    # A form that was tried before finds its compiled code in the folder, so its first trial counts.
    first = {name: side.first for name, side in {**measured, **found.tried}.items()}
    figures.append(size_figure(f"first step, compilation included, {what}", "s", first))
    if PLAIN in found.measured:
        without = {name: side for name, side in found.measured.items() if name != OURS}
        figures.append(time_figure(f"joint step without compiled operators, {what}", without, PLAIN))
    return figures


def _faster_precision(found: Sequence[Mapping[str, Measured]]) -> Figure:
    """Whichever precision is faster on each side."""
    ours = min(measured[OURS].median for measured in found)
    peer = min(side.median for measured in found for name, side in measured.items() if name != OURS)
    return Figure("joint step, the faster precision of each", "s", ours, {"PyTorch": peer}, peer / ours)


def _same_loss(name: str, measured: Mapping[str, Measured], precision: str) -> str:
    ours, theirs = measured[OURS].first_value, measured[name].first_value
    assert ours is not None and theirs is not None
    return (
        f"{precision}: loss of the first step from the same weights: {ours:.7g}, {name} {theirs:.7g}, "
        f"relative difference {abs(ours / theirs - 1):.1e}"
    )


def _what_is_done(platform: str) -> str:
    text = (
        "teacher (4 modalities) and student (2): nnU-Net's PlainConvUNet, Dice and cross-entropy with deep "
        "supervision, Barlow Twins between the bottlenecks, SGD with Nesterov momentum, from a batch in NumPy "
        "to moved parameters"
    )
    if platform == "cpu" and not library.available():
        text += "; on XLA's own operators; kd-jax native compiles faster ones"
    if platform == "gpu":
        text += "; float32 with TF32 allowed in convolutions and products on both sides"
    return text


def _has_bfloat16(platform: str) -> bool:
    return platform != "cpu" or bool({"avx512_bf16", "amx_bf16"} & machine.cpu_flags())
