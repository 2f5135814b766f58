"""Wrong input and refusing disks, through the commands themselves: one line per problem, nothing half-written."""

import errno
import json
import os
import re
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import files as data_files
from data_pipeline.command_line import CASES_FAILED, COMMAND_ERROR, run_command
from data_pipeline.layouts.table import LAYOUTS
from kd_jax import evaluate, predict, train
from kd_jax.evaluation import score
from kd_jax.inference import cases as inference_cases
from kd_jax.inference import predicted_files
from kd_jax.runs.restore import restore_network
from kd_jax.runs.store import Checkpoints
from kd_jax.training import fit, journal, loop
from kd_jax.training.journal import Journal
from tests.data_pipeline.cases import file_of, rewrite, write_case
from tests.kd_jax.fake_run import write_run, write_split

SHAPE = (14, 16, 12)
TINY = ["--teacher.features=2,3", "--student.features=2,3", "--data.spacing=1,1,1", "--data.patch=8,8,8"]
TINY += ["--data.folds=2", "--train.iterations=1", "--train.validation_iterations=1"]

# Role of the file in a case, what happens to it, what is found, what to do.
PROBLEMS = {
    "truncated": ("flair", lambda f: f.write_bytes(f.read_bytes()[:-200]), "truncated or damaged", "copy or download"),
    "nan": ("t1ce", lambda f: rewrite(f, lambda v: np.where(v > 0, v, np.nan)), "are NaN or Inf", "preprocessing"),
    "shapes": ("flair", lambda f: rewrite(f, lambda v: v[:-1]), "shape (13, 16, 12) differs from", "to one grid"),
    "label": ("seg", lambda f: rewrite(f, lambda v: np.full_like(v, 7)), "found label 7, expected one", "--label-map"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("run") / "run", student="ET")
    write_split(folder, folder, train=[], validation=[])
    return folder


@pytest.fixture
def data(tmp_path):
    """One good case."""
    write_case(tmp_path / "data", rng=np.random.default_rng(0), shape=SHAPE)
    return tmp_path / "data"


@pytest.fixture
def one_process(monkeypatch):
    """Cases are prepared in this process: starting others takes longer than the work."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


def spoil(data, problem, number=1):
    """Write a case with a problem; returns the file that has it."""
    case = write_case(data, rng=np.random.default_rng(number), number=number, shape=SHAPE)
    role, change, *_ = PROBLEMS[problem]
    file = file_of(case, case.name, role)
    change(file)
    return file


def command(main, *arguments):
    return run_command(main, [str(a) for a in arguments])


def trained(data, out, *options):
    return command(
        train.main, "--data.root", data, "--data.cache", out / "cache", "--run", out / "run", *TINY, *options
    )


def complaints(capsys):
    """The lines on stderr without those of progress and those that say what was recognised and will be done."""
    lines = capsys.readouterr().err.splitlines()
    expected = r"\[\d+/\d+\] |  (warning|note): |.*\d+%\||\d+ cases?(,| as in) |\d+ to prepare: "
    return [line for line in lines if line.strip() and not re.match(expected, line)]


def the_error(capsys):
    """The one error on stderr; Orbax's threads and JAX's cache may warn of the same disk beside it."""
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("error:")]
    return line


def snapshot(folder):
    """Every file with its content, and every folder."""
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def temporary(folder):
    return [p for p in folder.rglob("*") if "tmp" in p.name or p.name == ".write-test"]


def assert_names(line, file, problem):
    *_, found, remedy = PROBLEMS[problem]
    assert str(file) in line and found in line and remedy in line


@contextmanager
def refusing_disk():
    """The kernel refuses every write that would put something into a file, also to libraries in C++."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def disk_that_fills(owner, name, when=lambda *a: True):
    """The disk refuses from the moment on when a function of a module or class is called."""
    original = getattr(owner, name)
    with ExitStack() as disk, pytest.MonkeyPatch.context() as patches:

        def called(*args):
            if when(*args):
                patches.setattr(owner, name, original)
                disk.enter_context(refusing_disk())
            return original(*args)

        patches.setattr(owner, name, called)
        yield


def read_only(monkeypatch, folder):
    """Refuse what a read-only file system refuses; permissions would not stop a superuser."""

    def guarded(original):
        def call(path, *args, **kwargs):
            if Path(path).is_relative_to(folder):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return original(path, *args, **kwargs)

        return call

    opened = Path.open
    monkeypatch.setattr(os, "mkdir", guarded(os.mkdir))
    monkeypatch.setattr(
        Path, "open", lambda p, mode="r", *a, **k: (opened if "r" in mode else guarded(opened))(p, mode, *a, **k)
    )


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("network", ["student", "both"])
def test_evaluate_names_the_file_once_and_scores_the_others(run, data, tmp_path, capsys, problem, network):
    file = spoil(data, problem)
    out = tmp_path / "out"
    assert command(evaluate.main, run, "--data", data, "--output", out, "--network", network) == CASES_FAILED
    (line,) = complaints(capsys)
    assert line.startswith(f"error: {file.parent.name}: ")
    assert_names(line, file, problem)
    networks = ["student"] if network == "student" else ["student", "teacher"]
    assert {p.name for p in out.iterdir()} == {"cases.png", "summary.json", *(f"{n}.csv" for n in networks)}
    assert temporary(tmp_path) == []


def test_evaluate_without_a_usable_case_writes_nothing(run, data, tmp_path, capsys):
    file = spoil(data, "nan")
    before = snapshot(tmp_path)
    assert command(evaluate.main, run, "--data", file.parent, "--output", tmp_path / "out") == COMMAND_ERROR
    first, last = complaints(capsys)
    assert_names(first, file, "nan")
    assert last == f"error: {file.parent}: none of the 1 cases can be scored, nothing is written"
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p != "label"])  # predict does not read labels
def test_predict_names_the_file_once_and_segments_the_others(run, data, tmp_path, capsys, problem):
    file = spoil(data, problem)
    assert command(predict.main, run, data, "-o", tmp_path / "out") == CASES_FAILED
    line, *commands, summary = complaints(capsys)
    assert_names(line, file, problem)
    assert all(command.startswith("  ") for command in commands) and bool(commands) == (problem == "shapes")
    assert summary == f"1 of 2 cases failed, see {tmp_path / 'out' / 'failures.json'}"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"BraTS2021_00000.nii.gz", "failures.json"}
    assert list(json.loads((tmp_path / "out" / "failures.json").read_text())) == [file.parent.name]


