"""`kd-jax prepare` does what training does before it starts."""

import re
import shutil
from types import SimpleNamespace

import pytest

from data_pipeline.cache.fill import prepare_cases
from data_pipeline.cache.place import prepared_folder
from data_pipeline.layouts.find import find_cases
from data_pipeline.prepare import main
from tests.data_pipeline.cases import rewrite, write_case


@pytest.fixture
def data(tmp_path, rng):
    for number in range(2):
        write_case(tmp_path / "data", rng=rng, number=number)
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_training_finds_what_the_command_prepared(data, cache, capsys):
    assert main([str(data), "--cache", str(cache), "--workers", "0"]) == 0
    printed = capsys.readouterr()
    assert "2 cases, 0 already prepared" in printed.err
    assert re.fullmatch(f"2 cases in {re.escape(str(cache / 'prepared'))}, 0\\.\\d MB\n", printed.out)
    entries = set(prepared_folder(cache).iterdir())
    found = prepare_cases(find_cases(data), (1, 1, 1), prepared_folder(cache), workers=0, progress=False)
    assert {entry.folder for entry in found} == entries == set(prepared_folder(cache).iterdir())


def test_options_are_those_of_training(data, cache, tmp_path, rng):
    write_case(tmp_path / "more", rng=rng, number=7)
    options = ["--spacing", "2", "2", "3", "--label-map", "1=NCR,2=ET,4=ED", "--layout", "brats2018", "--ignore-affine"]
    assert main(["--cache", str(cache), *options, str(data), str(tmp_path / "more"), "--workers", "0"]) == 0
    entries = set(prepared_folder(cache).iterdir())
    cases = find_cases([data, tmp_path / "more"], "1=NCR,2=ET,4=ED", "brats2018")
    prepare_cases(cases, (2, 2, 3), prepared_folder(cache), workers=0, ignore_affine=True)
    assert set(prepared_folder(cache).iterdir()) == entries and len(entries) == 3


def test_entries_of_former_contents_are_removed_when_asked(data, cache, capsys):
    command = [str(data), "--cache", str(cache), "--workers", "0"]
    assert main([*command, "--spacing", "2", "2", "2"]) == 0
    other = set(prepared_folder(cache).iterdir())
    assert main(command) == 0
    first = set(prepared_folder(cache).iterdir()) - other
    rewrite(find_cases(data)[0].images["t1"], lambda v: v + (v > 0).astype(v.dtype))
    assert main(command) == 0
    assert first < set(prepared_folder(cache).iterdir())
    assert main([*command, "--remove-outdated"]) == 0
    assert "removed 1 entries of files that have changed" in capsys.readouterr().err
    left = set(prepared_folder(cache).iterdir()) - other
    assert len(left) == 2 and len(left & first) == 1
    assert other < set(prepared_folder(cache).iterdir())


def test_damaged_entries_are_prepared_again_when_asked(data, cache, capsys):
    command = [str(data), "--cache", str(cache), "--workers", "1"]
    assert main(command) == 0
    damaged = next(cache.rglob("images.npy"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-4] + b"worm")
    assert main([*command, "--verify", "--dry-run"]) == 0
    assert "1 entries are damaged on the disk" in capsys.readouterr().out
    assert damaged.read_bytes() != whole
    assert main([*command, "--verify"]) == 0
    assert "1 entries are damaged on the disk" in capsys.readouterr().err
    assert damaged.read_bytes() == whole


def test_suspicious_files_are_warned_of_each_time(data, cache, capsys):
    case = find_cases(data)[0]
    shutil.copy(case.images["t1"], case.images["t2"])
    for _ in range(2):
        assert main([str(data), "--cache", str(cache), "--workers", "0"]) == 0
        lines = capsys.readouterr().err.splitlines()
        names = f"{case.images['t1'].name} and {case.images['t2'].name}"
        assert any(line.startswith(f"warning: {case.id}: ") and f"{names} are identical" in line for line in lines)


def test_the_same_image_in_two_cases_is_warned_of(data, cache, capsys):
    one, two = find_cases(data)
    for m in ("t1", "flair"):
        shutil.copy(one.images[m], two.images[m])
    assert main([str(data), "--cache", str(cache), "--workers", "0"]) == 0
    assert f"warning: cases {one.id}, {two.id} have the same t1, flair; remove the copies" in capsys.readouterr().err


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(data, cache, capsys, monkeypatch):
    assert main([str(data), "--cache", str(cache), "--dry-run"]) == 0
    assert "2 to prepare: about " in capsys.readouterr().out
    assert not cache.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=0))
    assert main([str(data), "--cache", str(cache), "--dry-run"]) == 2
    assert "free some space, or give a folder on a larger disk with --cache DIR" in capsys.readouterr().err


def test_what_is_wrong_is_an_error_of_one_line_each(data, cache, tmp_path, capsys):
    find_cases(data)[0].images["t1"].write_bytes(b"")
    assert main([str(data), "--cache", str(cache), "--workers", "0"]) == 2
    printed = capsys.readouterr().err
    assert "error: 1 of 2 cases cannot be used; repair them" in printed and "them out with --skip-bad:" in printed
    assert "Traceback" not in printed
    assert main([str(data), "--cache", str(cache), "--workers", "0", "--skip-bad"]) == 0
    assert main([str(data), "--cache", str(cache), "--spacing", "1", "0", "1"]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(data), "--cache", str(cache), "--workers", "-1"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3


def test_interrupted(data, cache, capsys, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("data_pipeline.cache.fill.prepare_cases", interrupt)
    assert main([str(data), "--cache", str(cache)]) == 130
    assert "same command again" in capsys.readouterr().err
