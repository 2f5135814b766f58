import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.command_line import run_command
from data_pipeline.errors import InputError
from data_pipeline.layouts.find import find_cases
from data_pipeline.reading.nifti import read_label
from kd_jax import postprocess
from kd_jax.inference.load import load_segmenter
from kd_jax.inference.segmenter import segment_case
from kd_jax.metrics import region_scores
from kd_jax.postprocessing.choice import choose_postprocessing
from kd_jax.postprocessing.components import remove_small_enhancing
from kd_jax.postprocessing.decision import (
    CaseCounts,
    best_threshold,
    count_case,
    decide_steps,
    decide_threshold,
    region_dice,
)
from kd_jax.postprocessing.rule import (
    PARTS,
    DecidedOn,
    Postprocessing,
    apply_postprocessing,
    describe_rule,
    load_postprocessing,
    save_postprocessing,
)
from tests.data_pipeline.cases import write_case
from tests.kd_jax.fake_run import STEP, write_run, write_split

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "postprocessing.npz")
SCENARIOS = sorted({name.rpartition("/")[0] for name in GOLDEN})
MM = (1.0, 1.0, 1.0)
CASES = [f"BraTS2021_{i:05d}" for i in range(4)]


def counted(name):
    """The parts of a scenario and its cases."""
    parts = PARTS[name.partition("/")[0]]
    pairs = zip(GOLDEN[f"{name}/prediction"], GOLDEN[f"{name}/reference"], strict=True)
    return parts, [count_case(prediction, reference, MM, parts) for prediction, reference in pairs]


def original(name):
    return json.loads(str(GOLDEN[f"{name}/decision"]))


