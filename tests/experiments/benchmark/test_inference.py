import numpy as np
import pytest

from experiments.benchmark import inference, inference_jax
from experiments.benchmark.figures import Options
from experiments.benchmark.inference_task import EVERY, OUTPUTS, TASKS
from kd_jax.inference.windows import window_count


def kept(folder, side):
    return np.load(folder / f"{side}.npy")


def test_the_first_run_is_one_window_and_the_others_are_the_case(tmp_path):
    task = TASKS["small"]
    workload = inference_jax.segment(task="small", folder=str(tmp_path), seed=0)
    for shape in (task.patch, task.shape, task.shape):
        workload.run()
        assert kept(tmp_path, "kd_jax").shape == (*(-(-size // EVERY) for size in shape), OUTPUTS)


def test_a_whole_case_has_the_windows_of_nnunet_s_plan():
    for name, count in {"teacher": 18, "student": 18, "student, mirrored": 4, "head, mirrored": 18}.items():
        assert window_count(TASKS[name].shape, TASKS[name].patch) == count


@pytest.mark.parametrize("task", [name for name in TASKS if name.startswith("small")])
def test_nnunet_finds_the_same(tmp_path, task):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    from experiments.benchmark import inference_peers

    settings = {"task": task, "folder": str(tmp_path), "seed": 0}
    for workload in (inference_peers.nnunet(**settings), inference_jax.segment(**settings)):
        workload.run()  # one window: the Gaussian cancels, and with it most of what float16 rounds
    ours, theirs = kept(tmp_path, "kd_jax"), kept(tmp_path, "nnU-Net")
    middle = (slice(1, -1),) * 3
    np.testing.assert_allclose(ours[middle], theirs[middle], atol=5e-3 * np.abs(theirs).max())


@pytest.mark.slow
def test_the_part_runs(capfd):
    for package in ("nnunetv2", "monai"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    part = inference.measure(Options(rounds=1, small=True))
    assert part.name == "inference" and part.ratio > 0
    assert [set(figure.peers) for figure in part.figures[:2]] == [{"nnU-Net"}, {"nnU-Net", "MONAI"}]
    assert sum("logits of up to" in note for note in part.notes) == 5
