"""A picture of scored cases: the images, the reference, and the segmentation of each network.

While cases are scored, only one axial slice of each is kept, never a volume. When all scores are known, some of the
slices are drawn.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from data_pipeline.conventions import CLASSES, MODALITIES, Modality, Region, Slices3
from data_pipeline.files import write_atomically
from kd_jax.inference.segmenter import Segmentation
from kd_jax.metrics import RegionScores

COLOURS: Mapping[str, str] = {"NCR": "#D55E00", "ED": "#56B4E9", "ET": "#F0E442"}
"""By class: vermilion, sky blue and yellow of Okabe and Ito (2008), which differ for every kind of colour blindness."""
MEANINGS: Mapping[str, str] = {
    "NCR": "NCR, necrotic and non-enhancing core",
    "ED": "ED, oedema",
    "ET": "ET, enhancing tumour",
}
WINDOW = 1, 99.5
"""Percentiles of the brain's voxels in the slice that become black and white."""

_BACKGROUND, _TEXT = "#111111", "#EEEEEE"
_FILL = 0.35  # opacity of a class over the image; its outline is opaque
_PANEL, _MARGIN, _DPI = 2.6, 3.0, 110  # inches, mm around the brain, dots per inch


@dataclass(frozen=True, eq=False)
class CaseView:
    """One axial slice of a case, without its volumes.

    Attributes:
      axial: index of the slice in the canonical original volume.
      images: grey levels of the modalities a network saw, inside `box`, on the network's grid.
      reference: internal classes of the whole slice on the original grid.
      box: box of the brain in the slice, in voxels of the original grid.
      spacing: spacing in the slice, in mm, of the original grid.
    """

    axial: int
    images: Mapping[Modality, UInt8[np.ndarray, "dn hn"]]
    reference: UInt8[np.ndarray, "d h"]
    box: tuple[slice, slice]
    spacing: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Outcome:
    """One network's result: its classes in the slice, on the original grid, and the scores of the whole case."""

    classes: UInt8[np.ndarray, "d h"]
    scores: Mapping[Region, RegionScores]


@dataclass(frozen=True, eq=False)
class Row:
    """One case of the picture; a network that did not segment it has the reason instead of an outcome."""

    case: str
    view: CaseView
    networks: Mapping[str, Outcome | str]


def take_view(
    segmentation: Segmentation, reference: UInt8[np.ndarray, "d h w"], modalities: Sequence[Modality]
) -> CaseView:
    """The slice of a case that is kept.

    Args:
      segmentation: the case's.
      reference: internal classes on the canonical original grid.
      modalities: the network's.
    """
    subject = segmentation.subject
    x, y, z = subject.crop
    axial = choose_slice(reference, subject.crop)
    # Both grids span the same box edge to edge, so the centre of the slice falls into this one of the network's.
    seen = int((axial - z.start + 0.5) * subject.mask.shape[2] / (z.stop - z.start))
    brain = subject.mask[:, :, seen]
    images = {m: _grey(subject.images[:, :, seen, MODALITIES.index(m)], brain) for m in modalities}
    spacing = subject.reference.spacing
    return CaseView(axial, images, reference[:, :, axial].copy(), (x, y), (spacing[0], spacing[1]))


def take_classes(segmentation: Segmentation, view: CaseView) -> UInt8[np.ndarray, "d h"]:
    """A network's classes in the slice; a copy, because a view would keep the whole volume in memory."""
    return segmentation.classes[:, :, view.axial].copy()


def choose_slice(reference: UInt8[np.ndarray, "d h w"], crop: Slices3) -> int:
    """The axial slice of the brain's box with the most tumour in the reference; without tumour the middle one."""
    bottom, top = crop[2].start, crop[2].stop
    tumour = np.count_nonzero(reference[:, :, bottom:top], axis=(0, 1))
    return int(bottom + tumour.argmax()) if tumour.any() else (bottom + top) // 2


def mean_dice(scores: Mapping[Region, RegionScores]) -> float:
    """Mean over the regions whose Dice is defined; NaN if none is."""
    known = [s["dice"] for s in scores.values() if not math.isnan(s["dice"])]
    return sum(known) / len(known) if known else math.nan


def pick_cases(means: Mapping[str, float], count: int = 4) -> list[str]:
    """At most `count` cases from the worst mean Dice to the best, evenly over the sorted ones; NaN counts as best."""
    cases = sorted(means, key=lambda case: (math.inf if math.isnan(means[case]) else means[case], case))
    return [cases[i] for i in np.linspace(0, len(cases) - 1, min(count, len(cases))).round().astype(int)]


