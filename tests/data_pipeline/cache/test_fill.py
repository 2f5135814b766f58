import json
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.cache import fill
from data_pipeline.cache.entry import PreparedCase
from data_pipeline.cache.fill import prepare_cases
from data_pipeline.case import Case
from data_pipeline.errors import InputError
from data_pipeline.layouts.find import find_cases
from data_pipeline.owner import this_process
from data_pipeline.preprocessing.subject import load_subject
from tests.data_pipeline.cases import rewrite, write_case


def folder_of(root: Path, rng: np.random.Generator, count: int = 3, **options) -> list[Case]:
    for number in range(count):
        write_case(root, rng=rng, number=number, **options)
    return find_cases(root)


def prepare(cases, cache: Path, spacing=2.0, workers=0, **options) -> list[PreparedCase]:
    return prepare_cases(cases, spacing, cache, workers=workers, progress=False, **options)


def test_prepared_arrays_are_the_subjects(tmp_path, rng):
    cases = folder_of(tmp_path / "data", rng, modalities=("t1", "flair"))
    prepared = prepare(cases, tmp_path / "cache")
    assert [p.id for p in prepared] == [c.id for c in cases]
    for case, entry in zip(cases, prepared, strict=True):
        subject = load_subject(case, 2.0)
        assert isinstance(entry.images(), np.memmap)
        assert isinstance(entry.label(), np.memmap)
        np.testing.assert_array_equal(entry.images(), subject.images)
        np.testing.assert_array_equal(entry.label(), subject.label)
        assert entry.shape == subject.mask.shape
        assert entry.modalities == ("t1", "flair")
        assert entry.source == case
        assert entry.patient == case.patient
        assert json.loads((entry.folder / "meta.json").read_text())["convention"] == "brats2018"


def test_foreground_voxels_are_of_their_class_and_at_most_ten_thousand(tmp_path, rng, monkeypatch):
    (case,) = folder_of(tmp_path / "data", rng, 1)
    (entry,) = prepare([case], tmp_path / "cache", spacing=1.0)
    label, foreground = np.asarray(entry.label()), entry.foreground()
    assert set(foreground) == {1, 2, 3}
    for index, voxels in foreground.items():
        np.testing.assert_array_equal(
            np.sort(np.ravel_multi_index(voxels.T, label.shape)), np.flatnonzero(label == index)
        )
    monkeypatch.setattr("data_pipeline.cache.entry.FOREGROUND_VOXELS", 5)
    again = [prepare([case], tmp_path / name, spacing=1.0)[0].foreground() for name in ("cache2", "cache3")]
    for index, voxels in again[0].items():
        assert len(voxels) == min(5, len(foreground[index]))
        assert len(np.unique(voxels, axis=0)) == len(voxels)
        assert (label[tuple(voxels.T)] == index).all()
        np.testing.assert_array_equal(voxels, again[1][index])


def test_an_absent_class_has_no_voxels(tmp_path, rng):
    (case,) = folder_of(tmp_path / "data", rng, 1)
    rewrite(case.label, lambda v: np.where(v == 4, 2, v))
    assert prepare([case], tmp_path / "cache")[0].foreground()[3].shape == (0, 3)


def stamps(cache: Path) -> dict[str, int]:
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in cache.rglob("*")}


def test_finished_cases_are_not_done_again(tmp_path, rng):
    cases = folder_of(tmp_path / "data", rng)
    first = prepare(cases[:1], tmp_path / "cache")
    done = stamps(tmp_path / "cache")
    both = prepare(cases, tmp_path / "cache")
    after = stamps(tmp_path / "cache")
    assert both[0].folder == first[0].folder
    assert {name: after[name] for name in done} == done
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_the_key_follows_contents_and_settings(tmp_path, rng):
    (case,) = folder_of(tmp_path / "data", rng, 1)
    cache = tmp_path / "cache"
    base = prepare([case], cache)[0].folder
    mapped = find_cases(tmp_path / "data", label_map="1=NCR,2=ET,4=ED")
    folders = [
        prepare([case], cache, spacing=1.0)[0].folder,
        prepare([case], cache, ignore_affine=True)[0].folder,
        prepare(mapped, cache)[0].folder,
        prepare([replace(case, images={m: p for m, p in case.images.items() if m != "t2"})], cache)[0].folder,
    ]
    path = case.images["t1"]
    os.utime(path, (0, 0))
    assert prepare([case], cache)[0].folder == base  # the date does not matter
    rewrite(path, lambda v: v + (v > 0).astype(v.dtype))
    folders.append(prepare([case], cache)[0].folder)
    assert len({base, *folders}) == 6


