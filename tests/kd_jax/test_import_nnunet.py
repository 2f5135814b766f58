import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.conventions import MODALITIES
from data_pipeline.errors import InputError
from data_pipeline.layouts.find import find_cases
from data_pipeline.preprocessing.subject import load_subject
from kd_jax import import_nnunet
from kd_jax.config.load import load_config
from kd_jax.inference.load import load_segmenter
from kd_jax.inference.segmenter import segment_case
from kd_jax.models.outputs import to_classes
from kd_jax.nnunet import run as imported_run
from kd_jax.nnunet.imported import import_config, read_network, reversed_axes
from kd_jax.nnunet.reader import read_checkpoint
from kd_jax.nnunet.result_files import find_result
from kd_jax.objective.joint import build_objective
from kd_jax.runs.restore import default_network, restore_network
from kd_jax.training.state import init_state
from kd_jax.training.teacher import check_teacher, load_teacher, teacher_settings
from tests.data_pipeline.cases import file_of, write_nifti
from tests.kd_jax.torch_archive import save, tensor

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
RESULT = GOLDEN / "nnunet_result"
"""Written by nnU-Net 2.8.1: flair and t1ce; TC, ET, WT; transpose_forward 0 2 1 (experiments/parity/importing.py)."""
AXES = 1, 2, 0
"""Axis of its plans that is our x, y, z: x is axis 2 of the file's arrays, which the plans put at 1, and so on."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    assert import_nnunet.main([str(RESULT), "--run", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def network(run):
    """The imported network: patches [D, H, W, C] to logits of its finest head."""
    restored = restore_network(run, default_network(run, "best"), "best")
    apply = jax.jit(lambda image: restored.module.apply({"params": restored.params}, image[None]).logits[0][0])
    return lambda image: np.asarray(apply(jnp.asarray(image)))


@pytest.fixture
def result(tmp_path):
    return shutil.copytree(RESULT, tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres")


def _read(result: Path, **options):
    return read_network(find_result(result, None, "final", None, None), **options)


def test_the_network_computes_what_nnunet_computed(network):
    golden = np.load(GOLDEN / "nnunet_result.npz")
    # To x, y, z, then from L, P, S to R, A, S; t1ce comes before flair, and WT, TC, ET are outputs 2, 0, 1 there.
    image = np.transpose(golden["patch"], (*(1 + axis for axis in AXES), 0))[::-1, ::-1, :, ::-1]
    ours = np.transpose(network(image)[::-1, ::-1], (3, *np.argsort(AXES)))
    np.testing.assert_allclose(ours[[1, 2, 0]], golden["logits"], atol=1e-4)


def test_the_configuration_is_that_of_the_plans(run):
    restored = restore_network(run, "teacher", "best")
    assert restored.modalities == ("t1ce", "flair")
    config = restored.config
    teacher = config.teacher
    assert config.data.patch == (8, 16, 12) and config.data.spacing == (1, 1, 1) and config.data.fold == 0
    assert teacher.features == (3, 4) and teacher.encoder == "plain" and teacher.reversed_axes == ("x", "y")
    assert teacher.kernels == ((1, 3, 3), (3, 3, 3)) and teacher.strides == ((1, 1, 1), (1, 2, 2))
    assert teacher.convs_encoder == (2, 2) and teacher.convs_decoder == (2,)
    assert config.outputs == "regions" and not config.loss.batch_dice and config.distillation.weight == 0


def test_where_it_comes_from_is_kept(run):
    found = json.loads((run / "import.json").read_text())
    assert found["trainer"] == "nnUNetTrainer" and found["fold"] == 0 and found["epoch"] == 1
    assert found["channels"] == ["flair", "t1ce"] and found["mirroring"] == ["x", "y", "z"]
    assert found["outputs"] == {"WT": "whole tumor", "TC": "tumor core", "ET": "enhancing tumor"}
    assert found["checkpoint"] == str(RESULT / "fold_0" / "checkpoint_final.pth")
    assert len(found["sha256"]) == 64


def test_cases_are_segmented_with_it(run, network, tmp_path):
    """A brain of one window: what is written is the network on the prepared images."""
    rng = np.random.default_rng(0)
    for modality in ("t1ce", "flair"):
        image = np.pad(rng.integers(1, 500, (8, 16, 12)), 2).astype(np.int16)
        write_nifti(file_of(tmp_path, "BraTS2021_00001", modality), image)
    (case,) = find_cases(tmp_path)
    found = segment_case(load_segmenter([run], None, "best", mirror=()), case, progress=False)
    subject = load_subject(case, (1.0, 1.0, 1.0), ("t1ce", "flair"))
    image = subject.images[..., [MODALITIES.index("t1ce"), MODALITIES.index("flair")]]
    assert image.shape == (8, 16, 12, 2)
    np.testing.assert_array_equal(found.classes[subject.crop], to_classes(network(image), "regions"))
    assert len(np.unique(found.classes)) > 1


def test_the_orientation_of_the_files_says_what_is_reversed():
    assert reversed_axes(None, False) == ("x", "y")
    assert reversed_axes(None, True) == () == reversed_axes("ras", False)
    assert reversed_axes("LAI", False) == ("x", "z")
    for letters in ("ASL", "LP", "LPX", "LLS"):
        with pytest.raises(InputError, match=f"--orientation {letters}: expected R or L, then A or P, then S or I"):
            reversed_axes(letters, False)
    with pytest.raises(InputError, match="bring every file to RAS; leave it out"):
        reversed_axes("LPS", True)


def test_the_folder_is_found_from_any_place(result):
    checkpoint = result / "fold_0" / "checkpoint_final.pth"
    for given in (result, result / "fold_0", checkpoint):
        found = find_result(given, None, "final", None, None)
        assert found.checkpoint.samefile(checkpoint) and found.plans.samefile(result / "plans.json")
    shutil.copytree(result / "fold_0", result / "fold_all")
    with pytest.raises(InputError, match="has the folds 0, all, each a network of its own; choose with --fold"):
        find_result(result, None, "final", None, None)
    assert find_result(result, "all", "final", None, None).checkpoint.parent.name == "fold_all"


def test_what_is_not_there_is_named(result, tmp_path):
    def find(given, fold=None, kept="final", **given_files):
        return find_result(given, fold, kept, given_files.get("plans"), given_files.get("dataset"))

    with pytest.raises(InputError, match="does not exist; expected a folder like nnUNetTrainer__"):
        find(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds nnUNetTrainer__nnUNetPlans__3d_fullres: give one of them"):
        find(tmp_path)
    with pytest.raises(InputError, match="has no fold 3; there are 0"):
        find(result, "3")
    with pytest.raises(InputError, match="is the folder of one fold, but --fold is 3"):
        find(result / "fold_0", "3")
    with pytest.raises(InputError, match=r"has no checkpoint_best\.pth; there is checkpoint_final\.pth"):
        find(result, kept="best")
    (result / "plans.json").rename(tmp_path / "moved.json")
    with pytest.raises(InputError, match=r"no plans\.json next to it or one folder up.*--plans"):
        find(result)
    assert find(result, plans=tmp_path / "moved.json").plans == tmp_path / "moved.json"


def _retrained(result: Path, trainer: str) -> None:
    """The checkpoint with another trainer's name."""
    path = result / "fold_0" / "checkpoint_final.pth"
    weights = {name: tensor(value) for name, value in read_checkpoint(path).weights.items()}
    arguments = {"configuration": "3d_fullres", "fold": 7}
    save(path, {"network_weights": weights, "trainer_name": trainer, "init_args": arguments})


