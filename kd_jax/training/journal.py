"""The record of a run: JSONL log, TensorBoard scalars, the picture after every epoch."""

import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from data_pipeline.files import write_atomically, write_error
from kd_jax.config.distillation import BARLOW_TWINS
from kd_jax.config.schema import STUDENT

LOG_FILE = "log.jsonl"
PICTURE_FILE = "progress.png"
BOARD_FOLDER = "tensorboard"
Record = dict[str, Any]


class Journal:
    """Appends records to `RUN/log.jsonl` and TensorBoard and redraws `RUN/progress.png`.

    A record is a JSON object with "kind" ("step" or "epoch") and "step", the number of steps done.
    """

    def __init__(self, run: Path, step: int, *, write: bool = True) -> None:
        """Opens the journal of a run at `step` and drops records of later steps.

        With `write` off nothing is recorded: among several hosts, one keeps the journal.
        """
        self._run, self._writes = run, write
        self.epochs: list[Record] = []
        if not write:
            return
        kept = [record for record in read_log(run) if record["step"] <= step]
        self.epochs = [record for record in kept if record["kind"] == "epoch"]
        content = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomically(run / LOG_FILE, content.encode())
        with _explained(run):
            self._log = (run / LOG_FILE).open("a", encoding="utf-8", buffering=1)
            (run / BOARD_FOLDER).mkdir(exist_ok=True)
            # Not SummaryWriter: its thread dies when the disk is full, and training then waits for its queue forever.
            self._board = EventsWriter(str(run / BOARD_FOLDER / "events"))
            if step:  # TensorBoard then drops what was logged later than this
                start = SessionLog(status=SessionLog.START)
                self._board.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def step(self, step: int, measurements: Mapping[str, float]) -> None:
        """Logs the measurements of one step."""
        self._write({"kind": "step", "step": step, **measurements})

    def epoch(self, step: int, epoch: int, measurements: Mapping[str, float | None]) -> None:
        """Logs the means of one epoch and redraws the picture."""
        if not self._writes:
            return
        record = {"kind": "epoch", "step": step, "epoch": epoch, **measurements}
        self.epochs.append(record)
        self._write(record)
        with _explained(self._run / BOARD_FOLDER):
            self._board.flush()
        draw_progress(self.epochs, self._run / PICTURE_FILE)

    def _write(self, record: Record) -> None:
        if not self._writes:
            return
        with _explained(self._run / LOG_FILE):
            self._log.write(json.dumps(record) + "\n")
        with _explained(self._run / BOARD_FOLDER):
            for name, value in record.items():
                if name not in ("kind", "step", "epoch") and value is not None:
                    summary = scalar(f"{record['kind']}/{name}", value)
                    self._board.write_event(Event(wall_time=time.time(), step=record["step"], summary=summary))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._writes:
            return
        for file, name in ((self._log, LOG_FILE), (self._board, BOARD_FOLDER)):
            try:
                file.close()
            except OSError as error:
                if kind is None:  # else the run is already ending for this reason
                    raise write_error(self._run / name, error) from error


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns a failed write into an error for the user."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def current_name(measurement: str) -> str:
    """A measurement's current name: older runs logged the term without its student."""
    return f"{STUDENT}/{measurement}" if measurement.startswith(f"{BARLOW_TWINS}/") else measurement


def read_log(run: Path) -> list[Record]:
    """The records of a run; a last line cut off by a crash is left out."""
    file = run / LOG_FILE
    if not file.exists():
        return []
    records: list[Record] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            records.append({current_name(name): value for name, value in record.items()})
        except json.JSONDecodeError:
            break
    return records


def draw_progress(epochs: list[Record], file: Path) -> None:
    """Draws losses by term, pseudo-Dice, epoch time and learning rate over epochs."""
    figure = Figure(figsize=(14, 8), layout="constrained")
    axes = figure.subplots(2, 3)
    number = [record["epoch"] + 1 for record in epochs]

    def plot(axis: Any, names: Mapping[str, str], title: str, log: bool = False) -> None:
        for name, style in names.items():
            values = [float("nan") if record.get(name) is None else record[name] for record in epochs]
            if any(name in record for record in epochs):
                axis.plot(number, values, style, marker="o", markersize=3, label=name)
        axis.set(title=title, xlabel="epoch", yscale="log" if log else "linear")
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)

    networks = [name.split("/")[0] for name in epochs[-1] if name.endswith("/pseudo_dice/mean")]
    by_network = partial(_by_network, networks)
    plot(axes[0, 0], by_network("loss", "ce", "dice", "bce"), "segmentation losses", log=True)
    plot(axes[0, 1], _terms(networks, epochs[-1]), "distillation terms, before weighting", log=True)
    plot(axes[0, 2], by_network("pseudo_dice/WT", "pseudo_dice/TC", "pseudo_dice/ET"), "pseudo-Dice of validation")
    plot(axes[1, 0], by_network("pseudo_dice/mean", "pseudo_dice/ema"), "mean pseudo-Dice and its moving average")
    plot(axes[1, 1], {"seconds": "k-"}, "epoch time (s)")
    plot(axes[1, 2], {"learning_rate": "k-"}, "learning rate")
    for axis in (axes[0, 2], axes[1, 0]):
        axis.set_ylim(0, 1)
    axes[1, 1].set_ylim(bottom=0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    write_atomically(file, buffer.getvalue())


def _by_network(networks: Sequence[str], *names: str) -> dict[str, str]:
    """Line styles: a colour for each network, a kind of line for each measurement."""
    styles = "-", "--", ":", "-."
    return {
        f"{network}/{name}": f"C{number % 10}{style}"
        for number, network in enumerate(networks)
        for name, style in zip(names, styles, strict=False)
    }


def _terms(networks: Sequence[str], record: Record) -> dict[str, str]:
    """Line styles of the measurements of terms, whose names are network/term/measurement."""
    names = [name for name in record if name.count("/") == 2 and "/pseudo_dice/" not in name]
    known = [name for name in names if name.split("/")[0] in networks]
    return {name: f"C{number % 10}{'--' if name.endswith('/loss') else '-'}" for number, name in enumerate(known)}
