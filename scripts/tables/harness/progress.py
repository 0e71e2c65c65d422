"""What a person sees while rows run: a bar a row on a terminal, lines elsewhere."""

import json
import os
import time
from collections.abc import Iterable
from typing import Any

from rich import progress as bars
from rich.console import Console
from rich.markup import escape

from scripts.tables.harness.plan import Run

_TAIL_BYTES = 8192


class Progress:
    """Follows runs by their metrics.jsonl; a context manager."""

    def __init__(self, runs: list[Run], every: float = 30.0, console: Console | None = None):
        """Makes it.

        Args:
          runs: all of the table's.
          every: seconds between two lines where there is no terminal.
          console: where to; stderr by default.
        """
        self._console = console or Console(stderr=True, highlight=False)
        self._total, self._done = len(runs), sum(run.finished for run in runs)
        self._every, self._last = every, time.monotonic()
        self._begun: dict[Run, float] = {}
        self._tasks: dict[Run, bars.TaskID] = {}
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[status]}"),
            bars.TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._all = self._bars.add_task("runs", total=self._total, completed=self._done, status="")

    def __enter__(self):
        self._bars.start()
        if self._done:
            self.say(f"{self._done} of {self._total} runs are finished already.")
        return self

    def __exit__(self, *exception):
        self._bars.stop()

    def say(self, text: str):
        """Prints a line."""
        self._console.print(escape(text), soft_wrap=True)

    def started(self, run: Run):
        """A run has begun."""
        self._begun[run] = time.monotonic()
        self._tasks[run] = self._bars.add_task(
            escape(run.name), total=run.config["rounds"], status="starting"
        )

    def ended(self, run: Run, failure: str):
        """A run is over; `failure` is empty where it was finished."""
        self._bars.remove_task(self._tasks.pop(run))
        seconds = time.monotonic() - self._begun[run]
        if failure:
            self.say(f"{run.name}: FAILED after {seconds:.0f} s: {failure} (see {run.log})")
        elif run.finished:
            self._done += 1
            self._bars.update(self._all, completed=self._done)
            status = _status(last_lines(run))
            self.say(f"{run.name}: {status} after {seconds:.0f} s ({self._done}/{self._total})")

    def poll(self, running: Iterable[Run]):
        """Reads how far the runs are."""
        due = time.monotonic() - self._last > self._every
        if not (self._console.is_terminal or due):
            return
        states = []
        for run in running:
            lines = last_lines(run)
            done, status = lines.get("train", {}).get("round", 0), _status(lines)
            self._bars.update(self._tasks[run], completed=done, status=status)
            states.append(f"{run.name}: round {done}/{run.config['rounds']} {status}")
        if due and states and not self._console.is_terminal:
            self._last = time.monotonic()
            for state in states:
                self.say(state)


def last_lines(run: Run) -> dict[str, dict[str, Any]]:
    """The newest line of each kind in the end of metrics.jsonl, by kind."""
    found = {}
    try:
        with open(run.directory / "metrics.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            # Cut at the beginning by the seek, or at the end by a write that goes on.
            continue
        if entry["kind"] != "eval" or entry["split"] == "test":
            found[entry["kind"]] = entry
    return found


def _status(lines: dict[str, dict[str, Any]]) -> str:
    """Loss, and the last accuracy or word error rate."""
    if "train" not in lines:
        return "starting"
    loss = lines["train"]["loss"]
    words = [f"loss {loss:.3f}" if loss is not None else "loss is not finite"]
    for metric in ("accuracy", "wer"):
        if (value := lines.get("eval", {}).get(metric)) is not None:
            words.append(f"{metric} {100 * value:.1f} %")
    return ", ".join(words)
