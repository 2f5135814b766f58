"""How many mirrored files the check notices: `python -m experiments.mirrors DATA [DATA ...]`.

Every labelled case is looked at as it is, with any two or more of its modalities, with and without its label: the first
line counts false alarms. Then each file is mirrored in each of the seven ways, in the whole case and in parts of it:
about the centre of its grid (an array flipped under an unchanged header) and about that of the brain (which happens
where it was registered afterwards). Noticed is what is named together with its mirroring, and alone or, where one file
stands against one, with the other. The last line is about images that lie a few millimetres off and are not mirrored.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt8
from scipy import ndimage

from data_pipeline.command_line import run_command
from data_pipeline.conventions import MODALITIES, Modality
from data_pipeline.errors import InputError
from data_pipeline.formats import Case, find_cases
from data_pipeline.reading.alignment import FLIPS, Box, check_alignment, flip_name
from data_pipeline.reading.checks import CheckedImage, check_image
from data_pipeline.reading.findings import Finding
from data_pipeline.reading.nifti import read_image, read_label

Name = Modality | Literal["label"]
PARTS: tuple[tuple[Modality, ...], ...] = (MODALITIES, ("t1ce", "t2", "flair"), ("t1ce", "flair"))
CENTRES = ("grid", "brain")
SHIFTS_MM = (4, 6)
WHOLE: Box = (slice(None), slice(None), slice(None))


@dataclass(frozen=True, eq=False)
class Files:
    """A case in memory, on its own grid."""

    case: Case
    images: dict[Modality, CheckedImage]
    classes: UInt8[np.ndarray, "d h w"]
    spacing: tuple[float, float, float]

    @property
    def brain(self) -> tuple[Box, Bool[np.ndarray, "d2 h2 w2"]]:
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
        changed = replace(image, data=_flip(image.data, axes, box), foreground=_flip(image.foreground, axes, box))
        return replace(self, images={**self.images, name: changed})

    def shift(self, modality: Modality, axis: int, distance: float) -> "Files":
        """One image moved along an axis; distance in mm."""
        voxels = round(distance / self.spacing[axis])
        image = self.images[modality]
        changed = replace(
            image, data=np.roll(image.data, voxels, axis), foreground=np.roll(image.foreground, voxels, axis)
        )
        return replace(self, images={**self.images, modality: changed})

    def check(self, *, labelled: bool) -> list[Finding]:
        """With or without the label."""
        known = (self.classes, self.case.label) if labelled else ()
        return check_alignment(self.images, *self.brain, self.case.images, *known)


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
    """How many sets of two or more modalities, with and without the label, are suspected; of how many."""
    sets = [s for n in range(2, len(files.images) + 1) for s in combinations(files.images, n)]
    parts = [(files.part(modalities), labelled) for modalities in sets for labelled in (True, False)]
    return sum(bool(part.check(labelled=labelled)) for part, labelled in parts), len(parts)


def noticed(files: Files, name: Name, axes: Sequence[int], centre: str, *, labelled: bool) -> bool:
    """Whether exactly the mirrored file is named, with the right mirroring."""
    found = files.mirror(name, axes, centre).check(labelled=labelled)
    path = files.case.label if name == "label" else files.case.images[name]
    one_to_one = len(files.images) + labelled == 2
    return len(found) == 1 and found[0].found.endswith(flip_name(axes)) and (one_to_one or found[0].file == path)


def shifted(files: Files, distance: float) -> Int64[np.ndarray, "2 2"]:
    """Suspected and tried with one image moved, left-right and along the other axes."""
    counts = np.zeros((2, 2), int)
    for m, axis, sign in product(files.images, range(3), (1, -1)):
        counts[int(axis != 0)] += (bool(files.shift(m, axis, sign * distance).check(labelled=True)), 1)
    return counts


def _flip(voxels: Shaped[np.ndarray, "d h w"], axes: Sequence[int], box: Box) -> Shaped[np.ndarray, "d h w"]:
    flipped = voxels.copy()
    flipped[box] = np.flip(voxels[box], tuple(axes))
    return flipped


def _count(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.mirrors", description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, nargs="+", metavar="DATA", help="folders of labelled cases")
    cases = [c for c in find_cases(parser.parse_args(arguments).data) if c.label is not None and len(c.images) > 1]
    if not cases:
        raise InputError("no case has a label and two modalities")
    alarms = np.zeros(2, int)
    found: dict[str, np.ndarray] = {}
    moved = np.zeros((len(SHIFTS_MM), 2, 2), int)
    for case in cases:
        files = read(case)
        alarms += false_alarms(files)
        moved += [shifted(files, distance) for distance in SHIFTS_MM]
        for part in (files.part(modalities) for modalities in PARTS if set(modalities) <= files.images.keys()):
            tried: list[tuple[Name, bool]] = [("label", True)]
            tried += [(m, labelled) for m in part.images for labelled in (True, False)]
            for name, labelled in tried:
                kind = "label" if name == "label" else "image"
                row = f"{kind} of {len(part.images)}{' and label' if labelled else ''}"
                found[row] = found.get(row, 0) + _tally(part, name, labelled)
    print(f"{len(cases)} cases; suspected as they are: {alarms[0]} of {alarms[1]} sets of their files")
    print("noticed when mirrored about the grid: left-right, otherwise; about the brain: left-right, otherwise")
    for row, counts in found.items():
        print(f"{row:20}", *(f"{right:6} of {of:4}" for right, of in counts))
    print("suspected with one image moved left-right, otherwise:", end="")
    print(*(f" {mm} mm {a} of {b}, {c} of {d}" for mm, ((a, b), (c, d)) in zip(SHIFTS_MM, moved, strict=True)), sep=";")
    return 0


def _tally(files: Files, name: Name, labelled: bool) -> Int64[np.ndarray, "4 2"]:
    """Noticed and tried, by centre and whether it was left-right alone."""
    counts = np.zeros((len(CENTRES), 2, 2), int)
    for centre, axes in product(range(len(CENTRES)), FLIPS[1:]):
        right = noticed(files, name, axes, CENTRES[centre], labelled=labelled)
        counts[centre, int(axes != (0,))] += (right, 1)
    return counts.reshape(-1, 2)


if __name__ == "__main__":
    raise SystemExit(main())
