import numpy as np
import pytest

from data_pipeline.cache.fill import prepare_cases
from data_pipeline.conventions import MODALITIES, OUTSIDE_BRAIN
from data_pipeline.layouts.find import find_cases
from experiments.benchmark import prepare
from experiments.benchmark.figures import Options
from experiments.benchmark.prepare_task import write_cases


def test_both_sides_prepare_the_same(tmp_path):
    """nnU-Net's axes are those of the file in reverse, and no canonical orientation."""
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    from experiments.benchmark.prepare_nnunet import open_cases, preprocess

    write_cases(tmp_path / "raw", 1, 0, small=True)
    (case,) = find_cases(tmp_path / "raw")
    (ours,) = prepare_cases([case], 1.0, tmp_path / "ours", workers=0, progress=False)
    (tmp_path / "theirs").mkdir()
    preprocess(case, tmp_path / "theirs", 32)
    image, label, _, properties = open_cases(tmp_path / "theirs").load_case(case.id)
    images = np.moveaxis(image[:], 0, -1).transpose(2, 1, 0, 3)
    assert images.shape == (*ours.shape, len(MODALITIES))
    np.testing.assert_allclose(images, ours.images(), atol=1e-4)
    as_ours = np.vectorize({-1: OUTSIDE_BRAIN, 0: 0, 1: 1, 2: 2, 4: 3}.__getitem__)(label[0].transpose(2, 1, 0))
    np.testing.assert_array_equal(as_ours, ours.label())
    assert set(properties["class_locations"]) == {1, 2, 4}


def test_the_estimate_by_hand():
    assert prepare._minutes(1.6) == pytest.approx(1251 * 1.6 / 16 / 60)


@pytest.mark.slow
def test_the_part_runs():
    part = prepare.measure(Options(rounds=1, small=True))
    assert part.name == "prepare" and all(figure.ours > 0 for figure in part.figures)
    assert part.figures[1].name.startswith("the check of a case") and not part.figures[1].peers
    assert "1,251 cases on 16 cores" in part.notes[-1]
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    assert part.ratio > 0 and set(part.figures[0].peers) == {"nnU-Net"}
