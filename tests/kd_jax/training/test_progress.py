import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from kd_jax.training.journal import Journal, draw_progress, read_log
from kd_jax.training.progress import Progress

COUNTS = {
    "teacher": np.array([[8, 1, 3], [2, 2, 0], [0, 0, 0]], float),  # WT 16/20, TC 4/6, ET in neither
    "student": np.array([[5, 5, 5], [0, 1, 0], [0, 0, 0]], float),  # WT 10/20, TC 0
}


def test_an_epochs_record_by_hand():
    progress = Progress()
    for loss in (1.0, 2.0, 6.0):
        progress.absorb({"student/loss": loss})
    progress.seconds = 12.5
    record, improved = progress.end_epoch(COUNTS)
    assert record["student/loss"] == 3.0 and record["seconds"] == 12.5
    assert record["teacher/pseudo_dice/WT"] == pytest.approx(0.8)
    assert record["teacher/pseudo_dice/TC"] == pytest.approx(2 / 3)
    assert record["teacher/pseudo_dice/ET"] is None
    assert record["teacher/pseudo_dice/mean"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert record["student/pseudo_dice/mean"] == pytest.approx(0.25)
    assert improved == {"teacher", "student"} and progress.epoch == 1
    assert progress.best == pytest.approx({"teacher": (0.8 + 2 / 3) / 2, "student": 0.25})


def test_the_best_epoch_of_a_network_is_that_of_its_own_moving_average():
    progress = Progress()
    scores, improvements = [], []
    for student in (0.5, 0.9, 0.0):
        counts = {"teacher": np.zeros((3, 3)), "student": np.zeros((3, 3))}
        counts["teacher"][:, 0], counts["student"][:, 0] = 1, student
        counts["student"][:, 1] = 2 * (1 - student)
        progress.absorb({"student/loss": 1.0})
        record, improved = progress.end_epoch(counts)
        scores.append(record["student/pseudo_dice/ema"])
        improvements.append(sorted(improved))
    assert scores == pytest.approx([0.5, 0.9 * 0.5 + 0.1 * 0.9, 0.9 * 0.54])
    assert improvements == [["student", "teacher"], ["student"], []]
    assert progress.best == pytest.approx({"teacher": 1.0, "student": 0.54})


def test_the_position_of_an_older_run_is_understood():
    old = Progress().to_position() | {"best": 0.4, "sums": {"barlow_twins/loss": 1.0, "student/loss": 2.0}}
    progress = Progress.from_position(old)
    assert progress.best == {"student": 0.4}
    assert progress.sums == {"student/barlow_twins/loss": 1.0, "student/loss": 2.0}
    assert Progress.from_position(old | {"best": None}).best == {}


def test_progress_survives_its_position():
    progress = Progress()
    progress.absorb({"student/loss": 1.25})
    progress.end_epoch(COUNTS)
    progress.absorb({"student/loss": 0.5})
    assert Progress.from_position(progress.to_position()) == progress


def test_the_journal_drops_what_was_logged_after_the_checkpoint(tmp_path):
    with Journal(tmp_path, 0) as journal:
        journal.step(10, {"student/loss": 1.0})
        journal.epoch(10, 0, {"student/loss": 1.0, "seconds": 2.0})
        journal.step(20, {"student/loss": 0.5})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 30, "stud')  # cut off by a crash
    with Journal(tmp_path, 10) as journal:
        assert [record["epoch"] for record in journal.epochs] == [0]
        journal.step(20, {"student/loss": 0.25})
    records = read_log(tmp_path)
    assert [(r["kind"], r["step"]) for r in records] == [("step", 10), ("epoch", 10), ("step", 20)]
    assert records[-1]["student/loss"] == 0.25


def _events(folder):
    """The events of a folder's only TensorBoard file: TFRecords of length (8 bytes), CRC (4), payload, CRC (4)."""
    (file,) = folder.iterdir()
    content, events = file.read_bytes(), []
    while content:
        (length,) = struct.unpack_from("<Q", content)
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events


def test_tensorboard_holds_what_was_logged(tmp_path):
    with Journal(tmp_path, 0) as journal:
        journal.step(10, {"student/loss": 1.5, "learning_rate": 0.25})
        journal.epoch(20, 1, {"student/loss": 0.75, "student/pseudo_dice/ET": None})
    version, *events = _events(tmp_path / "tensorboard")
    assert version.file_version
    assert [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value] == [
        (10, "step/student/loss", 1.5),
        (10, "step/learning_rate", 0.25),
        (20, "epoch/student/loss", 0.75),
    ]


def test_the_picture_is_drawn_with_gaps_and_without_distillation(tmp_path):
    records = [
        {"epoch": 0, "teacher/loss": 1.0, "student/loss": 1.2, "teacher/pseudo_dice/ET": None, "seconds": 3.0},
        {"epoch": 1, "teacher/loss": 0.8, "student/loss": 1.0, "teacher/pseudo_dice/ET": 0.4, "seconds": 3.0},
    ]
    draw_progress(records, tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")