@pytest.mark.parametrize("name", SCENARIOS)
def test_steps_and_dice_are_nnunet_s(name):
    parts, cases = counted(name)
    decisions = decide_steps(cases, parts)
    applied = [decision for decision in decisions if decision.applied]
    wanted = original(name)
    assert [decision.step for decision in applied] == wanted["steps"]
    assert decisions[0].before == wanted["before"]
    assert (applied[-1].after if applied else decisions[0].before) == wanted["after"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_label_maps_are_nnunet_s(name):
    rule = Postprocessing(tuple(original(name)["steps"]))
    after = [apply_postprocessing(classes, MM, rule) for classes in GOLDEN[f"{name}/prediction"]]
    np.testing.assert_array_equal(after, GOLDEN[f"{name}/output"])


@pytest.mark.parametrize("outputs", PARTS)
def test_the_scenarios_take_every_step_and_leave_every_step_out(outputs):
    taken = [set(original(name)["steps"]) for name in SCENARIOS if name.startswith(outputs)]
    steps = {"foreground", *PARTS[outputs]}
    assert set().union(*taken) == steps and not set.intersection(*taken)


def test_counts_are_those_of_the_map_after_the_steps():
    name = "regions/one lesion, many strays"
    parts, cases = counted(name)
    steps = ("foreground", *parts)
    sequences = [chosen for count in range(len(steps) + 1) for chosen in combinations(steps, count)]
    assert set(cases[0].after) == set(sequences)
    for sequence in sequences:
        after = apply_postprocessing(GOLDEN[f"{name}/prediction"][0], MM, Postprocessing(sequence))
        reference = GOLDEN[f"{name}/reference"][0]
        for i, j in ((1, 1), (3, 3), (0, 2), (2, 0), (1, 3)):
            assert cases[0].after[sequence][i, j] == np.count_nonzero((reference == i) & (after == j))


def test_foreground_needs_a_better_mean_and_no_worse_class():
    before = np.diag([0, 50, 50, 50])

    def case(necrosis_lost, oedema_false):
        """Keeping the largest foreground loses true necrosis and removes false oedema; later steps do nothing."""
        first, second = before.copy(), before.copy()
        first[0, 2] = oedema_false
        second[1, :2] = necrosis_lost, 50 - necrosis_lost
        done = [c for count in range(5) for c in combinations(("foreground", "NCR", "ED", "ET"), count)]
        return CaseCounts(MM, {steps: second if "foreground" in steps else first for steps in done})

    for lost, false, applied in ((0, 30, True), (1, 30, False), (0, 0, False)):
        assert decide_steps([case(lost, false)], PARTS["classes"])[0].applied is applied


def test_steps_are_applied_in_their_order():
    classes = np.array([[[2, 2, 2, 3, 0, 3, 3]]], np.uint8)
    after = [apply_postprocessing(classes, MM, Postprocessing(steps)) for steps in (("foreground", "ET"), ("ET", "WT"))]
    np.testing.assert_array_equal(np.concatenate(after)[:, 0], [[2, 2, 2, 3, 0, 0, 0], [2, 2, 2, 0, 0, 0, 0]])


def et_case(predicted, true, both):
    """Voxels of ET; what is predicted by mistake lies in the background, what is missed is taken for oedema."""
    confusion = np.zeros((4, 4), np.int64)
    confusion[3, 3], confusion[0, 3], confusion[3, 2] = both, predicted - both, true - both
    return CaseCounts((2.0, 1.0, 1.0), {(): confusion})


def test_the_threshold_with_the_best_dice_is_taken():
    cases = [et_case(30, 0, 0), et_case(200, 200, 200), et_case(50, 100, 50)]  # 0.06, 0.4 and 0.1 ml
    tried = decide_threshold(cases, (), [1.0, 0.06, 0.07, 0.1, 0.2])
    assert [t.min_et_ml for t in tried] == [None, 0.06, 0.07, 0.1, 0.2, 1.0]
    third = 2 / 3  # of the case whose ET is half found
    expected = [(1 + third) / 3] * 2 + [(2 + third) / 3] * 2 + [2 / 3, 1 / 3]
    assert [t.et_dice for t in tried] == pytest.approx(expected)
    assert best_threshold(tried) == 0.07
    assert best_threshold(decide_threshold(cases[1:], (), [0.05, 1.0])) is None


@pytest.mark.parametrize("min_ml", [None, 0.01, 0.1, 0.2])
@pytest.mark.parametrize("name", ["classes/enhancing tumour only by mistake", "classes/two lesions, few strays"])
def test_the_dice_of_regions_is_that_of_the_maps(name, min_ml):
    _, cases = counted(name)
    for region in ("WT", "TC", "ET"):
        scores = []
        for prediction, reference in zip(GOLDEN[f"{name}/prediction"], GOLDEN[f"{name}/reference"], strict=True):
            after = prediction if min_ml is None else remove_small_enhancing(prediction, MM, min_ml)
            scores.append(region_scores(after, reference, MM, "brats")[region]["dice"])
        assert region_dice(cases, (), region, min_ml) == pytest.approx(np.mean(scores), abs=1e-12)


RULE = Postprocessing(("foreground", "ET"), 0.5, DecidedOn({"runs/a": 3}, ("x", "y"), "best", ("x",), "classes"))


def test_a_rule_is_read_as_it_was_written_and_that_of_the_other_network_stays(tmp_path):
    assert load_postprocessing(tmp_path, "student") is None
    save_postprocessing(tmp_path, "student", RULE)
    save_postprocessing(tmp_path, "teacher", Postprocessing(("NCR",)))
    assert load_postprocessing(tmp_path, "student") == RULE
    assert load_postprocessing(tmp_path, "teacher") == Postprocessing(("NCR",))


@pytest.mark.parametrize("text", ["{", '{"student": {"steps": ["brain"]}}', '{"student": {"min_et_ml": -1}}', "[]"])
def test_a_damaged_rule_is_named(tmp_path, text):
    (tmp_path / "postprocessing.json").write_text(text)
    with pytest.raises(InputError, match=r"postprocessing\.json: not a rule that kd-jax postprocess wrote"):
        load_postprocessing(tmp_path, "student")


def test_a_rule_is_described():
    assert describe_rule(RULE) == (
        "only the largest component of foreground, then of ET is kept; ET below 0.5 ml (500 voxels of 1 mm³) becomes "
        "NCR (decided on 2 held-out cases of runs/a)"
    )
    assert describe_rule(Postprocessing()) == "none"


def test_which_rule_applies(tmp_path):
    a, b, c, none = (tmp_path / name for name in ("a", "b", "c", "none"))
    for run, rule in ((a, RULE), (b, Postprocessing(("foreground", "ET"), 0.5)), (c, Postprocessing(("ET",)))):
        save_postprocessing(run, "student", rule)

    def chosen(option, *runs, network="student", min_et_ml=None):
        return choose_postprocessing(option, [(run, network) for run in runs], min_et_ml)

    assert chosen("auto", a).rule == RULE and describe_rule(RULE) in chosen("auto", a).line
    assert chosen("auto", a, b).rule == RULE
    nothing = Postprocessing()
    for choice, said in (
        (chosen("auto", a, c), "different rules"),
        (chosen("auto", a, none), "1 of the 2 runs have no rule"),
        (chosen("auto", none), "none decided"),
        (chosen("auto", a, network="teacher"), "none decided"),
        (chosen("none", a), "none, as asked"),
    ):
        assert choice.rule == nothing and said in choice.line
    assert chosen(str(c / "postprocessing.json"), a, none).rule == Postprocessing(("ET",))
    lower = chosen("auto", a, min_et_ml=0.1)
    assert lower.rule.does_as(Postprocessing(("foreground", "ET"), 0.1))
    assert "as asked, ET below 0.1 ml (100 voxels of 1 mm³) becomes NCR, not below 0.5 ml" in lower.line
    assert chosen("none", a, min_et_ml=0.1).rule == Postprocessing(min_et_ml=0.1)
    with pytest.raises(InputError, match="holds a rule for the student, not for the teacher"):
        chosen(str(a / "postprocessing.json"), a, network="teacher")
    with pytest.raises(InputError, match="cannot be read"):
        chosen(str(tmp_path / "nothing.json"), a)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for number in range(len(CASES)):
        write_case(folder, rng=rng, number=number)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return [write_run(tmp_path_factory.mktemp("template") / str(seed), student=seed) / "checkpoints" for seed in (3, 4)]


@pytest.fixture
def folds(tmp_path, data, checkpoints):
    """Two runs with random networks that hold out two cases each."""
    runs = tmp_path / "fold_0", tmp_path / "fold_1"
    for run, held, source in zip(runs, (CASES[:2], CASES[2:]), checkpoints, strict=True):
        run.mkdir()
        (run / "checkpoints").symlink_to(source)
        write_split(run, data, [case for case in CASES if case not in held], held)
    return runs


def run(*arguments):
    return run_command(postprocess.main, [str(a) for a in arguments])


def test_held_out_cases_of_all_runs_decide_together(folds, data, capsys):
    assert run(*folds, "--min-et", 0.001, 0.2) == 0
    rule, same = (load_postprocessing(fold, "student") for fold in folds)
    assert rule == same and rule.decided_on == DecidedOn(
        {str(fold): STEP for fold in folds}, tuple(CASES), "best", (), "classes"
    )
    scores = {"before": [], "after": []}
    for fold, held in zip(folds, (CASES[:2], CASES[2:]), strict=True):
        segmenter = load_segmenter([fold], None, "best", mirror=())
        for case in find_cases(data):
            if case.id in held:
                reference, geometry = read_label(case.label, case.convention)
                classes = segment_case(segmenter, case).classes
                after = apply_postprocessing(classes, geometry.spacing, rule)
                for when, found in (("before", classes), ("after", after)):
                    scores[when].append(region_scores(found, reference, geometry.spacing, "brats"))
    for when, cases in scores.items():
        for region, dice in rule.region_dice[when].items():
            assert dice == pytest.approx(np.mean([case[region]["dice"] for case in cases]), abs=1e-12)
    out = capsys.readouterr().out
    assert "largest of foreground" in out and "below 0.001 ml becomes NCR" in out and describe_rule(rule) in out
    written = (folds[0] / "postprocessing.json").read_bytes()
    assert run(*folds, "--min-et", 0.2, 0.001) == 2
    assert "holds a rule for the student; replace it with --overwrite" in capsys.readouterr().err
    assert run(*folds, "--min-et", 0.2, 0.001, "--overwrite") == 0
    assert (folds[0] / "postprocessing.json").read_bytes() == written


def test_cases_that_were_trained_on_decide_nothing(folds, data, capsys):
    write_split(folds[0], data, CASES, CASES)
    assert run(folds[0]) == 2
    assert f"4 of the 4 cases were trained on (first {CASES[0]})" in capsys.readouterr().err
    assert not (folds[0] / "postprocessing.json").exists()


def test_a_case_without_label_is_said_before_the_work(folds, data, tmp_path, capsys):
    write_case(tmp_path / "unlabelled", rng=np.random.default_rng(1), number=9, label=False)
    assert run(folds[0], "--data", tmp_path / "unlabelled") == 2
    assert "BraTS2021_00009: has no label, and a decision needs every one" in capsys.readouterr().err


def test_a_threshold_is_a_volume(folds, capsys):
    assert run(folds[0], "--min-et", "0.5", "-1") == 2
    assert 'invalid value "(0.5, -1.0)" for --min-et. Must be > 0.' in capsys.readouterr().err
