"""Trained networks applied to cases: files in, classes on the case's own grid out.

One network or several: the logits of an ensemble are averaged on the original grid of the case. nnU-Net averages
those of its folds on their common grid and resamples the mean; as resampling is linear the two agree, and here
members may have other spacings and see other modalities.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, PyTree, UInt8
from tqdm import tqdm

from data_pipeline.case import Case
from data_pipeline.conventions import MODALITIES, Modality, Spacing
from data_pipeline.errors import InputError
from data_pipeline.preprocessing import scratch
from data_pipeline.preprocessing.subject import Subject, load_subject, to_original_grid
from data_pipeline.reading.checks import check_same_grid
from data_pipeline.reading.findings import Finding
from data_pipeline.reading.stored import open_nifti
from kd_jax.config.network import AXES, Axis
from kd_jax.config.schema import STUDENT, TEACHER, Config, Outputs
from kd_jax.inference.sliding_window import Predictor, make_predictor, windows_per_batch
from kd_jax.inference.windows import window_count
from kd_jax.models.outputs import OUTSIDE, to_classes, to_probabilities
from kd_jax.models.protocol import Network, Params
from kd_jax.runs.restore import Restored, default_network, restore_network
from kd_jax.runs.store import Which, networks_of

Reading = tuple[Spacing, tuple[Modality, ...]]
"""A way to read a case: voxel size in mm, and modalities in channel order."""


@dataclass(frozen=True, eq=False)
class Member:
    """A restored network, compiled once for all cases and all networks of its architecture.

    Attributes:
      run: folder it was restored from.
      name: of the network in its run.
      config: of the run.
      step: training step of the checkpoint.
      modalities: what the network sees, in channel order.
      params: of the network.
      predict: parameters and images [D, H, W, M] of `MODALITIES` to logits [D, H, W, K].
    """

    run: Path
    name: str
    config: Config
    step: int
    modalities: tuple[Modality, ...]
    params: Params
    predict: Predictor

    @property
    def reading(self) -> Reading:
        """What this network sees of a case: voxel size and modalities."""
        return self.config.data.spacing, self.modalities


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
        """What a case must have, in channel order."""
        return tuple(m for m in MODALITIES if any(m in member.modalities for member in self.members))

    @property
    def outputs(self) -> Outputs:
        """What the channels of the logits stand for."""
        return self.members[0].config.outputs

    @property
    def origins(self) -> list[tuple[Path, str]]:
        """Run and network of every member."""
        return [(member.run, member.name) for member in self.members]

    def split(self) -> tuple["Segmenter", ...]:
        """A segmenter for each member."""
        return tuple(replace(self, members=(member,)) for member in self.members)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What networks made of one case, on the canonical original grid of its images.

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


def load_segmenter(runs: Sequence[Path], network: str | None, which: Which, *, mirror: Sequence[Axis]) -> Segmenter:
    """Restore a network of each run and prepare them for whole volumes.

    Args:
      runs: at least one run folder; the networks of several are an ensemble.
      network: which network; None takes the student where a run has one, else the teacher.
      which: checkpoint.
      mirror: axes to mirror.

    Raises:
      InputError: a run is given twice, is no run or has no such checkpoint or network, or the networks of the runs
        have outputs of different kinds.
    """
    members: list[Member] = []
    predictors: dict[tuple[Network, tuple[int, ...], tuple[int, ...]], Predictor] = {}
    for run in runs:
        if run.resolve() in [member.run.resolve() for member in members]:
            raise InputError(f"{run}: given twice; name each run once")
        restored = restore_network(run, network or default_network(run, which), which)
        config = restored.config
        architecture = restored.module, config.data.patch, restored.settings.channels
        if architecture not in predictors:
            predictors[architecture] = _compile(restored, mirror)
        member = Member(
            run, restored.network, config, restored.step, restored.modalities, restored.params, predictors[architecture]
        )
        members.append(member)
        if config.outputs != members[0].config.outputs:
            raise InputError(
                f"{run}: its network gives {config.outputs}, that of {members[0].run} {members[0].config.outputs}, and "
                "logits of the two cannot be averaged; combine runs of one loss.segmentation"
            )
    return Segmenter(tuple(members), tuple(mirror))


def load_segmenters(
    runs: Sequence[Path], networks: str | None, which: Which, *, mirror: Sequence[Axis]
) -> dict[str, Segmenter]:
    """Segmenters of several networks of the same runs, by name.

    Args:
      runs: as for `load_segmenter`.
      networks: names with commas between them; "both" are student and teacher, "all" every network that the first
        run's checkpoint holds; None is each run's default.
      which: checkpoint.
      mirror: axes to mirror.

    Raises:
      InputError: as `load_segmenter`.
    """
    if networks is None:
        segmenter = load_segmenter(runs, None, which, mirror=mirror)
        return {segmenter.name: segmenter}
    if networks == "all":
        names: Sequence[str] = networks_of(runs[0], which)
    else:
        names = (STUDENT, TEACHER) if networks == "both" else [name for name in networks.split(",") if name]
    return {name: load_segmenter(runs, name, which, mirror=mirror) for name in dict.fromkeys(names)}


class CaseReader:
    """One case, read for one or several segmenters: every file is opened once.

    Each reading crops and normalises by the modalities it is asked for, as in training; what they share is the
    decompressed files. Segmenters that see the same modalities at the same spacing share the reading as a whole.
    """

    def __init__(
        self, case: Case, segmenters: Iterable[Segmenter], *, ignore_affine: bool = False, refuse_raw: bool = False
    ) -> None:
        """Prepares to read; no file is opened yet.

        Args:
          case: from `data_pipeline.layouts.find.find_cases`; its label is not read.
          segmenters: all that will ask.
          ignore_affine: modalities whose affines differ are taken to be on one grid all the same.
          refuse_raw: a raw clinical scan is an error that brings the commands to prepare it.
        """
        self.case = replace(case, label=None)
        self.ignore_affine = ignore_affine
        readings = {member.reading for segmenter in segmenters for member in segmenter.members}
        # A single reading frees each file as soon as it is cropped; several keep them until the case is done.
        open_file = functools.cache(open_nifti) if len(readings) > 1 else open_nifti
        load = functools.partial(load_subject, ignore_affine=ignore_affine, refuse_raw=refuse_raw, open_file=open_file)
        self._read = functools.cache(functools.partial(load, self.case))

    def subject(self, reading: Reading) -> Subject:
        """The case at a spacing, from some modalities.

        Raises:
          InputError: a file of these modalities cannot be used.
        """
        return self._read(*reading)


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
            for rows, slab in to_original_grid(_apply(member, subject, progress), subject, outside):
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


def _compile(restored: Restored, mirror: Sequence[Axis]) -> Predictor:
    module, patch = restored.module, restored.config.data.patch
    axes = [1 + axis for axis in _reversed_axes(restored.config, restored.network)]

    def forward(params: PyTree, x: Float[Array, "n d h w c"]) -> Float[Array, "n d h w k"]:
        return jnp.flip(module.apply({"params": params}, jnp.flip(x, axes)).logits[0], axes)

    return make_predictor(
        forward,
        patch,
        inputs=restored.settings.channels,
        outputs=restored.config.output_channels,
        batch=windows_per_batch(patch, jax.default_backend()),
        mirror_axes=[AXES.index(axis) for axis in mirror],
    )


def _by_reading(segmenter: Segmenter) -> dict[Reading, list[Member]]:
    """The members by what they see of a case."""
    alike: dict[Reading, list[Member]] = {}
    for member in segmenter.members:
        alike.setdefault(member.reading, []).append(member)
    return alike


def _apply(member: Member, subject: Subject, progress: bool) -> Float32[np.ndarray, "d h w k"]:
    """Logits on the subject's grid."""
    # A network that sees volumes reversed has learnt from windows laid over reversed volumes: windows are not placed
    # and weighted symmetrically, so the whole volume is reversed here, and the network's own reversal undone above.
    axes = _reversed_axes(member.config, member.name)
    count = window_count(subject.images.shape[:3], member.config.data.patch)
    # None: tqdm shows nothing where stderr is not a terminal.
    disable = None if progress else True
    with tqdm(total=count, desc=subject.case.id, unit="window", leave=False, disable=disable) as bar:
        return np.flip(member.predict(member.params, np.flip(subject.images, axes), bar.update), axes)


def _reversed_axes(config: Config, network: str) -> tuple[int, ...]:
    settings = config.networks[network]
    return tuple(AXES.index(axis) for axis in settings.reversed_axes)
