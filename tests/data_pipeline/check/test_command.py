import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from data_pipeline import files
from data_pipeline.check.__main__ import main
from tests.data_pipeline.cases import file_of, rewrite, write_case


@pytest.fixture
def data(tmp_path, rng):
    """Two good cases and one without T2."""
    for number in range(2):
        write_case(tmp_path / "data", rng=rng, number=number)
    write_case(tmp_path / "data", rng=rng, number=2, modalities=("t1", "t1ce", "flair"))
    return tmp_path / "data"


def checked(data, tmp_path, capsys, *options):
    status = main([str(data), "-o", str(tmp_path / "out"), "--workers", "0", *map(str, options)])
    printed = capsys.readouterr()
    file = tmp_path / "out" / "check.json"
    return status, printed, json.loads(file.read_text()) if file.exists() else None


def spoil(data, role, change, number=0):
    file = file_of(data / f"BraTS2021_{number:05d}", f"BraTS2021_{number:05d}", role)
    change(file)
    return file


def test_a_good_data_set(data, tmp_path, capsys):
    status, printed, content = checked(data, tmp_path, capsys)
    assert status == 0
    assert content["counts"] == {"error": 0, "warning": 0, "note": 1}
    assert content["cases"][2]["findings"][0]["found"] == "no t2"
    assert re.search(r"^cases +3 of 3 patients, 3 usable$", printed.out, re.MULTILINE)
    assert re.search(r"^modalities +t1 in 3, t1ce in 3, t2 in 2, flair in 3$", printed.out, re.MULTILINE)
    assert "1 NCR, 2 ED, 4 ET" in printed.out  # the decision


def test_the_json_has_the_facts(data, tmp_path, capsys):
    _, _, content = checked(data, tmp_path, capsys)
    case = content["cases"][0]
    assert case["shape"] == [14, 16, 12]
    assert case["spacing_mm"] == [1, 1, 1]
    assert case["files"]["seg"] == str(data / "BraTS2021_00000" / "BraTS2021_00000_seg.nii.gz")
    # Boxes of half-widths .24, .17 and .09 of 14 x 16 x 12 voxels: 6 x 8 x 6, 4 x 6 x 4 and 2 x 2 x 2.
    assert case["volumes_ml"] == {"WT": 0.288, "TC": 0.096, "ET": 0.088}


def test_errors_are_listed_with_file_and_remedy(data, tmp_path, capsys):
    cut = spoil(data, "flair", lambda f: f.write_bytes(f.read_bytes()[:-200]))
    label = spoil(data, "seg", lambda f: rewrite(f, lambda v: np.where(v == 4, 3, v)), number=1)
    status, printed, content = checked(data, tmp_path, capsys)
    assert status == 1
    assert content["counts"]["error"] == 2
    lines = printed.out.splitlines()
    assert any(line.startswith(f"  error: {cut}: ") and "copy or download" in line for line in lines)
    assert any(line.startswith(f"  error: {label}: found label 3") for line in lines)
    assert lines.index("BraTS2021_00000") < lines.index("BraTS2021_00001")
    assert content["cases"][0]["volumes_ml"]["WT"] == 0.288  # what can be read is


def test_commands_are_printed(data, tmp_path, capsys):
    def raw(voxels):
        return (voxels + np.random.default_rng(1).integers(1, 99, voxels.shape)).astype(np.int16)

    for m in ("t1", "t1ce", "t2", "flair"):
        spoil(data, m, lambda f: rewrite(f, raw, np.diag([2, 2, 3, 1])))
    status, printed, content = checked(data, tmp_path, capsys)
    assert status == 1  # the label is on another grid
    command = next(f["command"] for f in content["cases"][0]["findings"] if f["command"])
    assert all(f"    {line}" in printed.out for line in command.splitlines())


def test_the_same_patient_twice_is_noticed(data, tmp_path, capsys):
    for role in ("t1", "flair"):
        spoil(data, role, lambda f: f.write_bytes(spoil(data, role, lambda g: None, 1).read_bytes()))  # noqa: B023
    status, _, content = checked(data, tmp_path, capsys)
    assert status == 0
    (finding,) = content["findings"]
    assert finding["found"] == "cases BraTS2021_00000, BraTS2021_00001 have the same t1, flair"


def test_what_many_cases_share_is_printed_once(tmp_path, rng, capsys):
    for number in range(7):
        write_case(tmp_path / "data", rng=rng, number=number, affine=np.diag([2.0, 2, 2, 1]))
    _, printed, content = checked(tmp_path / "data", tmp_path, capsys)
    assert content["counts"]["warning"] == 7
    assert printed.out.count("not the 1 mm of BraTS") == 1
    assert "warning in 7 cases: spacing 2 x 2 x 2 mm" in printed.out


class Page(HTMLParser):
    """Counts cases and pictures, and what a page would fetch."""

    def __init__(self):
        super().__init__()
        self.cases, self.pictures, self.outside = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if "case" in (values.get("class") or "").split():
            self.cases.append(values["class"])
        if tag == "img":
            self.pictures.append(values["src"])
        self.outside += [v for k, v in attributes if k in ("src", "href") and not v.startswith("data:")]


def test_the_page_is_self_contained_and_worst_first(data, tmp_path, capsys):
    spoil(data, "flair", lambda f: f.write_bytes(b""), number=1)
    checked(data, tmp_path, capsys)
    text = (tmp_path / "out" / "check.html").read_text()
    page = Page()
    page.feed(text)
    assert page.cases == ["case error", "case note", "case clean"]
    assert len(page.pictures) == 3 and page.outside == []
    assert "http" not in text
    assert text.count("<svg") == 4
    for source in page.pictures:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")


@pytest.mark.slow
def test_processes_give_the_same_report(data, tmp_path, capsys):
    _, _, alone = checked(data, tmp_path, capsys)
    code = "import sys; from data_pipeline.check.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(data), "-o", str(tmp_path / "two"), "--workers", "2", "--no-html"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert json.loads((tmp_path / "two" / "check.json").read_text()) == alone
    assert not (tmp_path / "two" / "check.html").exists()


def test_several_folders(data, tmp_path, rng, capsys):
    write_case(tmp_path / "other", rng=rng, number=7, layout="2023")
    _, _, content = checked(data, tmp_path, capsys, tmp_path / "other")
    assert len(content["cases"]) == 4
    assert len(content["layouts"]) == 2


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.mkdir(), "no cases found"),
        (lambda folder: (folder.mkdir(), (folder / "I1.dcm").touch()), "dcm2niix -z y"),
    ],
)
def test_unusable_arguments(tmp_path, capsys, make, fragment):
    make(tmp_path / "data")
    status, printed, content = checked(tmp_path / "data", tmp_path, capsys)
    assert status == 2 and content is None
    assert printed.err.startswith("error: ") and fragment in printed.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(data, tmp_path, capsys, monkeypatch):
    (tmp_path / "out").touch()
    assert main([str(data), "-o", str(tmp_path / "out"), "--workers", "0"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_full_disk_leaves_the_old_report(data, tmp_path, capsys, monkeypatch):
    checked(data, tmp_path, capsys)
    before = (tmp_path / "out" / "check.json").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    status, printed, _ = checked(data, tmp_path, capsys)
    assert status == 2 and "No space left on device" in printed.err
    assert (tmp_path / "out" / "check.json").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["check.html", "check.json"]
