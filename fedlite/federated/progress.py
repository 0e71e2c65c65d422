"""What a person sees of a run: a bar on a terminal or lines in a log, and TensorBoard."""

import datetime
import math
import os
import pathlib
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class ProgressBar:
    """Rounds, loss, the task's metric, MB and clients/s; a context manager.

    On a terminal it is a bar; elsewhere (a log file) a line every `every` seconds. Both tell how
    long the rest will take, at the pace since the first rounds, which compile.
    """

    def __init__(self, title: str, rounds: int, done: int = 0, every: float = 20.0):
        self._console = Console(stderr=True)
        self._title, self._rounds, self._every = title, rounds, every
        self._last = time.monotonic()
        self._paced: tuple[float, int] | None = None
        self._bar = None
        self._metric = ""
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(title, total=rounds, completed=done, status="compiling")

    def __enter__(self):
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception):
        if self._bar:
            self._bar.stop()

    def update(self, done: int, *, loss: float, megabytes: float, rate: float):
        """After some rounds."""
        status = f"loss {loss:.3f}{self._metric} {megabytes:.1f} MB {rate:.1f} clients/s"
        if self._bar:
            self._bar.update(self._task, completed=done, status=status)
        elif time.monotonic() - self._last > self._every or done == self._rounds:
            self._last = time.monotonic()
            line = f"{self._title}: round {done}/{self._rounds} {status}{self._rest(done)}"
            # As it is: a log file has no width, and a method's name is no markup.
            self._console.print(line, soft_wrap=True, markup=False, highlight=False)
        if self._paced is None:
            self._paced = time.monotonic(), done

    def _rest(self, done: int) -> str:
        """How long the rounds that are left will take; nothing without a pace."""
        if self._paced is None or done in (self._paced[1], self._rounds):
            return ""
        begin, first = self._paced
        left = (time.monotonic() - begin) / (done - first) * (self._rounds - done)
        return f" {datetime.timedelta(seconds=math.ceil(left))} left"

    def evaluated(self, metric: str, value: float, epsilon: float | None = None):
        """After an evaluation."""
        self._metric = f" {metric} {value:.3f}"
        if epsilon is not None:
            self._metric += f" epsilon {epsilon:.2f}"


class Unseen:
    """A progress bar and a board for processes other than 0, which show nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def update(self, done: int, **values: float):
        """As of `ProgressBar`."""

    def evaluated(self, metric: str, value: float, epsilon: float | None = None):
        """As of `ProgressBar`."""

    def add(self, round_number: int, kind: str, values: Mapping[str, float]):
        """As of `Board`."""

    def flush(self):
        """As of `Board`."""


class Board:
    """TensorBoard's events of a run; a context manager.

    `tensorboardX.SummaryWriter` hands events to a queue that `flush` does not wait for, so a
    kill would lose those of rounds that are not run again.
    """

    def __init__(self, directory: pathlib.Path, first: int):
        """Hides what a killed run showed of round `first` and later ones."""
        directory.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"), f".{os.getpid()}")
        self._write(first, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._writer.close()

    def add(self, round_number: int, kind: str, values: Mapping[str, float]):
        """Shows values of a round under "kind/name"."""
        shown = [Summary.Value(tag=f"{kind}/{k}", simple_value=v) for k, v in values.items()]
        self._write(round_number, summary=Summary(value=shown))

    def flush(self):
        """When it returns, all events are on disk."""
        self._writer.flush()

    def _write(self, step: int, **fields):
        self._writer.write_event(Event(wall_time=time.time(), step=step, **fields))
