"""Trained networks applied to cases: files in, classes on the case's own grid out.

One network or several: the logits of an ensemble are averaged on the original grid of the case. nnU-Net averages
those of its folds on their common grid and resamples the mean; as resampling is linear the two agree, and here
members may have other spacings and see other modalities.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from data_pipeline.case import Case
from data_pipeline.conventions import MODALITIES, Modality
from data_pipeline.errors import InputError
from data_pipeline.preprocessing import scratch
from data_pipeline.preprocessing.subject import Subject, load_subject, to_original_grid
from data_pipeline.reading.checks import check_same_grid
from data_pipeline.reading.findings import SEVERITIES, Finding, Refusal
from data_pipeline.reading.scan import OpenFile
from data_pipeline.reading.stored import open_nifti
from data_pipeline.reading.write_back import to_stored_axes
from kd_jax.config.network import Axis
from kd_jax.config.schema import Outputs
from kd_jax.inference.given_images import GivenAffine, GivenImages, given_case
from kd_jax.inference.member import Member, Reading, apply_member
from kd_jax.inference.result import SegmentationResult
from kd_jax.models.outputs import CHANNEL_NAMES, OUTSIDE, to_classes, to_probabilities
from kd_jax.postprocessing.choice import choose_postprocessing
from kd_jax.postprocessing.rule import apply_postprocessing


@dataclass(frozen=True, eq=False)
class Segmenter:
    """One network, or an ensemble whose logits are averaged.

    Attributes:
      members: at least one; what their channels stand for is the same.
      mirror: axes mirrored; logits are averaged over all combinations.
    """

    members: tuple[Member, ...]
    mirror: tuple[Axis, ...]

    @property
    def name(self) -> str:
        """Name of the members in their runs; of several names all."""
        return " and ".join(sorted({member.name for member in self.members}))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities that a case must have, in channel order."""
        return tuple(m for m in MODALITIES if any(m in member.modalities for member in self.members))

    @property
    def outputs(self) -> Outputs:
        """The meaning of the channels of the logits: classes or regions."""
        return self.members[0].config.outputs

    @property
    def origins(self) -> list[tuple[Path, str]]:
        """Run and network of every member."""
        return [(member.run, member.name) for member in self.members]

    def split(self) -> tuple["Segmenter", ...]:
        """A segmenter for each member."""
        return tuple(replace(self, members=(member,)) for member in self.members)

    def segment(
        self,
        images: GivenImages,
        *,
        affine: GivenAffine = None,
        probabilities: bool = False,
        postprocess: str | PathLike[str] = "auto",
        min_et_ml: float | None = None,
        ignore_affine: bool = False,
        accept_raw: bool = False,
        progress: bool = False,
    ) -> SegmentationResult:
        """Segments one patient, as `kd-jax predict` does; the labels are the same voxel for voxel.

        Args:
          images: a mapping from modality ("t1", "t1ce", "t2", "flair") to a NIfTI file, an image of nibabel or an array
            [X, Y, Z]; or the folder of a patient; or a case of `kd_jax.find_cases`. Modalities that no network sees
            are not read. Intensities may have any scale; the skull must be stripped, with a constant background.
          affine: voxel indices to mm in RAS+, [4, 4], once for all arrays; files and images have their own.
          probabilities: return them as well.
          postprocess: "auto" applies what `kd-jax postprocess` decided for the run, "none" nothing, a file its rule.
          min_et_ml: enhancing tumour below this many ml becomes necrotic core; None leaves that to the rule.
          ignore_affine: accept images of one shape whose affines differ (`--ignore-affine` in messages).
          accept_raw: accept scans that look as if the skull was not stripped (`--accept-raw` in messages).
          progress: show a bar, on a terminal.

        Returns:
          Labels, volumes and findings on the grid of the first image given that a network sees, in its order of axes.

        Raises:
          InputError: a modality is missing or not known, or an image cannot be used: not 3-D, NaN or Inf among its
            voxels, another shape or another affine than the first one's, no affine. All errors at once, one per line.

        Examples:
          >>> import kd_jax, nibabel
          >>> student = kd_jax.load("runs/paper")
          >>> images = {"t1ce": "patient/BraTS2021_00000_t1ce.nii.gz", "flair": "patient/BraTS2021_00000_flair.nii.gz"}
          >>> result = student.segment(images)
          >>> result.labels.shape == nibabel.load(images["t1ce"]).shape
          True
          >>> sorted(result.volumes_ml)
          ['ET', 'TC', 'WT']
          >>> arrays = {name: nibabel.load(path).get_fdata() for name, path in images.items()}
          >>> from_arrays = student.segment(arrays, affine=nibabel.load(images["t1ce"]).affine)
          >>> bool((from_arrays.labels == result.labels).all())
          True
          >>> result.save("tumour.nii.gz", convention="brats2018")
        """
        given = given_case(images, affine)
        if missing := missing_modalities(given.case, self):
            raise InputError(
                f"no {', '.join(missing)} given; the {self.name} sees {', '.join(self.modalities)}: add what is "
                "missing, or load a run trained without it"
            )
        if min_et_ml is not None and not 0 < min_et_ml < math.inf:
            raise InputError(f"min_et_ml {min_et_ml}: expected millilitres above 0")
        rule = choose_postprocessing(str(postprocess), self.origins, min_et_ml).rule
        reader = CaseReader(
            given.case, [self], ignore_affine=ignore_affine, refuse_raw=not accept_raw, open_file=given.open
        )
        try:
            found = apply_segmenter(self, reader, probabilities=probabilities, progress=progress)
        except Refusal as refusal:
            raise given.refusal(refusal) from None
        read = found.subject.reference
        classes = apply_postprocessing(found.classes, read.spacing, rule)
        grid = given.result_grid(read, self.modalities)
        return SegmentationResult(
            labels=np.ascontiguousarray(to_stored_axes(classes, grid)),
            probabilities=None if found.probabilities is None else to_stored_axes(found.probabilities, grid),
            channels=CHANNEL_NAMES[self.outputs],
            findings=given.mention(sorted(found.findings, key=lambda f: SEVERITIES.index(f.severity))),
            convention=given.case.convention,
            grid=grid,
        )


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segmentation of one case, on the canonical original grid of its images.

    Attributes:
      classes: internal classes by the averaged, linearly resampled logits; background outside the brain's box.
      probabilities: of the channels `outputs.CHANNEL_NAMES`, where asked for; outside the brain's box certain.
      subject: what the first network saw, and where it lies.
      findings: what was unusual about the files.
    """

    classes: UInt8[np.ndarray, "d h w"]
    probabilities: Float32[np.ndarray, "d h w k"] | None
    subject: Subject
    findings: tuple[Finding, ...]


class CaseReader:
    """One case, read for one or several segmenters: every file is opened once.

    Each reading crops and normalises by the modalities it is asked for, as in training; what they share is the
    decompressed files. Segmenters that see the same modalities at the same spacing share the reading as a whole.
    """

    def __init__(
        self,
        case: Case,
        segmenters: Iterable[Segmenter],
        *,
        ignore_affine: bool = False,
        refuse_raw: bool = False,
        open_file: OpenFile | None = None,
    ) -> None:
        """Prepares to read; no file is opened yet.

        Args:
          case: from `data_pipeline.layouts.find.find_cases`; its label is not read.
          segmenters: all that will ask.
          ignore_affine: accept modalities whose affines differ, as if they lay on one grid.
          refuse_raw: a raw clinical scan is an error that brings the commands to prepare it.
          open_file: opens an image; None opens it as a file.
        """
        self.case = replace(case, label=None)
        self.ignore_affine = ignore_affine
        readings = {member.reading for segmenter in segmenters for member in segmenter.members}
        # A single reading frees each file as soon as it is cropped; several keep them until the case is done.
        open_file = open_file or open_nifti
        open_file = functools.cache(open_file) if len(readings) > 1 else open_file
        load = functools.partial(load_subject, ignore_affine=ignore_affine, refuse_raw=refuse_raw, open_file=open_file)
        self._read = functools.cache(functools.partial(load, self.case))

    def subject(self, reading: Reading) -> Subject:
        """The case at a spacing, from some modalities.

        Raises:
          InputError: a file of these modalities cannot be used.
        """
        return self._read(*reading)


def missing_modalities(case: Case, segmenter: Segmenter) -> tuple[Modality, ...]:
    """The modalities that a segmenter needs and a case does not have."""
    return tuple(m for m in segmenter.modalities if m not in case.images)


def segment_case(
    segmenter: Segmenter,
    case: Case,
    *,
    probabilities: bool = False,
    ignore_affine: bool = False,
    refuse_raw: bool = False,
    progress: bool = True,
) -> Segmentation:
    """Segment one case that nobody else reads: `apply_segmenter` with a `CaseReader` of its own.

    Raises:
      InputError: as `apply_segmenter`.
    """
    reader = CaseReader(case, [segmenter], ignore_affine=ignore_affine, refuse_raw=refuse_raw)
    return apply_segmenter(segmenter, reader, probabilities=probabilities, progress=progress)


def apply_segmenter(
    segmenter: Segmenter, reader: CaseReader, *, probabilities: bool = False, progress: bool = True
) -> Segmentation:
    """Segment one case that has every modality of the networks.

    The result lies on the canonical (RAS+) grid of the case, whatever the orientation of its files. Held are what
    reading takes, a sum of logits on the original grid, and the logits of one network at a time. Of these what is
    larger than `scratch.IN_MEMORY` lies on disk, so that beside the images a volume of any size takes 2 bytes of
    memory per voxel, a few times `scratch.SLAB` and what `inference` has on the device: 1000³ voxels and four channels
    keep 32 GB on disk.

    Args:
      segmenter: from `load_segmenter`.
      reader: of the case, and of all segmenters that are to segment it.
      probabilities: return them as well.
      progress: show the windows as a bar, on a terminal.

    Raises:
      InputError: a file of the case cannot be used, or there is no room for a large volume.
    """
    outputs, outside = segmenter.outputs, OUTSIDE[segmenter.outputs]
    first: Subject | None = None
    findings: list[Finding] = []
    for reading, members in _by_reading(segmenter).items():
        subject = reader.subject(reading)
        if first is None:
            first = subject
            total = scratch.zeros((*subject.reference.shape, len(outside)))
            looked = np.zeros(subject.reference.shape, bool)
        findings += check_same_grid(first.reference, subject.reference, ignore_affine=reader.ignore_affine)
        findings += subject.findings
        looked[subject.crop] = True
        for member in members:
            for rows, slab in to_original_grid(apply_member(member, subject, progress), subject, outside):
                total[rows] += slab
    if first is None:
        raise ValueError("a segmenter without members")
    classes = np.empty(looked.shape, np.uint8)
    certain = np.clip(outside, 0, 1)  # the background, or no region
    for rows in scratch.slabs(total.shape):
        mean = np.asarray(total[rows] / len(segmenter.members))
        classes[rows] = to_classes(mean, outputs)
        if probabilities:  # they take the place of the sum: there may be no room for both
            total[rows] = np.where(looked[rows][..., None], to_probabilities(mean, outputs), certain)
    return Segmentation(classes, total if probabilities else None, first, tuple(dict.fromkeys(findings)))


def _by_reading(segmenter: Segmenter) -> dict[Reading, list[Member]]:
    """The members by what they see of a case."""
    alike: dict[Reading, list[Member]] = {}
    for member in segmenter.members:
        alike.setdefault(member.reading, []).append(member)
    return alike
