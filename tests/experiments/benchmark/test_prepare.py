import numpy as np
import pytest

from data_pipeline.conventions import MODALITIES
from data_pipeline.prepare import prepare_cases
from experiments.benchmark import prepare
from experiments.benchmark.figures import Options
from experiments.benchmark.prepare_task import cases_in, write_cases


def test_both_sides_prepare_the_same(tmp_path):
    """Axes are R, A, S here and x, y, z from the back there: the phantom's files are L, P, S or R, A, S."""
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    from experiments.benchmark.prepare_nnunet import open_cases, preprocess

    write_cases(tmp_path / "raw", 1, spacing=4.0, seed=0)
    (case,) = cases_in(tmp_path / "raw")
    (ours,) = prepare_cases([case], 4.0, tmp_path / "ours", workers=0, progress=False)
    (tmp_path / "theirs").mkdir()
    preprocess(case, tmp_path / "theirs", 32, 4.0)
    image, label, _, properties = open_cases(tmp_path / "theirs").load_case(case.id)
    images = np.moveaxis(image[:], 0, -1).transpose(2, 1, 0, 3)
    assert images.shape == (*ours.shape, len(MODALITIES))
    np.testing.assert_allclose(np.sort(images, axis=None), np.sort(ours.images(), axis=None), atol=1e-4)
    values, counts = np.unique(label[:], return_counts=True)
    expected = {-1: 255, 0: 0, 1: 1, 2: 2, 4: 3}
    assert [np.count_nonzero(ours.label() == expected[int(v)]) for v in values] == counts.tolist()
    assert set(properties["class_locations"]) == {1, 2, 4}


def test_the_part_runs():
    part = prepare.measure(Options(rounds=1, small=True))
    assert part.name == "prepare" and part.figures[0].ours > 0
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    assert part.ratio > 0 and set(part.figures[0].peers) == {"nnU-Net"}
