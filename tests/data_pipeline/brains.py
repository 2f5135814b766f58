"""Small brains with four modalities and oedema, for tests of whether files lie on each other."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from data_pipeline.reading.alignment import check_alignment
from data_pipeline.reading.checks import CheckedImage

SHAPE = (46, 52, 40)
FILES = {m: Path(f"case_{m}.nii.gz") for m in ("t1", "t1ce", "t2", "flair")}
LABEL = Path("case_seg.nii.gz")
FRAGMENT = (1, 1, 1)
"""Spacing with which so few voxels are less than a brain."""
CONTRAST = {"t1": lambda x: x, "t1ce": lambda x: x**2 + x, "t2": lambda x: 3 - x, "flair": lambda x: np.sin(2 * x)}


def made(rng, asymmetry=0.5):
    """Four modalities of one brain, off the centre of the grid and nearly symmetric left to right, with oedema."""
    tissue = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5)
    tissue /= tissue.std()
    tissue = (1 - asymmetry) * (tissue + tissue[::-1]) + asymmetry * tissue
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    brain = (
        sum(((grid[axis] - at) / size) ** 2 for axis, (at, size) in enumerate([(0, 0.8), (-0.1, 0.8), (0.05, 0.9)])) < 1
    )
    oedema = brain & (sum((grid[axis] - at) ** 2 for axis, at in enumerate([0.4, -0.3, 0.3])) < 0.25**2)
    images = {}
    for m, contrast in CONTRAST.items():
        data = 10 + contrast(tissue) + 0.2 * rng.normal(size=SHAPE)
        data[oedema] += 5 if m == "flair" else 0
        images[m] = CheckedImage(np.where(brain, data, 0).astype(np.float32), brain, False, ())
    return images, np.where(oedema, np.uint8(2), np.uint8(0))


def mirrored(image, axes):
    return CheckedImage(np.flip(image.data, axes), np.flip(image.foreground, axes), False, ())


def check(images, classes=None, spacing=(4, 4, 4)):
    union = np.logical_or.reduce([image.foreground for image in images.values()])
    crop = ndimage.find_objects(union.view(np.uint8))[0]
    files = {m: FILES[m] for m in images}
    return check_alignment(images, crop, union[crop], spacing, files, classes, None if classes is None else LABEL)


def moved(image, axis, voxels):
    return CheckedImage(np.roll(image.data, voxels, axis), np.roll(image.foreground, voxels, axis), False, ())


SETS = [("t1", "t1ce", "t2", "flair"), ("t1ce", "t2", "flair"), ("t1ce", "flair"), ("t1", "t2"), ("flair",)]