def test_trainers_that_may_change_the_network_are_refused(result):
    _retrained(result, "nnUNetTrainerBN")
    with pytest.raises(InputError, match=r"trained by nnUNetTrainerBN.*--any-trainer tries anyway"):
        _read(result)
    assert _read(result, any_trainer=True).checkpoint.trainer == "nnUNetTrainerBN"
    _retrained(result, "nnUNetTrainerNoDeepSupervision")
    config = import_config(_read(result))
    assert not config.loss.deep_supervision and config.data.fold == 7


def test_weights_that_do_not_fit_the_plans_leave_nothing_behind(result, tmp_path):
    plans = json.loads((result / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [3, 5]
    (result / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(InputError, match=r"checkpoint_final\.pth: does not fit .*plans\.json: tensor .*"):
        import_nnunet.main([str(result), "--run", str(tmp_path / "run")])
    assert [p.name for p in tmp_path.iterdir()] == [result.name]


def test_a_run_that_is_there_is_replaced_only_when_asked_and_only_by_a_whole_one(result, tmp_path, monkeypatch):
    run = tmp_path / "run"
    arguments = [str(result), "--run", str(run)]
    import_nnunet.main(arguments)
    (run / "note.txt").touch()
    with pytest.raises(InputError, match="holds a run; replace it with --overwrite, or give another --run"):
        import_nnunet.main(arguments)

    def full(*_):
        raise InputError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(imported_run, "save_teacher", full)
        with pytest.raises(InputError, match="no space"):
            import_nnunet.main([*arguments, "--overwrite"])
    assert (run / "note.txt").exists() and default_network(run) == "teacher"
    import_nnunet.main([*arguments, "--overwrite"])
    assert not (run / "note.txt").exists() and default_network(run) == "teacher"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([result.name, "run"])


def test_what_was_found_is_told(capsys, result, tmp_path):
    import_nnunet.main([str(result), "--run", str(tmp_path / "run"), "--orientation", "RAS"])
    told = capsys.readouterr().out
    for line in (
        "channels     flair t1ce",
        "regions      WT = whole tumor, TC = tumor core, ET = enhancing tumor",
        "trained on volumes stored towards RAS",
        f"kd-jax predict {tmp_path / 'run'} PATIENT",
    ):
        assert line in told


def test_it_fits_as_the_teacher_of_a_new_run(run):
    teacher = load_teacher(run)
    given = {"student.modalities": ["flair"], "distillation.weight": 0.1, "distillation.update": "student"}
    config = load_config(run / "config.json", given, [{"teacher": teacher_settings(teacher)}])
    check_teacher(config, teacher, run)
    drawn = jax.eval_shape(lambda: init_state(build_objective(config, None))).teacher.params["network"]
    assert jax.tree.map(jnp.shape, teacher.params) == jax.tree.map(jnp.shape, drawn)
    with pytest.raises(InputError, match=r"its outputs are regions.*use loss.segmentation = dice_bce"):
        check_teacher(load_config(run / "config.json", {**given, "loss.segmentation": "ce"}), teacher, run)
