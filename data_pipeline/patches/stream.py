"""The global stream of patches, and batches cut from it.

Every patch depends on the seed and on its index in the one global stream of patches, and on nothing else. Batches are
therefore the same for any number of worker processes, for any split of the devices over hosts, and after resuming at
any step. Patch `g` belongs to step `g // batch`; its case comes from an order that is shuffled in each epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypedDict

import grain
import numpy as np
from jaxtyping import Float32, UInt8

from data_pipeline.conventions import MODALITIES, Modality, Shape3
from data_pipeline.errors import InputError
from data_pipeline.patches.augment import Augmentation, augment_patch, finish_patch, reach
from data_pipeline.patches.sampling import EACH_CLASS, Groups, PatchSource, choose_start, is_foreground_position
from data_pipeline.patches.spatial import cut_patch

Element = dict[str, np.ndarray]


class PatchBatch(TypedDict):
    """One step's patches of this process, by local device.

    Batches of worker processes lie in shared memory, which is freed with the last reference: keep them in functions,
    not in globals that live until the interpreter ends.
    """

    image: Float32[np.ndarray, "device n d h w c"]
    label: UInt8[np.ndarray, "device n d h w"]


@dataclass(frozen=True)
class LoaderSettings:
    """The contents of the batches.

    Attributes:
      patch: voxels along each axis.
      batch: patches per step, over all devices of all hosts.
      foreground: fraction of every batch that is centred on tumour.
      groups: sets of classes that tumour is drawn from equally often; `sampling.EACH_REGION` to train on regions.
      workers: processes that prepare batches; 0 uses two threads of this process.
      augmentation: None cuts patches and leaves them unchanged.
      modalities: those that every case must have.
    """

    patch: Shape3
    batch: int
    foreground: float = 1 / 3
    groups: Groups = EACH_CLASS
    workers: int = 0
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    modalities: tuple[Modality, ...] = MODALITIES

    def __post_init__(self) -> None:
        """Raises InputError for a value that no loader can use."""
        if min(self.patch) < 1:
            raise InputError(f"patch is {self.patch}, expected three positive sizes in voxels")
        if self.batch < 1:
            raise InputError(f"batch is {self.batch}, expected at least 1")
        if not 0 <= self.foreground <= 1:
            raise InputError(f"foreground is {self.foreground}, expected a fraction from 0 to 1")
        if self.workers < 0:
            raise InputError(f"workers is {self.workers}, expected 0 (threads) or a number of processes")


def batches_on_demand(
    cases: Sequence[PatchSource],
    settings: LoaderSettings,
    seed: int,
    augmentation: Augmentation | None,
    local_devices: int = 1,
    process_count: int = 1,
) -> grain.MapDataset:
    """Batches by number, each computed by the thread that asks for it.

    The global stream is cut into the parts of process 0, process 1, ... of step 0, then of step 1, and so on. Arguments
    and errors are those of `training_batches`.
    """
    _check_cases(cases, settings.modalities)
    _check_seed(seed)
    per_process = _patches_per_process(settings.batch, local_devices, process_count)
    stream = _patches(cases, settings, seed, augmentation)
    # Incomplete groups do not occur in an endless stream; dropping them keeps the length an exact integer.
    return stream.batch(per_process, drop_remainder=True, batch_fn=partial(_stack, local_devices))


def _patches(
    cases: Sequence[PatchSource], settings: LoaderSettings, seed: int, augmentation: Augmentation | None
) -> grain.MapDataset:
    """The global stream of patches, endless and computed on access."""
    return (
        grain.MapDataset.range(len(cases))
        .seed(seed)
        .repeat()
        .map_with_index(partial(_place, tuple(cases), settings, seed))
        .random_map(partial(_sample, settings, augmentation))
    )


def _place(
    cases: tuple[PatchSource, ...], settings: LoaderSettings, seed: int, index: int, _: int
) -> tuple[PatchSource, bool]:
    """The case of a patch, and whether the patch's position in the global batch calls for foreground.

    Each epoch is a new permutation of the cases. Grain's `shuffle` does the same, but searches 2^16 positions for one
    below the number of cases, which for a handful of cases takes longer than cutting a patch.
    """
    epoch, position = divmod(index, len(cases))
    order = np.random.default_rng((seed, epoch)).permutation(len(cases))
    return cases[order[position]], is_foreground_position(index % settings.batch, settings.batch, settings.foreground)


def _sample(
    settings: LoaderSettings,
    augmentation: Augmentation | None,
    element: tuple[PatchSource, bool],
    rng: np.random.Generator,
) -> Element:
    """Cuts one patch out of a case and augments it."""
    case, forced = element
    patch = settings.patch
    enlarged = patch if augmentation is None else reach(patch, augmentation)
    start = choose_start(case, patch, forced, rng, enlarged=enlarged, groups=settings.groups)
    if augmentation is None:
        image, label = finish_patch(*cut_patch(case.images(), case.label(), start, patch))
    else:
        image, label = augment_patch(case.images(), case.label(), start, patch, augmentation, rng)
    return {"image": image, "label": label}


def _stack(devices: int, patches: Sequence[Element]) -> Element:
    """The patches of one process and step as arrays [device, patch of the device, ...]."""
    if len(patches) == 1:  # nothing to copy
        return {name: array[None, None] for name, array in patches[0].items()}
    stacked = {name: np.stack([patch[name] for patch in patches]) for name in patches[0]}
    return {name: array.reshape(devices, -1, *array.shape[1:]) for name, array in stacked.items()}


def _check_cases(cases: Sequence[PatchSource], modalities: tuple[Modality, ...]) -> None:
    if not cases:
        raise InputError("there are no cases to draw patches from; check the data folder and the split")
    for case in cases:
        if case.source.label is None:
            raise InputError(f"case {case.id} has no label; remove it from the training and validation cases")
        missing = [m for m in modalities if m not in case.modalities]
        if missing:
            raise InputError(f"case {case.id} has no {', '.join(missing)}; complete it or remove it from the cases")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}, expected 0 to {2**32 - 1}")


def _patches_per_process(batch: int, local_devices: int, process_count: int) -> int:
    devices = local_devices * process_count
    if batch % devices:
        suggestion = -(-batch // devices) * devices
        raise InputError(
            f"batch is {batch}, which {devices} devices ({process_count} processes with {local_devices} each) cannot "
            f"share equally; use a multiple of {devices}, for example {suggestion}"
        )
    return batch // process_count
