"""Counts how many misaligned files the check notices: `python -m experiments.alignment DATA [DATA ...]`.

Each labelled case is checked unchanged first, with any two or more of its modalities, with and without its label: the
first line counts false alarms. Then, in the whole case and in parts of it,

- each file is mirrored in each of the seven ways: about the centre of its grid (an array flipped under an unchanged
  header) and about the centre of the brain (as after a registration);
- each image is moved along the axes, turned about them, and exchanged for the image of another case on the same grid;
  the label is moved.

A change counts as noticed if the check names the file together with its mirroring or the way back. Where only two files
can be compared, it may name both.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt8
from scipy import ndimage
from tqdm import tqdm

from data_pipeline.case import Case
from data_pipeline.command_line import run_command
from data_pipeline.conventions import MODALITIES, Modality, Slices3
from data_pipeline.errors import InputError
from data_pipeline.layouts.find import find_cases
from data_pipeline.reading.alignment import check_alignment
from data_pipeline.reading.checks import CheckedImage, check_image
from data_pipeline.reading.findings import Finding
from data_pipeline.reading.information import FLIPS
from data_pipeline.reading.mirrored import flip_name
from data_pipeline.reading.nifti import read_image, read_label

Name = Modality | Literal["label"]
PARTS: tuple[tuple[Modality, ...], ...] = (MODALITIES, ("t1ce", "t2", "flair"), ("t1ce", "flair"))
CENTRES = ("grid", "brain")
SHIFTS_MM = (2, 4, 6, 8, 12, 20)
TURNS = (5, 10, 15)
"""Degrees."""
WHOLE: Slices3 = (slice(None), slice(None), slice(None))


@dataclass(frozen=True, eq=False)
class Files:
    """A case in memory, on its own grid."""

    case: Case
    images: dict[Modality, CheckedImage]
    classes: UInt8[np.ndarray, "d h w"]
    spacing: tuple[float, float, float]

    @property
    def brain(self) -> tuple[Slices3, Bool[np.ndarray, "d2 h2 w2"]]:
        """The box around all brains, and their union in it."""
        union = np.logical_or.reduce([image.foreground for image in self.images.values()])
        crop = ndimage.find_objects(union.view(np.uint8))[0]
        return crop, union[crop]

    def part(self, modalities: Sequence[Modality]) -> "Files":
        """Without the other modalities."""
        return replace(self, images={m: self.images[m] for m in modalities})

    def mirror(self, name: Name, axes: Sequence[int], centre: str) -> "Files":
        """One file mirrored about the centre of the grid or of the brain."""
        box = self.brain[0] if centre == "brain" else WHOLE
        if name == "label":
            return replace(self, classes=_flip(self.classes, axes, box))
        image = self.images[name]
        return self.exchange(
            name, replace(image, data=_flip(image.data, axes, box), foreground=_flip(image.foreground, axes, box))
        )

    def shift(self, name: Name, axis: int, distance: float) -> "Files":
        """One file moved along an axis; distance in mm."""
        voxels = round(distance / self.spacing[axis])
        if name == "label":
            return replace(self, classes=np.roll(self.classes, voxels, axis))
        image = self.images[name]
        return self.exchange(
            name,
            replace(image, data=np.roll(image.data, voxels, axis), foreground=np.roll(image.foreground, voxels, axis)),
        )

    def turn(self, modality: Modality, axis: int, degrees: float) -> "Files":
        """One image turned about the centre of its grid."""
        image, (a, b) = self.images[modality], [a for a in range(3) if a != axis]
        data = ndimage.rotate(image.data, degrees, (a, b), reshape=False, order=1)
        inside = ndimage.rotate(image.foreground.view(np.uint8), degrees, (a, b), reshape=False, order=0) > 0
        return self.exchange(modality, replace(image, data=data, foreground=inside))

    def exchange(self, modality: Modality, image: CheckedImage) -> "Files":
        """With another image under this name."""
        return replace(self, images={**self.images, modality: image})

    def check(self, *, labelled: bool) -> list[Finding]:
        """With or without the label."""
        known = (self.classes, self.case.label) if labelled else ()
        return check_alignment(self.images, *self.brain, self.spacing, self.case.images, *known)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one line per part of a case and centre; returns the exit status."""
    return run_command(_count, arguments)


def read(case: Case) -> Files:
    """A labelled case."""
    assert case.label is not None
    images = {m: check_image(read_image(path, case.channels.get(m))) for m, path in case.images.items()}
    classes, grid = read_label(case.label, case.convention)
    return Files(case, images, classes, grid.spacing)