def test_train_lists_all_problems_at_once_and_makes_no_run(data, tmp_path, capsys, one_process):
    files = {problem: spoil(data, problem, number) for number, problem in enumerate(PROBLEMS, 1)}
    before = snapshot(data)
    assert trained(data, tmp_path) == COMMAND_ERROR
    heading, *lines = complaints(capsys)
    assert heading.startswith("error: 4 of 5 cases cannot be used; repair them") and "skip" in heading
    assert len(lines) == 4
    for line, (problem, file) in zip(lines, files.items(), strict=True):
        assert_names(line, file, problem)
        assert line == line.rstrip()
    assert not (tmp_path / "run").exists() and temporary(tmp_path) == []
    assert snapshot(data) == before


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_a_folder_without_cases(run, tmp_path, capsys, verb, one_process):
    empty = tmp_path / "empty"
    empty.mkdir()
    before = snapshot(tmp_path)
    status = {
        "train": lambda: trained(empty, tmp_path),
        "evaluate": lambda: command(evaluate.main, run, "--data", empty, "--output", tmp_path / "out"),
        "predict": lambda: command(predict.main, run, empty, "-o", tmp_path / "out"),
    }[verb]()
    assert status == COMMAND_ERROR
    line, *layouts = complaints(capsys)
    assert line.startswith(f"error: {empty}: no cases found; found no file; name the files as in one of these")
    assert len(layouts) == len(LAYOUTS) and all(layout.startswith("  ") for layout in layouts)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("toml", "options", "said"),
    [
        ("[data]\npach = [8, 8, 8]", [], ["unknown key data.pach", "did you mean patch?", "allowed in [data]"]),
        ("[dta]\nroot = 'x'", [], ["unknown key dta", "did you mean data?"]),
        ("[train]\nepochs = 0", [], ["train.epochs: input should be greater than 0, found 0"]),
        ("[train]\nepochs = 0\n[loss]\nfocal = 2", [], ["train.epochs", "unknown key loss.focal"]),
        ("[data]\npatch = [8, 8", [], ["settings.toml: not a readable .toml file", "correct that line"]),
        ("", ["--data.fold", "9"], ["data.fold is 9; allowed: 0 to 4"]),
        ("", ["--student.modalities", "flair", "dwi"], ["student.modalities", "'t1ce'", "'dwi'"]),
        (None, [], ["settings.toml: no such configuration file or preset", "presets nnunet, paper"]),
    ],
)
def test_settings_that_cannot_be(tmp_path, capsys, toml, options, said):
    file = tmp_path / "settings.toml"
    if toml is not None:
        file.write_text(toml)
    before = snapshot(tmp_path)
    assert command(train.main, "--config", file, "--run", tmp_path / "run", *options) == COMMAND_ERROR
    (line,) = complaints(capsys)
    assert line.startswith("error: ") and all(part in line for part in said)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_a_run_that_is_no_run(data, tmp_path, capsys, verb, there):
    folder = tmp_path / "no_run"
    if there:
        folder.mkdir()
    before = snapshot(tmp_path)
    status = {
        "train": lambda: command(train.main, "--run", folder, "--resume"),
        "evaluate": lambda: command(evaluate.main, folder, "--data", data, "--output", tmp_path / "out"),
        "predict": lambda: command(predict.main, folder, data, "-o", tmp_path / "out"),
    }[verb]()
    assert status == COMMAND_ERROR
    (line,) = complaints(capsys)
    assert re.match(rf"error: {folder}: (not a|no such) run folder.*give the folder that .*train", line)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_a_read_only_folder_is_found_before_the_work(run, data, tmp_path, capsys, monkeypatch, verb, one_process):
    out = tmp_path / "disk"
    out.mkdir()
    read_only(monkeypatch, out)
    for owner, work in ((fit, "gather_cases"), (inference_cases, "apply_segmenter")):
        monkeypatch.setattr(owner, work, lambda *a, **k: pytest.fail("the work was begun"))
    status = {
        "train": lambda: trained(data, out),
        "evaluate": lambda: command(evaluate.main, run, "--data", data, "--output", out / "scores"),
        "predict": lambda: command(predict.main, run, data, "-o", out / "labels"),
    }[verb]()
    assert status == COMMAND_ERROR
    (line,) = complaints(capsys)
    assert re.match(rf"error: {out}/\w+: cannot be written \(Read-only file system\); choose a folder", line)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_a_full_disk_is_found_before_the_work(run, data, tmp_path, capsys, monkeypatch, verb, one_process):
    for owner, work in ((fit, "gather_cases"), (inference_cases, "apply_segmenter")):
        monkeypatch.setattr(owner, work, lambda *a, **k: pytest.fail("the work was begun"))
    before = snapshot(tmp_path)
    with refusing_disk():
        status = {
            "train": lambda: trained(data, tmp_path),
            "evaluate": lambda: command(evaluate.main, run, "--data", data, "--output", tmp_path / "scores"),
            "predict": lambda: command(predict.main, run, data, "-o", tmp_path / "labels"),
        }[verb]()
    assert status == COMMAND_ERROR
    (line,) = complaints(capsys)
    assert re.match(rf"error: {tmp_path}/\w+: cannot be written \(File too large\); .*with free space", line)
    assert snapshot(tmp_path) == before


