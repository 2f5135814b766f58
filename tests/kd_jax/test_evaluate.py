import csv
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_pipeline.command_line import run_command
from kd_jax import evaluate
from kd_jax.metrics import MISSING_REGION_HD95_MM
from kd_jax.postprocessing.rule import DecidedOn, Postprocessing, save_postprocessing
from tests.data_pipeline.cases import file_of, tiny_classes, write_case, write_nifti
from tests.kd_jax.fake_run import STEP, write_run, write_split

REAL = Path(__file__).resolve().parents[2] / "../shared/data"
SHAPE = (14, 16, 12)
CASES = [f"BraTS2021_{i:05d}" for i in range(5)]


@pytest.fixture
def data(tmp_path):
    """Four cases to score (3 without T1 and T2), and one without label."""
    rng = np.random.default_rng(0)
    for number in range(3):
        write_case(tmp_path / "data", rng=rng, number=number)
    write_case(tmp_path / "data", rng=rng, number=3, modalities=("t1ce", "flair"))
    write_case(tmp_path / "data", rng=rng, number=4, label=False)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(runs, data, request):
    """A run whose student says ET and whose teacher says background everywhere; its evaluation starts empty."""
    folder = runs / request.node.name
    template = runs / "template"
    if not template.exists():
        write_run(template, student="ET", teacher="background")
    folder.mkdir()
    (folder / "checkpoints").symlink_to(template / "checkpoints")
    write_split(folder, data, train=[CASES[0]], validation=CASES[1:])
    return folder


def evaluated(*arguments):
    return run_command(evaluate.main, [str(a) for a in arguments])


def rows(path):
    return {
        row.pop("case"): {k: float(v) if v else math.nan for k, v in row.items()} for row in csv.DictReader(path.open())
    }


def brain_box(case):
    """Where a network that says ET puts it: the bounding box of what the student sees, on disk."""
    union = np.any([nib.load(file_of(case, case.name, m)).get_fdata() != 0 for m in ("t1ce", "flair")], axis=0)
    box = np.zeros(union.shape, bool)
    box[tuple(slice(i.min(), i.max() + 1) for i in np.nonzero(union))] = True
    return box


def test_held_out_cases_are_scored_by_hand_computed_values(run, data, capsys):
    assert evaluated(run) == 0
    scores = rows(run / "evaluation" / "validation" / "student.csv")
    assert list(scores) == CASES[1:4]  # 0 was trained on, 4 has no label
    classes = tiny_classes(SHAPE)
    for case, row in scores.items():
        box = brain_box(data / case)
        for region, inside in (("WT", classes > 0), ("TC", (classes == 1) | (classes == 3)), ("ET", classes == 3)):
            both = np.count_nonzero(box & inside)
            assert row[f"{region}_dice"] == pytest.approx(2 * both / (box.sum() + inside.sum()), abs=1e-5)
            assert row[f"{region}_sensitivity"] == pytest.approx(both / inside.sum(), abs=1e-5)
            assert row[f"{region}_specificity"] == pytest.approx((~box & ~inside).sum() / (~inside).sum(), abs=1e-5)
            assert row[f"{region}_volume_ml"] == pytest.approx(box.sum() / 1000, abs=1e-5)
            assert row[f"{region}_reference_volume_ml"] == pytest.approx(inside.sum() / 1000, abs=1e-5)
    out = capsys.readouterr().out
    assert "student: skipped BraTS2021_00004: no label" in out
    assert f"Data: {data} (embedded phantom: says nothing about patients)" in out
    assert "Empty regions, brats: both empty: Dice 1, HD95 0" in out and "HD95: 95th percentile" in out


