"""Phantoms: the folder they are written to, the cache, the command."""

import errno
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from data_pipeline.phantom import __main__ as command
from data_pipeline.phantom import audit, data_set, write
from tests.data_pipeline.phantoms import digests


def test_seeds_differ_and_cases_differ(quick, tmp_path):
    first = digests(data_set.make_phantoms(tmp_path / "a", 2, 1, 4.0, workers=1, progress=False))
    second = digests(data_set.make_phantoms(tmp_path / "b", 1, 2, 4.0, workers=1, progress=False))
    assert not set(first.values()) & set(second.values())
    assert len(set(first.values())) == 10


def test_a_stopped_run_continues_without_touching_finished_cases(quick, tmp_path, monkeypatch):
    whole = digests(data_set.make_phantoms(tmp_path / "whole", 3, 0, 4.0, workers=1, progress=False))
    real, calls = write.write_volume, []

    def stop(*args):
        calls.append(args)
        if len(calls) == 8:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(write, "write_volume", stop)
    with pytest.raises(KeyboardInterrupt):
        data_set.make_phantoms(tmp_path / "cut", 3, 0, 4.0, workers=1, progress=False)
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == [data_set.case_name(0), data_set.MANIFEST]
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("*/*.nii.gz")}
    monkeypatch.setattr(write, "write_volume", real)
    assert digests(data_set.make_phantoms(tmp_path / "cut", 3, 0, 4.0, workers=1, progress=False)) == whole
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}


def test_a_full_disk_is_one_line_and_leaves_no_half_case(quick, tmp_path, monkeypatch):
    real, calls = Path.write_bytes, []

    def full(self, data):
        calls.append(self)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        InputError, match="BraTS2021_00000: cannot be written \\(No space left on device\\); choose a folder"
    ):
        data_set.make_phantoms(tmp_path, 2, 0, 4.0, workers=1, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [data_set.MANIFEST]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written \((Not a directory|File exists)\)") as caught:
        data_set.make_phantoms(tmp_path / "file" / "out", 1, 0, progress=False)
    assert "\n" not in str(caught.value)


def test_a_folder_of_other_data_is_refused(quick, tmp_path):
    data_set.make_phantoms(tmp_path / "a", 1, 0, 8.0, workers=1, progress=False)
    with pytest.raises(InputError, match=r"phantom.json: holds phantoms of .*'seed': 0.*requested .*'seed': 1"):
        data_set.make_phantoms(tmp_path / "a", 1, 1, 8.0, progress=False)
    (tmp_path / "b" / "BraTS2021_00000").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds cases but no phantom\.json"):
        data_set.make_phantoms(tmp_path / "b", 1, 0, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cases": 0}, "cases: 0 phantoms requested; give a number from 1"),
        ({"seed": -1}, "seed: -1 is negative"),
        ({"spacing": float("nan")}, "spacing: nan mm; phantoms can be made at 0.5 to 8.0 mm"),
        ({"workers": 0}, "workers: 0; give 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        data_set.make_phantoms(tmp_path, **({"cases": 1, "seed": 0} | settings))
    assert not list(tmp_path.iterdir())


def test_the_cache_grows_and_answers_without_work(quick, tmp_path, monkeypatch):
    made = []
    real = data_set.write_case
    monkeypatch.setattr(data_set, "write_case", lambda *args: made.append(args[-1]) or real(*args))
    two = data_set.phantom_folder(2, 0, 8.0, cache=tmp_path, workers=1, progress=False)
    three = data_set.phantom_folder(3, 0, 8.0, cache=tmp_path, workers=1, progress=False)
    again = data_set.phantom_folder(2, 0, 8.0, cache=tmp_path, workers=1, progress=False)
    assert made == [0, 1, 2] and again == two != three
    assert data_set.finished_cases(two) == [data_set.case_name(i) for i in range(2)]
    assert {n: d for n, d in digests(three).items() if n in digests(two)} == digests(two)
    monkeypatch.setattr(data_set, "load_anatomy", lambda: pytest.fail("the template was read for a finished set"))
    assert data_set.phantom_folder(3, 0, 8.0, cache=tmp_path, workers=1, progress=False) == three


def test_the_command_writes_audits_and_explains(quick, tmp_path, capsys):
    arguments = [str(tmp_path / "out"), "--cases", "1", "--spacing", "4", "--workers", "1"]
    assert command.main(arguments) == 0
    assert "1 phantoms in" in capsys.readouterr().out
    assert command.main([str(tmp_path / "out"), "--audit"]) == 0
    printed = capsys.readouterr().out
    assert all(target.title in printed for target in audit.TARGETS.values())
    assert command.main([str(tmp_path), "--audit"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no BraTS2021_<number> folders")
