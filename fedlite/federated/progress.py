"""What a person sees of a run: a bar on a terminal, a line now and then elsewhere."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressBar:
    """Rounds, loss, accuracy, MB and clients/s; a context manager.

    On a terminal it is a bar; elsewhere (a log file) a line every `every` seconds.
    """

    def __init__(self, title: str, rounds: int, done: int = 0, every: float = 20.0):
        self._console = Console(stderr=True)
        self._title, self._rounds, self._every = title, rounds, every
        self._last = time.monotonic()
        self._bar = None
        self._accuracy = ""
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
        status = f"loss {loss:.3f}{self._accuracy} {megabytes:.1f} MB {rate:.1f} clients/s"
        if self._bar:
            self._bar.update(self._task, completed=done, status=status)
        elif time.monotonic() - self._last > self._every or done == self._rounds:
            self._last = time.monotonic()
            line = f"{self._title}: round {done}/{self._rounds} {status}"
            # As it is: a log file has no width, and a method's name is no markup.
            self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def evaluated(self, accuracy: float):
        """After an evaluation."""
        self._accuracy = f" accuracy {accuracy:.3f}"