def false_alarms(files: Files) -> tuple[int, int]:
    """Counts suspected sets of two or more modalities, with and without the label, and all such sets."""
    sets = [s for n in range(2, len(files.images) + 1) for s in combinations(files.images, n)]
    parts = [(files.part(modalities), labelled) for modalities in sets for labelled in (True, False)]
    return sum(bool(part.check(labelled=labelled)) for part, labelled in parts), len(parts)


def names(found: Sequence[Finding], files: Files, name: Name, words: str, *, labelled: bool) -> bool:
    """Whether exactly this file is named, with these words."""
    path = files.case.label if name == "label" else files.case.images[name]
    one_to_one = len(files.images) + labelled == 2
    return len(found) == 1 and words in found[0].found and (one_to_one or found[0].file == path)


def _flip(voxels: Shaped[np.ndarray, "d h w"], axes: Sequence[int], box: Slices3) -> Shaped[np.ndarray, "d h w"]:
    flipped = voxels.copy()
    flipped[box] = np.flip(voxels[box], tuple(axes))
    return flipped


def _count(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.alignment", description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, nargs="+", metavar="DATA", help="folders of labelled cases")
    cases = [c for c in find_cases(parser.parse_args(arguments).data) if c.label is not None and len(c.images) > 1]
    if not cases:
        raise InputError("no case has a label and two modalities")
    alarms = np.zeros(2, int)
    flipped: dict[str, np.ndarray] = {}
    apart: dict[str, np.ndarray] = {}
    everything = [read(case) for case in cases]
    for files in tqdm(everything, unit="case"):
        alarms += false_alarms(files)
        for part in (files.part(modalities) for modalities in PARTS if set(modalities) <= files.images.keys()):
            for name, labelled in [("label", True), *product(part.images, (True, False))]:
                kind = "label" if name == "label" else "image"
                row = f"{kind} of {len(part.images)}{' and label' if labelled else ''}"
                flipped[row] = flipped.get(row, 0) + mirrored(part, name, labelled=labelled)
            for change, counts in displaced(part, everything):
                row = f"{change}, of {len(part.images)}"
                apart[row] = apart.get(row, 0) + counts
    print(f"{len(cases)} cases; suspected unchanged: {alarms[0]} of {alarms[1]} sets of their files")
    print("noticed when mirrored about the grid: left-right, otherwise; about the brain: left-right, otherwise")
    for row, counts in flipped.items():
        print(f"{row:20}", *(f"{right:6} of {of:4}" for right, of in counts))
    print("one file changed: noticed, suspected, of")
    for row, counts in apart.items():
        print(f"{row:28}", *(f"{count:6}" for count in counts))
    return 0


def mirrored(files: Files, name: Name, *, labelled: bool) -> Int64[np.ndarray, "4 2"]:
    """Noticed and tried, by centre and whether it was left-right alone."""
    counts = np.zeros((len(CENTRES), 2, 2), int)
    for centre, axes in product(range(len(CENTRES)), FLIPS[1:]):
        found = files.mirror(name, axes, CENTRES[centre]).check(labelled=labelled)
        right = names(found, files, name, f"better when mirrored {flip_name(axes)}", labelled=labelled)
        counts[centre, int(axes != (0,))] += (right, 1)
    return counts.reshape(-1, 2)


def displaced(files: Files, others: Sequence[Files]) -> Iterator[tuple[str, Int64[np.ndarray, "3"]]]:
    """The change of a file, whether it was noticed, whether anything was suspected, and 1."""
    for m in files.images:
        for change, changed in _changes(files, m, others):
            words = "better when moved" if "mm" in change else "little in common"
            yield change, _seen(files, m, changed, words, labelled=False)
    for mm, axis, sign in product(SHIFTS_MM, range(3), (1, -1)):
        changed = files.shift("label", axis, sign * mm)
        yield f"label {mm:2} mm", _seen(files, "label", changed, "better when moved", labelled=True)


def _seen(files: Files, name: Name, changed: Files, words: str, *, labelled: bool) -> Int64[np.ndarray, "3"]:
    found = changed.check(labelled=labelled)
    return np.array([names(found, files, name, words, labelled=labelled), bool(found), 1])


def _changes(files: Files, m: Modality, others: Sequence[Files]) -> Iterator[tuple[str, Files]]:
    for mm, axis, sign in product(SHIFTS_MM, range(3), (1, -1)):
        yield f"{mm:2} mm", files.shift(m, axis, sign * mm)
    for degrees, axis in product(TURNS, range(3)):
        yield f"{degrees:2} degrees", files.turn(m, axis, degrees)
    for other in others:
        if other.case is not files.case and m in other.images and other.classes.shape == files.classes.shape:
            yield "another patient's", files.exchange(m, other.images[m])


if __name__ == "__main__":
    raise SystemExit(main())
