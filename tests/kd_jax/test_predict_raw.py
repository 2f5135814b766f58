"""Raw clinical scans are refused with the commands that prepare them, unless they are asked for."""

import json

import numpy as np
import pytest

from data_pipeline.command_line import CASES_FAILED, COMMAND_ERROR, run_command
from kd_jax import predict
from tests.data_pipeline.cases import SRI24, file_of, rewrite, write_case
from tests.kd_jax.fake_run import write_run

CASE = "BraTS2021_00000"
RAW = SRI24 @ np.diag([0.9, 0.9, 2, 1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "et", student="ET")


@pytest.fixture
def data(tmp_path):
    """A raw case and a good one."""

    def raw(voxels):
        return (voxels + np.random.default_rng(1).integers(1, 99, voxels.shape)).astype(np.int16)

    home = write_case(tmp_path / "data", rng=np.random.default_rng(0), label=False)
    for m in ("t1", "t1ce", "t2", "flair"):
        rewrite(file_of(home, CASE, m), raw, RAW)
    write_case(tmp_path / "data", rng=np.random.default_rng(1), number=1)
    return tmp_path / "data"


def predicted(*arguments):
    return run_command(predict.main, [str(a) for a in arguments])


def test_refused_with_a_list_to_copy_and_the_others_go_on(run, data, tmp_path, capsys):
    assert predicted(run, data, "-o", tmp_path / "out") == CASES_FAILED
    printed = capsys.readouterr().err
    assert f"error: {CASE}: " in printed and "raw clinical scans" in printed and "--accept-raw" in printed
    flair = file_of(data / CASE, CASE, "flair")
    assert f"\n  fslreorient2std {flair} " in printed.replace("\n    ", "\n  ")
    failures = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert list(failures) == [CASE] and "mri_synthstrip" in failures[CASE]
    assert not (tmp_path / "out" / f"{CASE}.nii.gz").exists()
    assert (tmp_path / "out" / "BraTS2021_00001.nii.gz").exists()


def test_accepted_when_asked_for(run, data, tmp_path, capsys):
    assert predicted(run, data, "-o", tmp_path / "out", "--accept-raw") == 0
    assert "raw clinical scans" in capsys.readouterr().out
    assert (tmp_path / "out" / f"{CASE}.nii.gz").exists()


def test_dicom_is_answered_with_dcm2niix(run, tmp_path, capsys):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "IM1").write_bytes(bytes(128) + b"DICM")
    assert predicted(run, tmp_path / "study", "-o", tmp_path / "out") == COMMAND_ERROR
    assert "dcm2niix -z y" in capsys.readouterr().err
