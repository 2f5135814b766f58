"""The head that every phantom starts from: tissue maps of the ICBM152 brain.

Source: ICBM 2009a nonlinear symmetric template (Fonov et al. 2011), which nilearn ships in its wheel.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from scipy import ndimage

from data_pipeline.phantom.grid import BOX_ORIGIN, Grid, box_grid

CHANNELS: tuple[str, ...] = ("gm", "wm", "depth", "periventricular", "enhancing")
"""Maps of an Anatomy, in the order they are stored."""

_SCALES: Mapping[str, float] = {name: 0.25 if name == "depth" else 1 / 255 for name in CHANNELS}
"""The value of one unit of the stored byte: a quarter of a millimetre, or 1/255."""
_DEPTH_LIMIT = 60.0
"""Largest depth (mm) that fits a byte in quarter millimetres."""
_SULCUS_DEPTH = 22.0
"""Fluid deeper than this (mm) below the surface of the brain is ventricle, not sulcus."""

_TUBE_REACH = 6
"""Tubes are drawn this far (mm) from their axis."""

Point = tuple[float, float, float]

# Polylines in ICBM152 millimetres (x, y, z) and a radius in mm; x is mirrored for paired structures.
_SAGITTAL: tuple[Point, ...] = (
    *((0, 60, 29), (0, 48, 46), (0, 31, 57), (0, 15, 66), (0, -1, 71), (0, -18, 74), (0, -36, 74), (0, -52, 67)),
    *((0, -68, 58), (0, -80, 44), (0, -90, 27), (0, -98, 8), (0, -96, -6)),
)
_SINUSES: tuple[tuple[float, tuple[Point, ...]], ...] = (
    (3.0, _SAGITTAL),
    (1.8, ((0, -42, 4), (0, -60, 2), (0, -85, -10), (0, -96, -6))),  # vein of Galen, straight sinus
    (2.6, ((0, -96, -6), (26, -90, -16), (46, -70, -26), (53, -52, -32))),  # transverse sinus
    (1.5, ((0, -42, 4), (6, -20, 20), (8, 0, 18))),  # internal cerebral veins
)
_ARTERIES: tuple[tuple[float, tuple[Point, ...]], ...] = (
    (1.6, ((10, 4, -22), (14, 4, -16), (30, 6, -18), (42, 2, -8), (44, -18, 8))),  # carotid end, middle cerebral
    (1.4, ((12, 4, -16), (3, 14, -14), (2, 34, 0), (3, 36, 18), (3, 15, 32))),  # anterior cerebral
    (1.4, ((0, -28, -40), (0, -18, -20), (12, -22, -16), (22, -34, -8))),  # basilar, posterior cerebral
)
_CHOROID: tuple[tuple[float, tuple[Point, ...]], ...] = (
    (2.6, ((12, -16, 20), (20, -36, 16), (25, -42, 8), (30, -34, -4))),  # lateral ventricle, body to temporal horn
)


@dataclass(frozen=True)
class Anatomy:
    """Maps of the template on a 1 mm grid, one byte per voxel.

    Attributes:
      maps: [channel, D, H, W], channels in the order of `CHANNELS`: grey and white matter (fractions),
        depth below the surface of the brain (0 outside), closeness to a ventricle (1 at its wall), and
        vessels, sinuses and choroid plexus (fractions).
      grid: the grid of the maps.
    """

    maps: UInt8[np.ndarray, "channel d h w"]
    grid: Grid

    def sample(self, channel: str, points: Float32[np.ndarray, "3 *shape"]) -> Float32[np.ndarray, "*shape"]:
        """Linear interpolation of a map at points in mm; 0 outside. Depth comes in mm, fractions in 0 to 1."""
        origin = np.array(self.grid.origin, np.float32).reshape(3, *(1,) * (points.ndim - 1))
        voxels = (points - origin) / np.float32(self.grid.spacing)
        values = np.empty(points.shape[1:], np.float32)
        ndimage.map_coordinates(self.maps[CHANNELS.index(channel)], voxels, values, order=1, mode="constant")
        return values * np.float32(_SCALES[channel])

    def save(self, path: Path) -> None:
        """Write the maps as a `.npy` that worker processes map into memory."""
        np.save(path, self.maps)


def open_anatomy(path: Path) -> Anatomy:
    """The anatomy that `Anatomy.save` wrote, mapped into memory and shared between processes."""
    return Anatomy(np.load(path, mmap_mode="r"), box_grid(1.0))


def load_anatomy() -> Anatomy:
    """Tissue maps of nilearn's ICBM152 on the 1 mm grid of the box; takes about 5 s, once per data set."""
    # nilearn takes two seconds to import, and worker processes never need it.
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    t1 = load_mni152_template(resolution=1)
    brain = _on_box(np.asarray(t1.dataobj, np.float32), t1.affine) > 0
    brain = ndimage.binary_fill_holes(brain)
    tissues = []
    for load in (load_mni152_gm_template, load_mni152_wm_template):
        image = load(resolution=1)
        tissues.append(np.clip(_on_box(np.asarray(image.dataobj, np.float32), image.affine), 0, 1) * brain)
    gm, wm = tissues
    # Distances are taken in the brain's own box, half of the volume: they are the slow part.
    box = ndimage.find_objects(brain.view(np.uint8))[0]
    depth, periventricular = np.zeros(brain.shape, np.float32), np.zeros(brain.shape)
    depth[box] = ndimage.distance_transform_edt(np.pad(brain[box], 1))[1:-1, 1:-1, 1:-1]
    ventricle = _ventricles(1 - gm - wm, depth)
    periventricular[box] = np.exp(-ndimage.distance_transform_edt(~ventricle[box]) / 4.0) * brain[box]
    fractions = (gm, wm, periventricular, _enhancing(ventricle, brain))
    as_bytes = [np.rint(255 * np.clip(f, 0, 1)).astype(np.uint8) for f in fractions]
    as_bytes.insert(2, np.rint(np.minimum(depth, _DEPTH_LIMIT) / _SCALES["depth"]).astype(np.uint8))
    return Anatomy(np.stack(as_bytes), box_grid(1.0))


