import shlex
import subprocess

import numpy as np
import pytest

from data_pipeline.errors import InputError
from data_pipeline.layouts.find import find_cases
from data_pipeline.preprocessing.subject import load_subject
from data_pipeline.reading.clinical import dicom_answer, to_atlas
from data_pipeline.reading.scan import inspect_case
from tests.data_pipeline.cases import SRI24, one_case, rewrite

RAW = SRI24 @ np.diag([0.5, 0.5, 5, 1])


def with_skull(voxels):
    return (voxels + np.random.default_rng(3).integers(1, 99, voxels.shape)).astype(np.int16)


def raw_case(tmp_path, rng):
    case = one_case(tmp_path, rng, label=False)
    for path in case.images.values():
        rewrite(path, with_skull, RAW)
    return case


def raw_findings(case, **options):
    return [f for f in inspect_case(case, **options).findings if "raw clinical scans" in f.found]


def test_a_raw_scan_is_recognised_and_answered_with_commands(tmp_path, rng):
    (finding,) = raw_findings(raw_case(tmp_path, rng))
    assert finding.severity == "warning"
    assert "skull in t1, t1ce, t2, flair; spacing 0.5 x 0.5 x 5 mm of t1" in finding.found
    assert "flirt" in finding.command


def test_a_skull_in_every_modality_is_enough(tmp_path, rng):
    case = one_case(tmp_path, rng, label=False)
    for path in case.images.values():
        rewrite(path, with_skull)
    (finding,) = raw_findings(case)
    assert "(skull in t1, t1ce, t2, flair)" in finding.found
    with pytest.raises(InputError, match="raw clinical scans"):
        load_subject(case, 1.0, ["flair"], refuse_raw=True)


def test_one_sign_alone_is_not_enough(tmp_path, rng):
    skull = one_case(tmp_path / "a", rng)
    rewrite(skull.images["t1"], with_skull)
    thick = one_case(tmp_path / "b", rng, affine=RAW)
    for case in (skull, thick):
        assert raw_findings(case) == []


def test_modalities_on_their_own_grids_are_a_sign(tmp_path, rng):
    case = one_case(tmp_path, rng, label=False)
    rewrite(case.images["flair"], lambda v: with_skull(v[:, :, :-3]))
    (finding,) = raw_findings(case)
    assert "skull in flair; modalities on different grids" in finding.found


def test_it_can_be_refused(tmp_path, rng):
    case = raw_case(tmp_path, rng)
    assert any("raw clinical scans" in finding.found for finding in load_subject(case, 1.0).findings)
    with pytest.raises(InputError, match="raw clinical scans") as error:
        load_subject(case, 1.0, refuse_raw=True)
    message = error.value.with_commands()
    assert "--accept-raw" in message and "fslreorient2std" not in str(error.value)
    assert all(f"fslreorient2std {path}" in message for path in case.images.values())


def test_commands_are_a_script_of_the_cases_own_files(tmp_path, rng):
    """Every program gets files that are there or that a command before it made."""
    case = one_case(tmp_path / "it's a folder", rng)
    script = to_atlas(case.id, case.images)
    subprocess.run(["bash", "-n", "-c", script], check=True)
    made = {str(path) for path in case.images.values()} | {"$ATLAS"}
    for line in script.splitlines():
        words = shlex.split(line, comments=True)
        if not words or "=" in words[0] or words[0] in ("mkdir", "rm"):
            continue
        program, *rest = words
        reads, writes = {
            "fslreorient2std": lambda w: ([w[0]], [w[1]]),
            "flirt": lambda w: (
                option(w, "-in", "-ref", "-init"),
                option(w, "-out", "-omat") if "-init" not in w else option(w, "-out"),
            ),
            "convert_xfm": lambda w: (w[w.index("-concat") + 1 :], option(w, "-omat")),
            "mri_synthstrip": lambda w: (option(w, "-i"), option(w, "-o", "-m")),
            "fslmaths": lambda w: ([w[0], w[2]], [w[3]]),
        }[program](rest)
        assert set(reads) <= made, line
        made |= set(writes)
    assert {f"sri24/{case.id}/{case.id}_{m}.nii.gz" for m in case.images} <= made


def option(words, *names):
    return [words[words.index(name) + 1] for name in names if name in words]


def test_transforms_are_concatenated_in_fsls_order(tmp_path, rng):
    """convert_xfm -omat AtoC.mat -concat BtoC.mat AtoB.mat"""
    case = one_case(tmp_path, rng)
    home = f"sri24/{case.id}/work"
    assert (
        f"convert_xfm -omat {home}/flair_to_atlas.mat -concat {home}/t1ce_to_atlas.mat {home}/flair_to_t1ce.mat"
        in to_atlas(case.id, case.images).splitlines()
    )


def test_without_t1ce_another_is_the_anchor(tmp_path, rng):
    case = one_case(tmp_path, rng, modalities=("t2", "flair"))
    script = to_atlas(case.id, case.images)
    assert "t2_to_atlas.mat" in script and "flair_to_t2.mat" in script and "t1ce_to" not in script


@pytest.mark.parametrize("name", ["IM0001.dcm", "IM0001.IMA", "IM0001"])
def test_dicom_folders_are_answered(tmp_path, name):
    folder = tmp_path / "series one"
    folder.mkdir()
    (folder / name).write_bytes(bytes(128) + b"DICM" + bytes(20))
    message = str(dicom_answer(tmp_path))
    assert f"DICOM files (series one/{name}), expected NIfTI" in message
    command = message.splitlines()[-1].strip()
    assert command == f"mkdir -p nifti && dcm2niix -z y -f %i_%s_%d -o nifti {shlex.quote(str(tmp_path))}"


def test_other_folders_are_not(tmp_path, rng):
    (tmp_path / "notes.txt").write_text("nothing here")
    assert dicom_answer(tmp_path) is None
    case = one_case(tmp_path, rng)
    next(iter(case.images.values())).with_name("IM0001.dcm").write_bytes(b"")
    assert dicom_answer(tmp_path) is None
    assert find_cases(tmp_path)
