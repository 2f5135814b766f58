"""A small image of a case: an axial slice with the tumour's regions in colour, as a PNG with a palette."""

import io

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from data_pipeline.conventions import CAVITY, REGION_CLASSES, Modality
from data_pipeline.reading.scan import Scan

LARGEST_SIDE = 192
"""Pixels; with so few grey levels a thumbnail stays below 20 kB, so that a page of many cases can still be opened."""
GREYS = 40
COLOURS: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("", (0, 0, 0)),
    ("TC without ET", (230, 60, 60)),
    ("WT without TC", (70, 190, 90)),
    ("ET", (250, 210, 60)),
    ("cavity", (90, 150, 250)),
)
"""By internal class: legend and colour."""
_OPACITY = 0.5
_PREFERRED: tuple[Modality, ...] = ("flair", "t1ce", "t2", "t1")
_WINDOW = (1, 99.5)  # percentiles of the brain that are shown as black and white


def thumbnail(scan: Scan) -> bytes:
    """PNG of the slice with the most tumour, or the middle one; at most `LARGEST_SIDE` pixels on a side.

    Oriented as radiologists look at it: front up, the patient's right on the left.
    """
    image = next(scan.images[m] for m in _PREFERRED if m in scan.images)
    classes = np.zeros(image.shape, np.uint8) if scan.classes is None else scan.classes[scan.crop]
    tumour = np.isin(classes, REGION_CLASSES["WT"]).sum(axis=(0, 1))
    most = np.flatnonzero(tumour == tumour.max())  # all slices without a label
    z = int(most[len(most) // 2])
    inside = image[scan.mask]
    low, high = np.percentile(inside[:: max(1, inside.size // 100_000)], _WINDOW)
    rows, columns = _sampling(image.shape[:2], scan.reference.spacing[:2])
    grey = _grey(image[:, :, z][np.ix_(rows, columns)], float(low), float(high))
    region = np.minimum(classes[:, :, z][np.ix_(rows, columns)], CAVITY)
    # Canonical axes point right and front; the image's rows run from the front, its columns from the patient's right.
    return _png(np.flip(region * np.uint8(GREYS) + grey, (0, 1)).T)


def _sampling(shape: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Voxel indices along two axes, nearest to the pixels of an image that keeps proportions."""
    extents = [n * s for n, s in zip(shape, spacing, strict=True)]
    pixel = max(max(extents) / LARGEST_SIDE, min(spacing))
    counts = [max(1, round(extent / pixel)) for extent in extents]
    rows, columns = (((np.arange(c) + 0.5) * n / c).astype(int) for c, n in zip(counts, shape, strict=True))
    return rows, columns


def _grey(values: Float32[np.ndarray, "a b"], low: float, high: float) -> UInt8[np.ndarray, "a b"]:
    scaled = (values - low) / max(high - low, 1e-8) * (GREYS - 1)
    return np.clip(np.rint(scaled), 0, GREYS - 1).astype(np.uint8)


def _palette() -> bytes:
    greys = np.linspace(0, 255, GREYS)[:, None]
    blends = [greys if not name else (1 - _OPACITY) * greys + _OPACITY * np.array(rgb) for name, rgb in COLOURS]
    return np.concatenate([np.broadcast_to(b, (GREYS, 3)) for b in blends]).astype(np.uint8).tobytes()


def _png(pixels: UInt8[np.ndarray, "height width"]) -> bytes:
    """A PNG whose pixels are indices of `_palette`: a byte for a pixel before compression, a third of RGB."""
    image = Image.fromarray(pixels, mode="P")
    image.putpalette(_palette())
    encoded = io.BytesIO()
    image.save(encoded, "PNG", optimize=True)
    return encoded.getvalue()