def _on_box(values: Float32[np.ndarray, "a b c"], affine: Float64[np.ndarray, "4 4"]) -> Float32[np.ndarray, "d h w"]:
    """A 1 mm template image placed on the 1 mm grid of the box (whole millimetres, so nothing is interpolated)."""
    grid = box_grid(1.0)
    out = np.zeros(grid.shape, np.float32)
    offset = [round(affine[i, 3] - grid.origin[i]) for i in range(3)]
    source = tuple(slice(max(0, -o), min(n, m - o)) for o, n, m in zip(offset, values.shape, grid.shape, strict=True))
    target = tuple(slice(s.start + o, s.stop + o) for s, o in zip(source, offset, strict=True))
    out[target] = values[source]
    return out


def _ventricles(csf: Float32[np.ndarray, "d h w"], depth: Float32[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
    """Fluid deep inside the brain, in pieces of at least half a millilitre."""
    pieces, _ = ndimage.label((csf > 0.5) & (depth > _SULCUS_DEPTH))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return (sizes > 500)[pieces]


def _enhancing(ventricle: Bool[np.ndarray, "d h w"], brain: Bool[np.ndarray, "d h w"]) -> Float32[np.ndarray, "d h w"]:
    """Large vessels, sinuses and choroid plexus of the template, as fractions."""
    vessels = _tubes(brain.shape, (*_SINUSES, *_ARTERIES))
    choroid = _tubes(brain.shape, _CHOROID) * ndimage.binary_dilation(ventricle)
    return np.maximum(vessels, choroid) * brain


def _tubes(shape: tuple[int, ...], lines: tuple[tuple[float, tuple[Point, ...]], ...]) -> Float32[np.ndarray, "d h w"]:
    """Tubes with a Gaussian profile along polylines and their mirror images."""
    out = np.zeros(shape, np.float32)
    offsets = np.arange(-_TUBE_REACH, _TUBE_REACH + 1)
    for radius, line in lines:
        for start, end in itertools.pairwise(line):
            steps = int(2 * np.linalg.norm(np.subtract(end, start))) + 1
            for t in np.linspace(0, 1, steps):
                for side in (1, -1):
                    point = (np.array(start) * (1 - t) + np.array(end) * t) * (side, 1, 1) - BOX_ORIGIN
                    index = [
                        np.clip(np.rint(p).astype(int) + offsets, 0, n - 1) for p, n in zip(point, shape, strict=True)
                    ]
                    x, y, z = (i - p for i, p in zip(index, point, strict=True))
                    squared = x[:, None, None] ** 2 + y[:, None] ** 2 + z**2
                    window = np.ix_(*index)
                    out[window] = np.maximum(out[window], np.exp(-0.5 * squared / (0.7 * radius) ** 2))
    return out