def test_a_disk_that_fills_during_predict_stops_it_at_the_first_case(run, data, tmp_path, capsys):
    write_case(data, rng=np.random.default_rng(1), number=1, shape=SHAPE)
    with disk_that_fills(predicted_files, "write_label"):
        assert command(predict.main, run, data, "-o", tmp_path / "out", "--probabilities") == COMMAND_ERROR
    line = the_error(capsys)
    assert line.startswith(f"error: {tmp_path / 'out' / 'BraTS2021_00000.nii.gz'}: cannot be written")
    assert snapshot(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("owner", "call", "file"),
    [
        (score, "write_label", "predictions_student/BraTS2021_00000.nii.gz"),
        (data_files, "write_json", "summary.json"),
    ],
)
def test_a_disk_that_fills_during_evaluate(run, data, tmp_path, capsys, owner, call, file):
    write_case(data, rng=np.random.default_rng(1), number=1, shape=SHAPE)
    out = tmp_path / "out"
    assert command(evaluate.main, run, "--data", data, "--output", out) == 0
    before, _ = snapshot(out), capsys.readouterr()
    options = ["--save-predictions"] if call == "write_label" else []
    with disk_that_fills(owner, call):
        assert command(evaluate.main, run, "--data", data, "--output", out, *options) == COMMAND_ERROR
    line = the_error(capsys)
    assert line.startswith(f"error: {out / file}: cannot be written")
    assert {path: content for path, content in snapshot(out).items() if content is not None} == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's threads, cut off
@pytest.mark.parametrize(
    ("owner", "call", "when", "file"),
    [
        (Checkpoints, "save", lambda _, which, state, position, config: position["epoch"] == 2, "checkpoints/"),
        (Journal, "epoch", lambda _, step, *rest: step == 2, "log.jsonl"),
        (journal, "draw_progress", lambda epochs, file: len(epochs) == 2, "progress.png"),
    ],
    ids=["checkpoint", "log", "picture"],
)
@pytest.mark.slow
def test_a_disk_that_fills_during_training_leaves_the_last_checkpoint(
    data, tmp_path, capsys, monkeypatch, one_process, owner, call, when, file
):
    write_case(data, rng=np.random.default_rng(1), number=1, shape=SHAPE)
    end_epoch = loop._end_epoch

    def end_epoch_on_disk(*args):  # what is still being written when the disk fills up is lost, as it should be
        end_epoch(*args)
        if args[2].epoch == 1:
            for writer in args[-1]._writers.values():
                writer.wait()

    monkeypatch.setattr(loop, "_end_epoch", end_epoch_on_disk)
    with disk_that_fills(owner, call, when):
        assert trained(data, tmp_path, "--train.epochs=2") == COMMAND_ERROR
    line = the_error(capsys)
    assert line.startswith(f"error: {tmp_path / 'run' / file}") and "cannot be written (File too large)" in line
    # Orbax's threads outlive the failure here, so that its own unfinished folder, which is no checkpoint, may be there.
    assert [p for p in temporary(tmp_path) if "checkpoints" not in p.parts] == []
    assert restore_network(tmp_path / "run", "student", "latest").step == 1
