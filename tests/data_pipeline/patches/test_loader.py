"""The stream of batches depends on the seed alone. Cases are coded, so that a patch tells where it was cut."""

import multiprocessing
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.cache.fill import prepare_cases
from data_pipeline.conventions import MODALITIES
from data_pipeline.errors import InputError
from data_pipeline.layouts.find import find_cases
from data_pipeline.patches import loader
from data_pipeline.patches.augment import Augmentation
from data_pipeline.patches.loader import training_batches, validation_batches
from data_pipeline.patches.stream import LoaderSettings, batches_on_demand
from tests.data_pipeline.cases import write_case
from tests.data_pipeline.fakes import digest, make_case, patches_read

PLAIN = LoaderSettings((7, 6, 5), batch=4, augmentation=None)
AUGMENTED = replace(PLAIN, augmentation=Augmentation())


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    return [make_case(root, number) for number in range(5)]


def take(count, cases, settings, **arguments):
    with training_batches(cases, settings, **arguments) as batches:
        return list(islice(batches, count))


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for one, other in zip(batches, others, strict=True):
        for name in ("image", "label"):
            np.testing.assert_array_equal(one[name], other[name])


def case_numbers(batch):
    """Which case each patch of a plain batch was cut from; patches of air alone do not tell."""
    return batch["image"][..., 0].max(axis=(2, 3, 4)).astype(int).ravel() - 1


# ----------------------------------------------------------------------------------------------- what the batches are


def test_shapes_and_types(cases):
    (batch,) = take(1, cases, AUGMENTED, seed=0, local_devices=2)
    assert batch["image"].shape == (2, 2, 7, 6, 5, 4)
    assert batch["image"].dtype == np.float32
    assert batch["label"].shape == (2, 2, 7, 6, 5)
    assert batch["label"].dtype == np.uint8
    assert batch["label"].max() <= 3


def test_each_case_comes_once_per_epoch_in_a_new_order(tmp_path):
    """The patch is the whole volume, so that every patch names its case. Epochs and batches do not line up: 5 and 4."""
    cases = [make_case(tmp_path, number, shape=(20, 20, 16)) for number in range(5)]
    settings = LoaderSettings((20, 20, 16), batch=4, foreground=0.0, augmentation=None)
    numbers = np.concatenate([case_numbers(batch) for batch in take(10, cases, settings, seed=1)]).reshape(8, 5)
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in numbers.tolist())
    assert len({tuple(epoch) for epoch in numbers.tolist()}) > 4


@pytest.mark.parametrize("settings", [PLAIN, replace(AUGMENTED, augmentation=Augmentation(rotation=1.0, zoom=0.0))])
def test_foreground_positions_hold_tumour_at_their_centre(cases, settings):
    """Batch 6, one third: the last two. A class is a 3-voxel cube, so a centre voxel's cube meets the patch's core."""
    settings = replace(settings, batch=6)
    labels = np.concatenate([batch["label"][0] for batch in take(20, cases, settings, seed=2)]).reshape(20, 6, 7, 6, 5)
    core = labels[:, :, 2:5, 2:5, 1:4]
    assert (core[:, 4:] > 0).any(axis=(2, 3, 4)).all()
    assert not (core[:, :4] > 0).any(axis=(2, 3, 4)).all()
    centre_classes = Counter(labels[:, 4:].max(axis=(2, 3, 4)).ravel().tolist())
    assert set(centre_classes) == {1, 2, 3}


def test_images_and_labels_belong_together(cases):
    """The coded image gives case and position of every voxel in the brain; the label there must be the case's."""
    for batch in take(3, cases, PLAIN, seed=3):
        codes, label = batch["image"][0], batch["label"][0]
        inside = codes[..., 0] > 0
        number, *voxel = (codes[inside] - 1).astype(int).T
        expected = np.stack([case.label() for case in cases])[number, *voxel]
        np.testing.assert_array_equal(label[inside], expected)
        assert not label[~inside].any()


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_on_demand_is_the_one_of_that_number(cases, batch):
    """A batch of one patch is handed on without a copy."""
    settings = replace(AUGMENTED, batch=batch)
    on_demand = batches_on_demand(cases, settings, 4, settings.augmentation)
    assert_equal([on_demand[number] for number in range(3)], take(3, cases, settings, seed=4))