def test_the_summary_says_what_was_scored_and_how(run, data):
    assert evaluated(run, "--mirror") == 0
    scores = rows(run / "evaluation" / "validation" / "student.csv")
    summary = json.loads((run / "evaluation" / "validation" / "summary.json").read_text())
    student = summary["networks"]["student"]
    assert (summary["runs"], summary["combination"], summary["checkpoint"]) == ([str(run)], "one run", "best")
    (member,) = student["members"]
    assert (member["run"], member["network"], member["step"]) == (str(run), "student", STEP)
    assert (member["modalities"], member["outputs"], student["cases"]) == (["t1ce", "flair"], "classes", CASES[1:4])
    expected = {"name": "validation", "paths": [str(data)], "cases": 4, "phantom": True, "trained_on": []}
    assert summary["data"] == expected and summary["mirror"] == ["x", "y", "z"]
    assert member["spacing_mm"] == [1.0, 1.0, 1.0] and summary["empty_regions"]["rule"] == "brats"
    assert {"kd_jax", "jax", "scipy"} <= set(summary["versions"])
    values = [row["TC_dice"] for row in scores.values()]
    dice = student["regions"]["TC"]["dice"]
    assert dice["mean"] == pytest.approx(np.mean(values), rel=1e-4)
    assert dice["sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-2, abs=1e-6)
    assert dice["iqr"] == pytest.approx(dice["q3"] - dice["q1"])
    assert (dice["n"], dice["left_out"], dice["reference_empty"]) == (3, 0, 0)


def test_both_networks_side_by_side_with_paired_differences(run, capsys):
    assert evaluated(run, "--network", "both") == 0
    folder = run / "evaluation" / "validation"
    student, teacher = rows(folder / "student.csv"), rows(folder / "teacher.csv")
    assert list(teacher) == CASES[1:3]  # 3 lacks T1 and T2
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["networks"]["teacher"]["skipped"][CASES[3]] == "no t1, t2, which the teacher needs"
    paired = summary["paired_difference"]
    assert paired["cases"] == CASES[1:3]
    expected = np.mean([student[c]["WT_dice"] - teacher[c]["WT_dice"] for c in CASES[1:3]])
    assert expected > 0.1 and all(teacher[c]["WT_dice"] == 0 for c in teacher)
    assert paired["regions"]["WT"]["dice"]["mean"] == pytest.approx(expected, rel=1e-4)
    out = capsys.readouterr().out
    assert "student and teacher on the same 2 cases" in out and "student - teacher" in out
    assert max(map(len, out.split("Data: ")[0].splitlines())) <= 80 and "…" not in out  # fits a plain terminal


@pytest.mark.parametrize(("rule", "hd95"), [("brats", MISSING_REGION_HD95_MM), ("nan", math.nan)])
def test_the_rule_for_empty_regions_is_applied_and_printed(run, data, capsys, rule, hd95):
    assert evaluated(run, "--network", "teacher", "--empty", rule) == 0  # says background everywhere
    row = rows(run / "evaluation" / "validation" / "teacher.csv")[CASES[1]]
    assert row["ET_dice"] == 0
    assert row["ET_hd95_mm"] == pytest.approx(hd95, abs=1e-3, nan_ok=True)
    assert f"Empty regions, {rule}: " in capsys.readouterr().out
    summary = json.loads((run / "evaluation" / "validation" / "summary.json").read_text())
    metric = summary["networks"]["teacher"]["regions"]["ET"]["hd95_mm"]
    assert (metric["n"], metric["left_out"]) == ((2, 0) if rule == "brats" else (0, 2))
    assert (metric["mean"] is None) == (rule == "nan")


def test_one_patient_of_a_folder_and_a_warning_about_training_cases(run, data, capsys):
    assert evaluated(run, "--data", data / CASES[0], "--save-predictions") == 0
    folder = run / "evaluation" / CASES[0]
    assert list(rows(folder / "student.csv")) == [CASES[0]]
    out = capsys.readouterr().out
    assert "Warning: the run was trained on 1 of these cases" in out and "phantom" not in out
    image = nib.load(folder / "predictions_student" / f"{CASES[0]}.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), np.where(brain_box(data / CASES[0]), 4, 0))
    np.testing.assert_array_equal(image.affine, nib.load(file_of(data / CASES[0], CASES[0], "flair")).affine)


def test_a_resampling_network_is_scored_at_the_original_resolution(tmp_path, data):
    run = write_run(tmp_path / "coarse", student="ET", spacing=2.0)
    assert evaluated(run, "--data", data / CASES[0], "--output", tmp_path / "scores") == 0
    row = rows(tmp_path / "scores" / "student.csv")[CASES[0]]
    assert row["ET_volume_ml"] == pytest.approx(brain_box(data / CASES[0]).sum() / 1000)
    assert row["ET_reference_volume_ml"] == pytest.approx((tiny_classes(SHAPE) == 3).sum() / 1000, rel=1e-4)


@pytest.fixture
def folds(runs, data, run, request):
    """Two runs of one data set that held out other cases; the second says oedema everywhere."""
    second = runs / f"{request.node.name} second"
    template = runs / "template of oedema"
    if not template.exists():
        write_run(template, student="ED", teacher="background")
    second.mkdir()
    (second / "checkpoints").symlink_to(template / "checkpoints")
    write_split(run, data, train=CASES[2:4], validation=CASES[:2])
    write_split(second, data, train=CASES[:2], validation=CASES[2:4])
    return run, second


def test_a_cross_validation_pools_the_cases_that_each_run_held_out(folds, data, capsys):
    assert evaluated(*folds) == 0
    folder = folds[0] / "evaluation" / "cross-validation"
    scores = rows(folder / "student.csv")
    assert list(scores) == CASES[:4]
    for case, row in scores.items():
        volume = brain_box(data / case).sum() / 1000
        assert row["WT_volume_ml"] == pytest.approx(volume, abs=1e-5)
        assert row["ET_volume_ml"] == pytest.approx(volume if case in CASES[:2] else 0, abs=1e-5)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["combination"] == "cross-validation: each of 2 runs scored the cases it held out, pooled"
    assert summary["networks"]["student"]["regions"]["WT"]["dice"]["n"] == 4
    assert [member["run"] for member in summary["networks"]["student"]["members"]] == [str(run) for run in folds]
    assert (summary["data"]["trained_on"], summary["data"]["paths"]) == ([], [str(data)])
    out = capsys.readouterr().out
    assert "Runs: cross-validation: each of 2 runs" in out and "Warning" not in out


def test_a_case_held_out_twice_is_no_cross_validation(folds, data, capsys):
    write_split(folds[1], data, train=CASES[:1], validation=CASES[1:4])
    assert evaluated(*folds) == 2
    assert f"{folds[1]}: holds out {CASES[1]}, and so does {folds[0]}" in capsys.readouterr().err


def test_an_ensemble_is_scored_on_given_cases(folds, data, capsys):
    assert evaluated(*folds, "--data", data / CASES[0]) == 0
    folder = folds[0] / "evaluation" / f"{CASES[0]}_ensemble"
    row = rows(folder / "student.csv")[CASES[0]]
    assert row["WT_volume_ml"] == pytest.approx(brain_box(data / CASES[0]).sum() / 1000, abs=1e-5)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["combination"] == "ensemble: logits of 2 runs averaged on the original grid"
    assert summary["data"]["trained_on"] == [CASES[0]]  # by the second run
    assert "Warning: runs were trained on 1 of these cases" in capsys.readouterr().out
    assert evaluated(*folds[::-1], "--data", data / CASES[0], "--output", folder) == 2
    assert "holds the evaluation of the runs" in capsys.readouterr().err


def test_files_that_cannot_be_used_are_failures_and_the_rest_is_scored(run, data, capsys):
    file_of(data / CASES[1], CASES[1], "flair").write_bytes(b"")
    write_nifti(file_of(data / CASES[2], CASES[2], "seg"), np.full(SHAPE, 3, np.uint8))
    assert evaluated(run) == 1
    assert list(rows(run / "evaluation" / "validation" / "student.csv")) == [CASES[3]]
    failed = json.loads((run / "evaluation" / "validation" / "summary.json").read_text())["networks"]["student"][
        "failed"
    ]
    assert "zero bytes" in failed[CASES[1]] and "found label 3, expected one of 0, 1, 2, 4" in failed[CASES[2]]
    assert capsys.readouterr().err.count("error: ") == 2


def test_a_label_map_overrides_the_names(run, data):
    assert evaluated(run, "--data", data / CASES[0], "--label-map", "4=ED,2=NCR,1=ET") == 0
    row = rows(run / "evaluation" / CASES[0] / "student.csv")[CASES[0]]
    assert row["ET_reference_volume_ml"] == pytest.approx((tiny_classes(SHAPE) == 1).sum() / 1000, abs=1e-6)


def test_nothing_to_score_is_an_error(run, data, capsys):
    assert evaluated(run, "--data", data / CASES[4]) == 2
    assert capsys.readouterr().err.endswith(
        f"none of the 1 cases can be scored, nothing is written, first {CASES[4]}: no label\n"
    )


def test_results_of_another_data_set_are_not_overwritten(run, data, tmp_path, capsys):
    other = write_case(tmp_path / "elsewhere", rng=np.random.default_rng(1), number=0)
    assert evaluated(run, "--data", data / CASES[0]) == 0
    assert evaluated(run, "--data", data / CASES[0]) == 0
    assert evaluated(run, "--data", other) == 2
    assert f"holds the evaluation of {data / CASES[0]}, not of {other}" in capsys.readouterr().err
    assert evaluated(run, "--data", other, "--output", tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run, data: (run / "split.json").unlink(), "split.json: not there, so the held-out cases are unknown"),
        (lambda run, data: (run / "split.json").write_text('{"train": []}'), "split.json: damaged"),
        (lambda run, data: write_split(run, data / "moved", [], CASES[:1]), "are no longer there; say where they are"),
        (lambda run, data: write_split(run, data, [], ["x", "y"]), "2 of the 2 held-out cases"),
    ],
)
def test_a_split_that_cannot_be_followed_is_explained(run, data, capsys, change, message):
    change(run, data)
    assert evaluated(run) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_a_folder_that_is_no_run_is_an_error_that_leaves_nothing(tmp_path, data, capsys):
    assert evaluated(tmp_path / "nowhere", "--data", data) == 2
    assert "no such run folder" in capsys.readouterr().err and not (tmp_path / "nowhere").exists()


