"""Batches of the patch stream through Grain, by threads of this process or by worker processes."""

import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path

import grain
import numpy as np
from absl import flags

from data_pipeline.conventions import MODALITIES
from data_pipeline.errors import InputError
from data_pipeline.patches.sampling import PatchSource
from data_pipeline.patches.stream import LoaderSettings, PatchBatch, batches_on_demand

THREADS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
"""Without worker processes: two threads, and at most two finished batches waiting (Grain's default is 500)."""

IN_WORKER = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
"""A worker process is one thread; its finished batch waits in its queue."""

BATCHES_PER_WORKER = 4
"""Most batches that a worker is ahead: one in its hand, one in its queue, two on their way in the reading process."""

SHARED_MEMORY = Path("/dev/shm")


class Batches(Iterator[PatchBatch]):
    """An iterator over batches that owns threads or processes: use it in a `with` block, or call `close`."""

    def __init__(self, dataset: grain.IterDataset, workers: int) -> None:
        self._iterator: grain.DatasetIterator | None = iter(dataset)
        self._unstarted = workers > 0

    def __next__(self) -> PatchBatch:
        if self._iterator is None:
            raise ValueError("these batches are closed")
        if self._unstarted:
            self._unstarted = False
            return _first_batch(self._iterator)
        return next(self._iterator)

    def close(self) -> None:
        """Stops the workers; may be called more than once. There are no batches afterwards."""
        # Drop the reference too: Grain's iterators close again when deleted, which fails while the interpreter ends.
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def training_batches(
    cases: Sequence[PatchSource],
    settings: LoaderSettings,
    *,
    seed: int,
    start_step: int = 0,
    local_devices: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Endless augmented batches from `start_step` on.

    Args:
      cases: prepared cases; all processes pass the same ones in the same order.
      settings: shape of the batches, and augmentation.
      seed: 0 to 2^32 - 1; determines every patch of the run.
      start_step: the step of the first batch, so that a resumed run continues exactly.
      local_devices: devices of this process, the same number in every process.
      process_index: number of this process.
      process_count: number of processes. Process p gets the p-th part of each global batch.

    Returns:
      {"image": [local_devices, per_device, *patch, C], "label": [local_devices, per_device, *patch] in 0..3}.

    Raises:
      InputError: there is no case; a case lacks its label or a needed modality; the devices cannot share a batch
        equally; there is too little shared memory for the workers.
    """
    groups = batches_on_demand(cases, settings, seed, settings.augmentation, local_devices, process_count)
    mine = groups[start_step * process_count + process_index :: process_count]
    if settings.workers == 0:
        return Batches(mine.to_iter_dataset(THREADS), workers=0)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which only an absl.app program has parsed
    _check_shared_memory(settings, settings.batch // process_count)
    options = grain.MultiprocessingOptions(num_workers=settings.workers, per_worker_buffer_size=1)
    dataset = mine.to_iter_dataset(IN_WORKER).mp_prefetch(options, worker_init_fn=_ignore_interrupt)
    return Batches(dataset, settings.workers)


def validation_batches(
    cases: Sequence[PatchSource],
    settings: LoaderSettings,
    *,
    seed: int,
    steps: int,
    local_devices: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """The same `steps` batches at every call: not augmented, but with the foreground oversampling of training.

    Shapes, arguments and errors are those of `training_batches`, so that nothing is compiled again. Cutting is cheap:
    threads do it, whatever `settings.workers` is.
    """
    groups = batches_on_demand(cases, settings, seed, None, local_devices, process_count)
    return Batches(groups[process_index : steps * process_count : process_count].to_iter_dataset(THREADS), workers=0)


def _first_batch(iterator: Iterator[PatchBatch]) -> PatchBatch:
    """Starts the worker processes, which ignore Ctrl-C from the start, and waits for the first batch.

    A terminal sends its interrupt to all processes, but only the main one should act on it. Signals blocked in a thread
    stay blocked in the processes it starts, even while they still import; the main thread remains interruptible.
    """
    with ThreadPoolExecutor(1, "first-batch", initializer=_block_interrupt) as pool:
        return pool.submit(next, iterator).result()


def _block_interrupt() -> None:
    resource_tracker.ensure_running()  # first, because starting it unblocks the signal again
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _ignore_interrupt(worker: int, workers: int) -> None:
    """Worker initialiser for systems without signal masks."""
    del worker, workers
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_shared_memory(settings: LoaderSettings, per_process: int) -> None:
    """Workers pass batches through shared memory; in a container with too little of it they die without a message."""
    if settings.workers == 0 or not SHARED_MEMORY.is_dir():
        return
    voxels = int(np.prod(settings.patch))
    batch_bytes = per_process * voxels * (4 * len(MODALITIES) + 1)
    needed, free = settings.workers * BATCHES_PER_WORKER * batch_bytes, shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise InputError(
            f"workers is {settings.workers}, which need {needed / 2**20:.0f} MiB of shared memory for their batches, "
            f"but {SHARED_MEMORY} has {free / 2**20:.0f} MiB free; use fewer workers, or give the container more "
            "(docker run --shm-size)"
        )