def test_patches_larger_than_the_volume_are_padded(cases):
    (batch,) = take(1, cases, LoaderSettings((24, 22, 18), 1, augmentation=None), seed=0)
    number = case_numbers(batch)[0]
    np.testing.assert_array_equal(batch["image"][0, 0, 2:22], cases[number].images())
    assert not batch["image"][0, 0, :2].any()
    assert not batch["image"][0, 0, 22:].any()


def test_prepared_cases_are_what_the_loader_reads(tmp_path, rng):
    """From NIfTI files through the real preparation: the whole volume is one patch."""
    folders = [write_case(tmp_path / "raw", rng=rng, number=number) for number in range(2)]
    prepared = prepare_cases(find_cases(folders[0].parent), 1.0, tmp_path / "cache", workers=0, progress=False)
    shape = tuple(np.max([case.shape for case in prepared], axis=0).tolist())
    for batch in take(2, prepared, LoaderSettings(shape, 2, foreground=0.0, augmentation=None), seed=0):
        sums = sorted(image.sum(dtype=float) for image in batch["image"][0])
        np.testing.assert_allclose(sums, sorted(case.images().sum(dtype=float) for case in prepared), atol=1e-3)
        tumours = sorted(np.count_nonzero(label) for label in batch["label"][0])
        assert tumours == sorted(np.isin(case.label(), (1, 2, 3)).sum() for case in prepared)


# --------------------------------------------------------------------------------------------- what they depend on


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(cases):
    one, same, other = (take(2, cases, AUGMENTED, seed=seed) for seed in (7, 7, 8))
    assert_equal(one, same)
    assert not np.array_equal(one[0]["image"], other[0]["image"])


def test_batches_differ_between_steps_and_epochs(cases):
    batches = take(10, cases, AUGMENTED, seed=0)
    assert len({batch["image"].tobytes() for batch in batches}) == 10


@pytest.mark.parametrize("step", [1, 7, 1_000_000])
def test_starting_at_a_step_equals_skipping_to_it(cases, step):
    resumed = take(2, cases, AUGMENTED, seed=4, start_step=step)
    if step < 100:
        assert_equal(resumed, take(step + 2, cases, AUGMENTED, seed=4)[step:])
    else:
        assert_equal(resumed[1:], take(1, cases, AUGMENTED, seed=4, start_step=step + 1))