def test_a_missing_checkpoint_is_named(run, capsys):
    assert evaluated(run, "--checkpoint", "latest") == 2
    assert "has no latest checkpoint" in capsys.readouterr().err


def test_a_real_patient_with_two_modalities_gets_its_dice(tmp_path, capsys):
    case = REAL / "brats_2013_pat0001_1"
    if not case.is_dir():
        pytest.skip(f"{REAL} is not there")
    run = write_run(tmp_path / "run", student="ED", spacing=4.0, patch=32)
    assert evaluated(run, "--data", case) == 0
    row = rows(run / "evaluation" / case.name / "student.csv")[case.name]
    # The tumour lies inside the brain's box, which the network takes for tumour: 2 |reference| / (|box| + |reference|).
    predicted, reference = row["WT_volume_ml"], row["WT_reference_volume_ml"]
    labels = np.asanyarray(nib.load(case / f"{case.name}_seg.nii.gz").dataobj)
    assert reference == pytest.approx(np.count_nonzero(labels) / 1000) and row["WT_sensitivity"] == 1
    assert row["WT_dice"] == pytest.approx(2 * reference / (predicted + reference), rel=1e-4)
    assert f"{row['WT_dice']:.3f}" in capsys.readouterr().out


def test_scores_are_of_the_post_processed_maps_and_say_what_was_done(run, data, capsys):
    decided = DecidedOn({str(run): STEP}, (CASES[1],), "best", (), "classes")
    save_postprocessing(run, "student", Postprocessing(min_et_ml=100.0, decided_on=decided))
    assert evaluated(run) == 0
    folder = run / "evaluation" / "validation"
    assert all(row["ET_volume_ml"] == 0 and row["TC_volume_ml"] > 0 for row in rows(folder / "student.csv").values())
    found = json.loads((folder / "summary.json").read_text())["networks"]["student"]
    assert "ET below 100 ml" in found["postprocessing"] and found["decided_postprocessing"] == [CASES[1]]
    shown = capsys.readouterr().out
    assert "ET below 100 ml" in shown and "decided on 1 of these cases" in shown
    assert evaluated(run, "--postprocess", "none") == 0
    assert all(row["ET_volume_ml"] > 0 for row in rows(folder / "student.csv").values())
