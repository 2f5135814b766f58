"""One phantom: four images and a label map from a seed and a case number."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int16, UInt8
from scipy import ndimage

from data_pipeline.conventions import MODALITIES, Modality, Slices3
from data_pipeline.phantom.acquisition import acquire, draw_protocol
from data_pipeline.phantom.anatomy import Anatomy
from data_pipeline.phantom.confounders import Surroundings, apply_confounders, draw_confounders
from data_pipeline.phantom.deformation import (
    CONTROL_SPACING,
    before_mass_effect,
    interpolate,
    random_affine,
    random_diffeomorphism,
    to_template,
)
from data_pipeline.phantom.grid import BOX_ORIGIN, Grid, box_grid, smooth_field
from data_pipeline.phantom.intensities import (
    draw_intensities,
    draw_sharpness,
    draw_sulci,
    insert_tumour,
    mix,
    tissue_maps,
)
from data_pipeline.phantom.labels import ET, NCR, label_tumour, roughen
from data_pipeline.phantom.properties import TumourProperties, draw_properties
from data_pipeline.phantom.tumour import Tumour, grow_tumour

_FIELD_OF_VIEW = (240.0, 240.0, 155.0)
"""BraTS field of view, mm."""
_FIELD_CENTRE = (0.0, -18.0, 5.0)
"""Middle of the field of view, ICBM152 mm."""
_PARTIAL_VOLUME = 0.8
"""Blur of the borders inside the tumour, SD in mm."""


@dataclass(frozen=True)
class Phantom:
    """One case on the whole field of view, axes towards right, anterior, superior.

    Attributes:
      images: one scan per modality, 0 outside the brain.
      label: internal classes 0 to 3.
      properties: of the tumour, as drawn.
    """

    images: dict[Modality, Int16[np.ndarray, "d h w"]]
    label: UInt8[np.ndarray, "d h w"]
    properties: TumourProperties


@dataclass(frozen=True)
class _Head:
    """A subject's head on the part of the image grid that holds it."""

    grid: Grid
    box: Slices3
    mask: Bool[np.ndarray, "d h w"]
    points: Float32[np.ndarray, "3 d h w"]
    density: Float32[np.ndarray, "d h w"]
    depth: Float32[np.ndarray, "d h w"]


class _Streams(dict[str, np.random.Generator]):
    """Independent generators by name, so that a change to one step leaves the draws of the others alone."""

    def __init__(self, sequence: np.random.SeedSequence) -> None:
        super().__init__()
        self._entropy = list(sequence.entropy)  # type: ignore[arg-type]

    def __missing__(self, name: str) -> np.random.Generator:
        stream = int.from_bytes(name.encode(), "little")
        self[name] = np.random.default_rng(np.random.SeedSequence([*self._entropy, stream]))
        return self[name]


def image_grid(spacing: float) -> Grid:
    """The whole BraTS field of view (240 × 240 × 155 mm) at a spacing in mm."""
    shape = tuple(max(1, round(size / spacing)) for size in _FIELD_OF_VIEW)
    origin = tuple(c - spacing * (n - 1) / 2 for c, n in zip(_FIELD_CENTRE, shape, strict=True))
    return Grid(origin, spacing, shape)  # type: ignore[arg-type]


def make_case(anatomy: Anatomy, seed: int, case: int, spacing: float) -> Phantom:
    """Make one phantom.

    Args:
      anatomy: the template.
      seed: of the data set.
      case: number within the data set; the same seed and case give the same head at any spacing.
      spacing: isotropic voxel edge, mm.
    """
    streams = _Streams(np.random.SeedSequence([seed, case]))
    properties = draw_properties(streams["plan"], seed, case)
    affine, displacement = random_affine(streams["affine"]), random_diffeomorphism(streams["diffeomorphism"])
    outer = box_grid(CONTROL_SPACING).points()
    undisturbed = to_template(outer, affine, displacement)
    tumour = grow_tumour(streams["growth"], properties, anatomy, undisturbed)
    depth = anatomy.sample("depth", undisturbed)
    before = before_mass_effect(outer, tumour.effect, depth)
    template = to_template(before, affine, displacement)
    head = _place(streams, anatomy, tumour, template, before, spacing)
    return _scan(streams, anatomy, properties, head)