@pytest.mark.parametrize(("processes", "devices"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_any_split_of_the_devices_gives_the_same_global_batches(cases, processes, devices):
    whole = take(3, cases, AUGMENTED, seed=5, start_step=2)
    parts = [
        take(3, cases, AUGMENTED, seed=5, start_step=2, local_devices=devices, process_index=p, process_count=processes)
        for p in range(processes)
    ]
    for step in range(3):
        for name in ("image", "label"):
            joined = np.concatenate([part[step][name] for part in parts])  # [all devices, n, ...]
            assert joined.shape[:2] == (processes * devices, 4 // (processes * devices))
            np.testing.assert_array_equal(joined.reshape(whole[step][name].shape), whole[step][name])


def test_worker_processes_change_nothing_and_read_only_a_little_ahead(cases, tmp_path):
    """Two spawned workers; one is held against none below."""
    own = [make_case(tmp_path, number) for number in range(5)]
    expected = take(5, cases, AUGMENTED, seed=6)
    with training_batches(own, replace(AUGMENTED, workers=2), seed=6) as batches:
        assert_equal(list(islice(batches, 5)), expected)
        time.sleep(0.2)
        assert patches_read(own) <= (5 + 2 * loader.BATCHES_PER_WORKER) * 4
    assert not multiprocessing.active_children()


def test_without_workers_two_threads_read_two_batches_ahead_and_end(tmp_path):
    own = [make_case(tmp_path, number) for number in range(3)]
    before = set(threading.enumerate())
    with training_batches(own, AUGMENTED, seed=0) as batches:
        next(batches)
        started = set(threading.enumerate()) - before
        assert len(started) <= 2
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert patches_read(own) <= 3 * 4
    batches.close()  # again
    with pytest.raises(ValueError, match="closed"):
        next(batches)


INTERRUPTED = """
import faulthandler, os, signal, sys, time
from pathlib import Path
from data_pipeline.patches.loader import training_batches
from data_pipeline.patches.stream import LoaderSettings
from tests.data_pipeline.fakes import digest, make_case

def main():
    faulthandler.dump_traceback_later(100, exit=True)  # says where it is stuck, should it be
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    cases = [make_case(Path(sys.argv[1]), 0)]
    with training_batches(cases, LoaderSettings((7, 6, 5), 2, workers=1), seed=0) as batches:
        first = next(batches)
        try:
            os.killpg(os.getpgid(0), signal.SIGINT)  # what a terminal does on Ctrl-C
            while True:  # not signal.pause(): the signal may reach another thread, and that would not end the pause
                time.sleep(0.05)
        except KeyboardInterrupt:
            print("interrupted", digest([first, next(batches)]))

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of a terminal's process group")
def test_interrupts_reach_the_main_process_only(tmp_path):
    """One worker outlives Ctrl-C without a traceback and delivers what no worker delivers; the main one may stop."""
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    repository = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, script, tmp_path / "worker"],
        cwd=repository,
        env={"PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = take(2, [make_case(tmp_path / "main", 0)], LoaderSettings((7, 6, 5), 2), seed=0)
    assert done.stdout.split() == ["interrupted", digest(expected)]
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------------------------------------------- validation


def test_validation_batches_are_fixed_and_not_augmented(cases):
    settings = replace(AUGMENTED, workers=2, batch=6)
    runs = []
    for _ in range(2):
        with validation_batches(cases, settings, seed=1, steps=3, local_devices=2) as batches:
            runs.append(list(batches))
    assert_equal(*runs)
    assert len(runs[0]) == 3
    plain = take(3, cases, replace(settings, workers=0, augmentation=None), seed=1, local_devices=2)
    assert_equal(runs[0], plain)
    assert (runs[0][0]["label"][1, 1:, 2:5, 2:5, 1:4] > 0).any(axis=(1, 2, 3)).all()


def test_validation_of_two_processes_is_the_same_global_batches(cases):
    with validation_batches(cases, PLAIN, seed=1, steps=2) as batches:
        whole = list(batches)
    parts = []
    for p in range(2):
        with validation_batches(cases, PLAIN, seed=1, steps=2, process_index=p, process_count=2) as batches:
            parts.append(list(batches))
    for step in range(2):
        joined = np.concatenate([part[step]["image"] for part in parts])
        np.testing.assert_array_equal(joined.reshape(whole[step]["image"].shape), whole[step]["image"])


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("batches", [training_batches, partial(validation_batches, steps=1)])
def test_unusable_cases_are_refused_by_name(cases, batches):
    with pytest.raises(InputError, match="there are no cases"):
        batches([], PLAIN, seed=0)
    with pytest.raises(InputError, match="case3 has no label"):
        batches([cases[0], replace(cases[3], labelled=False)], PLAIN, seed=0)
    incomplete = replace(cases[2], modalities=("t1", "flair"))
    with pytest.raises(InputError, match="case2 has no t1ce, t2"):
        batches([cases[0], incomplete], PLAIN, seed=0)
    batches([incomplete], replace(PLAIN, modalities=("flair",)), seed=0).close()


def test_a_batch_that_the_devices_cannot_share_is_refused_with_the_numbers(cases):
    message = r"batch is 4, which 6 devices \(2 processes with 3 each\) .* multiple of 6, for example 6"
    with pytest.raises(InputError, match=message):
        training_batches(cases, PLAIN, seed=0, local_devices=3, process_count=2)


def test_too_little_shared_memory_is_refused_with_the_way_out(cases):
    huge = LoaderSettings((4096, 4096, 4096), batch=2, workers=4)
    if not loader.SHARED_MEMORY.is_dir():
        pytest.skip("this system has no /dev/shm")
    with pytest.raises(InputError, match=r"workers is 4, which need .* MiB of shared memory .* --shm-size"):
        training_batches(cases, huge, seed=0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("patch", (8, 0, 8), "three positive sizes"),
        ("batch", 0, "batch is 0"),
        ("foreground", 1.2, "foreground is 1.2"),
        ("workers", -1, "workers is -1"),
    ],
)
def test_impossible_settings_are_refused(field, value, message):
    with pytest.raises(InputError, match=message):
        replace(PLAIN, **{field: value})


def test_a_seed_out_of_range_is_refused(cases):
    with pytest.raises(InputError, match="seed is -1, expected 0 to 4294967295"):
        training_batches(cases, PLAIN, seed=-1)


def test_all_modalities_are_needed_by_default():
    assert PLAIN.modalities == MODALITIES
