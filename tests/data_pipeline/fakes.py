"""Prepared cases as small files, importable and picklable so that spawned workers can read them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from data_pipeline.conventions import MODALITIES, OUTSIDE_BRAIN, Shape3


@dataclass(frozen=True)
class FakeCase:
    """Stands in for `data_pipeline.cache.entry.PreparedCase`: the same methods, three .npy files."""

    id: str
    folder: Path
    modalities: tuple[str, ...] = MODALITIES
    labelled: bool = True
    shape: Shape3 = (20, 22, 18)

    @property
    def source(self):
        return SimpleNamespace(label=self.folder / "label.npy" if self.labelled else None)

    def images(self):
        with (self.folder / "reads").open("a") as log:
            log.write("x")
        return np.load(self.folder / "images.npy", mmap_mode="r")

    def label(self):
        return np.load(self.folder / "label.npy", mmap_mode="r")

    def foreground(self):
        label = self.label()
        return {c: np.argwhere(label == c) for c in (1, 2, 3)}


def patches_read(cases) -> int:
    """How many patches have been cut out of these cases so far, by whichever process."""
    return sum((case.folder / "reads").stat().st_size for case in cases if (case.folder / "reads").exists())


def digest(batches) -> str:
    """One word for the contents of batches, to compare them between processes."""
    hashed = hashlib.sha256()
    for batch in batches:
        hashed.update(batch["image"].tobytes())
        hashed.update(batch["label"].tobytes())
    return hashed.hexdigest()


def coded_images(shape, number):
    """Images whose voxels say which case and which position they come from: [case, d, h, w] + 1 in the channels."""
    images = np.empty((*shape, 4), np.float32)
    images[..., 0] = number + 1
    images[..., 1:] = np.moveaxis(np.indices(shape), 0, -1) + 1
    return images


def make_case(root: Path, number: int, shape=(20, 22, 18), **attributes) -> FakeCase:
    """A coded case with a brain (label 0) inside a rim of air, one 3-voxel cube per foreground class."""
    label = np.full(shape, OUTSIDE_BRAIN, np.uint8)
    label[2:-2, 2:-2, 2:-2] = 0
    for c, corner in ((1, (5, 6, 6)), (2, (9, 10, 7)), (3, (13, 13, 11))):
        label[tuple(slice(k, k + 3) for k in corner)] = c
    images = coded_images(shape, number) * (label != OUTSIDE_BRAIN)[..., None]
    folder = root / f"case{number}"
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", images.astype(np.float32))
    np.save(folder / "label.npy", label)
    return FakeCase(f"case{number}", folder, shape=shape, **attributes)