def test_a_damaged_entry_is_made_again(tmp_path, rng):
    cases = folder_of(tmp_path / "data", rng, 1)
    (entry,) = prepare(cases, tmp_path / "cache")
    images = np.array(entry.images())
    (entry.folder / "images.npy").unlink()
    (again,) = prepare(cases, tmp_path / "cache")
    np.testing.assert_array_equal(again.images(), images)


@pytest.mark.parametrize("name", ["images.npy", "label.npy", "foreground.npz", "meta.json"])
def test_a_torn_file_is_noticed_and_the_case_made_again(tmp_path, rng, name):
    """As a loss of power may leave it: the folder is there, a file is short."""
    cases = folder_of(tmp_path / "data", rng, 2)
    entry, other = prepare(cases, tmp_path / "cache")
    whole, done = (entry.folder / name).read_bytes(), stamps(other.folder)
    (entry.folder / name).write_bytes(whole[: len(whole) // 2])
    assert PreparedCase.open(entry.folder, cases[0]) is None
    assert prepare(cases, tmp_path / "cache")[0] == entry
    assert (entry.folder / name).read_bytes() == whole
    assert stamps(other.folder) == done


def test_the_same_case_gives_the_same_bytes(tmp_path, rng):
    cases = folder_of(tmp_path / "data", rng, 1)
    first, second = (prepare(cases, tmp_path / name)[0].folder for name in ("one", "two"))
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_worker_processes_prepare_the_same(tmp_path, rng):
    cases = folder_of(tmp_path / "data", rng)
    cases[1].label.write_bytes(b"")
    alone = prepare(cases, tmp_path / "alone", skip_bad=True)
    together = prepare(cases, tmp_path / "together", workers=2, skip_bad=True)
    assert [p.id for p in together] == [p.id for p in alone] == [cases[0].id, cases[2].id]
    for one, two in zip(alone, together, strict=True):
        assert one.folder.name == two.folder.name
        np.testing.assert_array_equal(one.images(), two.images())
        for index, voxels in one.foreground().items():
            np.testing.assert_array_equal(voxels, two.foreground()[index])


def test_all_problems_are_listed_at_once(tmp_path, rng, capsys):
    cases = folder_of(tmp_path / "data", rng, 4)
    cases[0].images["t1"].write_bytes(b"")
    cases[1].label.unlink()
    cases = find_cases(tmp_path / "data")
    rewrite(cases[3].label, lambda v: np.where(v == 4, 9, v))
    with pytest.raises(InputError) as error:
        prepare(cases, tmp_path / "cache")
    lines = str(error.value).splitlines()
    assert lines[0].startswith("3 of 4 cases cannot be used; repair them (kd-jax check says how)")
    assert lines[0].endswith("--data.skip_bad true:")
    assert "BraTS2021_00000_t1.nii.gz: the file has zero bytes" in lines[1]
    assert "BraTS2021_00001: no label file" in lines[2]
    assert "found label 9" in lines[3]
    assert len(lines) == 4
    left = prepare(cases, tmp_path / "cache", skip_bad=True)
    assert [p.id for p in left] == ["BraTS2021_00002"]
    assert capsys.readouterr().err.splitlines()[0] == "left out 3 of 4 cases:"
    with pytest.raises(InputError, match="none of 3 cases can be used"):
        prepare([cases[0], cases[1], cases[3]], tmp_path / "cache", skip_bad=True)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, rng, monkeypatch):
    cases = folder_of(tmp_path / "data", rng, 1)

    def load(case, *args, **options):
        subject = load_subject(case, *args, **options)
        rewrite(case.images["t1"], lambda v: v + (v > 0).astype(v.dtype))
        return subject

    with monkeypatch.context() as patch:
        patch.setattr(fill, "load_subject", load)
        with pytest.raises(InputError, match=r"00000_t1\.nii\.gz: changed while it was read; wait until"):
            prepare(cases, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert len(prepare(cases, tmp_path / "cache")) == 1


def test_full_disk_is_no_bad_case(tmp_path, rng, monkeypatch):
    cases = folder_of(tmp_path / "data", rng, 2)

    def full(*_args, **_arrays) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        prepare(cases, tmp_path / "cache", skip_bad=True)
    assert list((tmp_path / "cache").iterdir()) == []


def test_interruption_leaves_no_half_written_case(tmp_path, rng, monkeypatch):
    cases = folder_of(tmp_path / "data", rng, 1)

    def interrupt(*_args, **_arrays) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(cases, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(prepare(cases, tmp_path / "cache")) == 1


def test_what_killed_processes_left_is_removed(tmp_path, rng):
    """At once where the process is dead, after a day where it is on another host."""
    dead = f"{this_process().split('-')[0]}-{2**22 + 1}-0"  # above the largest number of a process
    digits = "0" * 12
    expected = {
        f".a.{dead}.{digits}.tmp": (0, False),
        f".b.{this_process()}.{digits}.tmp": (0, True),
        f".c.00000000-1-1.{digits}.tmp": (0, True),
        f".d.00000000-1-1.{digits}.tmp": (2, False),
        ".somebody.else.tmp": (2, True),
    }
    for name, (days, _) in expected.items():
        (tmp_path / "cache" / name).mkdir(parents=True)
        os.utime(tmp_path / "cache" / name, (time.time() - days * 86400,) * 2)
    prepare(folder_of(tmp_path / "data", rng, 1), tmp_path / "cache")
    assert {name: (tmp_path / "cache" / name).exists() for name in expected} == {
        name: stays for name, (_, stays) in expected.items()
    }


def test_a_case_that_another_process_finished_meanwhile_stays(tmp_path, rng, monkeypatch):
    cases = folder_of(tmp_path / "data", rng, 1)
    load = fill.load_subject

    def slow(*args, **options):
        monkeypatch.setattr(fill, "load_subject", load)
        prepare(cases, tmp_path / "cache")  # the other process
        return load(*args, **options)

    monkeypatch.setattr(fill, "load_subject", slow)
    (entry,) = prepare(cases, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [entry.folder.name]
    assert entry.images().shape == (*entry.shape, 4)


def test_cache_that_is_a_file_and_odd_workers(tmp_path, rng):
    cases = folder_of(tmp_path / "data", rng, 1)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        prepare(cases, tmp_path / "file")
    with pytest.raises(InputError, match="workers -1"):
        prepare(cases, tmp_path / "cache", workers=-1)


def test_prepared_cases_travel_to_other_processes(tmp_path, rng):
    (entry,) = prepare(folder_of(tmp_path / "data", rng, 1), tmp_path / "cache")
    assert pickle.loads(pickle.dumps(entry)) == entry


def test_the_work_to_do_is_reported_first(tmp_path, rng, capsys):
    cases = folder_of(tmp_path / "data", rng, 2)
    prepare_cases(cases[:1], 2.0, tmp_path / "cache", workers=0)
    printed = capsys.readouterr().err
    assert printed.startswith(f"1 cases, 0 already prepared in {tmp_path / 'cache'}\n1 to prepare: about ")
    assert "Preparing cases: 100%" in printed
    prepare_cases(cases, 2.0, tmp_path / "cache", workers=0)
    assert "2 cases, 1 already prepared" in capsys.readouterr().err
    prepare_cases(cases, 2.0, tmp_path / "cache", workers=0)
    printed = capsys.readouterr().err
    assert "2 cases, 2 already prepared" in printed and "Preparing cases" not in printed


def test_cached_cases_count_among_those_that_can_be_used(tmp_path, rng):
    cases = folder_of(tmp_path / "data", rng, 3)
    prepare(cases[:1], tmp_path / "cache")
    for case in cases[1:]:
        case.images["t1"].write_bytes(b"")
    with pytest.raises(InputError, match="2 of 3 cases cannot be used"):
        prepare(cases, tmp_path / "cache")
    assert [entry.id for entry in prepare(cases, tmp_path / "cache", skip_bad=True)] == [cases[0].id]