def radiological(plane: Any) -> Any:
    """[x, y, ...] of an RAS+ slice to [row, column, ...] as radiologists see it: anterior up, patient's right left."""
    return np.swapaxes(plane, 0, 1)[::-1, ::-1]


def draw_cases(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw the cases below each other and write a PNG atomically.

    Columns: the modalities, the reference, every network; classes lie over FLAIR, or over the first modality.

    Raises:
      InputError: the file cannot be written.
    """
    columns = len(rows[0].view.images) + 1 + len(rows[0].networks)
    figure = Figure(
        figsize=(_PANEL * columns, (_PANEL + 0.35) * len(rows) + 1), facecolor=_BACKGROUND, layout="constrained"
    )
    figure.suptitle(title, color=_TEXT, fontsize=10)
    for axes, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        _draw_row(list(axes), row)
    figure.legend(
        handles=[Patch(color=COLOURS[name], label=MEANINGS[name]) for name in COLOURS],
        loc="outside lower center",
        ncols=len(COLOURS),
        frameon=False,
        labelcolor=_TEXT,
        fontsize=9,
    )
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    write_atomically(path, content.getvalue())


def _draw_row(axes: Sequence[Any], row: Row) -> None:
    view = row.view
    base = view.images.get("flair", next(iter(view.images.values())))
    panels: list[tuple[str, np.ndarray, np.ndarray | None]] = [(m.upper(), g, None) for m, g in view.images.items()]
    panels.append(("reference", base, view.reference))
    for network, outcome in row.networks.items():
        if isinstance(outcome, Outcome):
            panels.append((f"{network}\n{_dice_line(outcome.scores)}", base, outcome.classes))
        else:
            panels.append((f"{network}: not scored\n{outcome}", np.zeros((1, 1), np.uint8), None))
    for axis, (heading, grey, classes) in zip(axes, panels, strict=True):
        _draw_panel(axis, view, grey, classes)
        axis.set_title(heading, color=_TEXT, fontsize=8, wrap=True)
    axes[0].set_ylabel(f"{row.case}\naxial slice {view.axial}", color=_TEXT, fontsize=8)


def _draw_panel(axis: Any, view: CaseView, grey: np.ndarray, classes: np.ndarray | None) -> None:
    d, h = view.reference.shape
    left, right, bottom, top = frame = _extent(view, view.box)
    axis.set_facecolor("black")
    axis.imshow(radiological(grey), extent=frame, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    if classes is not None:
        whole = _extent(view, (slice(0, d), slice(0, h)))
        axis.imshow(radiological(_overlay(classes)), extent=whole, interpolation="nearest")
    axis.set(xlim=(left - _MARGIN, right + _MARGIN), ylim=(bottom - _MARGIN, top + _MARGIN), xticks=[], yticks=[])
    axis.set_aspect("equal")
    for side, x, align in (("R", 0.02, "left"), ("L", 0.98, "right")):
        axis.text(x, 0.5, side, transform=axis.transAxes, color=_TEXT, fontsize=8, ha=align, va="center")
    for spine in axis.spines.values():
        spine.set_visible(False)


def _extent(view: CaseView, box: tuple[slice, slice]) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a box of the slice in mm, on an axis that grows from the patient's right."""
    (x, y), (dx, dy), width = box, view.spacing, view.reference.shape[0]
    return (width - x.stop) * dx, (width - x.start) * dx, y.start * dy, y.stop * dy


def _grey(image: Float32[np.ndarray, "d h"], brain: Bool[np.ndarray, "d h"]) -> UInt8[np.ndarray, "d h"]:
    if not brain.any():
        return np.zeros(image.shape, np.uint8)
    low, high = np.percentile(image[brain], WINDOW)
    scaled = (image - low) / max(high - low, 1e-6)
    return np.where(brain, 255 * scaled.clip(0, 1), 0).astype(np.uint8)


def _overlay(classes: UInt8[np.ndarray, "d h"]) -> Float32[np.ndarray, "d h rgba"]:
    """Each class in its colour, translucent, with an opaque outline of one voxel; the background is transparent."""
    around = np.pad(classes, 1)
    shifted = around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]
    edge = np.any([neighbour != classes for neighbour in shifted], axis=0)
    rgba = np.zeros((*classes.shape, 4), np.float32)
    for name, colour in COLOURS.items():
        rgba[classes == CLASSES.index(name), :3] = to_rgb(colour)
    rgba[..., 3] = np.where(classes > 0, np.where(edge, 1.0, _FILL), 0.0)
    return rgba


def _dice_line(scores: Mapping[Region, RegionScores]) -> str:
    return "Dice  " + "  ".join(
        f"{region} {'-' if math.isnan(s['dice']) else format(s['dice'], '.2f')}" for region, s in scores.items()
    )