def _place(
    streams: _Streams,
    anatomy: Anatomy,
    tumour: Tumour,
    template: Float32[np.ndarray, "3 a b c"],
    before: Float32[np.ndarray, "3 a b c"],
    spacing: float,
) -> _Head:
    """Map brain and tumour to the image grid, cut to the brain's bounding box."""
    whole = image_grid(spacing)
    box = _brain_box(anatomy.sample("depth", template), whole)
    grid = whole.sub(tuple(s.start for s in box), tuple(s.stop for s in box))
    points = interpolate(template, grid)
    depth = anatomy.sample("depth", points)
    ragged = np.maximum(smooth_field(streams["mask"], grid, 9.0), 0)
    mask = depth > 0.5 + ragged
    density = np.zeros(grid.shape, np.float32)
    density[mask] = tumour.at(interpolate(before, grid)[:, mask])
    return _Head(grid, box, mask, points, roughen(streams["edge"], density, grid), depth)


def _brain_box(depth: Float32[np.ndarray, "a b c"], whole: Grid) -> Slices3:
    """Voxels of the image grid that may hold brain, from the depth on the control grid."""
    inside = np.argwhere(depth > 0)
    box = []
    for axis in range(3):
        first = BOX_ORIGIN[axis] + CONTROL_SPACING * (inside[:, axis].min() - 1) - whole.origin[axis]
        last = BOX_ORIGIN[axis] + CONTROL_SPACING * (inside[:, axis].max() + 1) - whole.origin[axis]
        box.append(
            slice(
                max(0, int(np.floor(first / whole.spacing))),
                min(whole.shape[axis], int(np.ceil(last / whole.spacing)) + 1),
            )
        )
    return tuple(box)  # type: ignore[return-value]


def _scan(streams: _Streams, anatomy: Anatomy, properties: TumourProperties, head: _Head) -> Phantom:
    """Label the tumour and acquire the four modalities."""
    label = label_tumour(streams, properties, head.density, head.grid, head.mask)
    sampled = _sample(anatomy, head, ("gm", "wm", "enhancing", "periventricular"))
    sulci = draw_sulci(streams["sulci"], head.grid, head.depth)
    healthy = tissue_maps(sampled["gm"], sampled["wm"], sulci, draw_sharpness(streams["sharpness"]))
    blur = _PARTIAL_VOLUME / head.grid.spacing
    core = [ndimage.gaussian_filter((label == k).astype(np.float32), blur, truncate=3) for k in (NCR, ET)]
    fractions = insert_tumour(healthy, head.density, *core)
    around = Surroundings(
        grid=head.grid,
        mask=head.mask,
        csf=healthy[0],
        wm=healthy[2],
        enhancing=sampled["enhancing"],
        periventricular=sampled["periventricular"],
        depth=head.depth,
        tumour=label > 0,
        core=(label == NCR) | (label == ET),
    )
    confounders = draw_confounders(streams["confounders"], around)
    intensities = draw_intensities(streams["contrast"])
    lesion = fractions[3] + fractions[4] + fractions[5]
    images: dict[Modality, np.ndarray] = {}
    for modality in MODALITIES:
        clean = apply_confounders(mix(fractions, intensities[modality]), modality, confounders)
        protocol = draw_protocol(streams[f"protocol {modality}"], modality)
        rngs = {name: streams[f"{name} {modality}"] for name in ("texture", "lesion", "bias", "noise")}
        images[modality] = _embed(acquire(clean, protocol, rngs, head.grid, head.mask, lesion), head)
    return Phantom(images, _embed(label, head), properties)


def _sample(anatomy: Anatomy, head: _Head, channels: tuple[str, ...]) -> dict[str, Float32[np.ndarray, "d h w"]]:
    """Maps of the template at the voxels of the brain; 0 elsewhere."""
    points = head.points[:, head.mask]
    sampled = {}
    for channel in channels:
        sampled[channel] = np.zeros(head.grid.shape, np.float32)
        sampled[channel][head.mask] = anatomy.sample(channel, points)
    return sampled


def _embed(values: np.ndarray, head: _Head) -> np.ndarray:
    """Put the brain's box into the whole field of view."""
    out = np.zeros(image_grid(head.grid.spacing).shape, values.dtype)
    out[head.box] = values
    return out
