"""Runs a table's rows as processes of their own, several at a time, and stops them orderly."""

import dataclasses
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence

from experiments import provenance
from scripts.tables.harness.plan import ROOT, Run
from scripts.tables.harness.progress import Progress

_POLL_SECONDS = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of the runs.

    Attributes:
      failures: by run, the last line of its log.
      stopped: whether a signal ended it before all runs were over.
    """

    failures: Mapping[Run, str]
    stopped: bool


def execute(runs: Sequence[Run], parallel: int, progress: Progress) -> Outcome:
    """Runs what isn't finished.

    SIGINT, SIGTERM or SIGHUP start nothing more and are passed on once as SIGTERM, upon which
    `experiments.train` writes a checkpoint; a second one kills the processes.

    Args:
      runs: in the order in which they start.
      parallel: processes at a time.
      progress: is told of every change.
    """
    waiting = [run for run in runs if not run.finished]
    parallel = max(1, min(parallel, len(waiting)))
    running: dict[Run, subprocess.Popen] = {}
    failures: dict[Run, str] = {}
    told = False
    with _Stop() as stop:
        try:
            while running or (waiting and not stop.is_set()):
                while waiting and len(running) < parallel and not stop.is_set():
                    run = waiting.pop(0)
                    running[run] = _start(run, parallel)
                    progress.started(run)
                if stop.is_set() and not told:
                    told = True
                    progress.say("Stopping: each row finishes its round and writes a checkpoint.")
                    for process in running.values():
                        process.terminate()
                for run, process in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[run]
                    failure = _failure(run, process.returncode, stop.is_set())
                    if failure:
                        failures[run] = failure
                    progress.ended(run, failure)
                progress.poll(running)
                stop.wait(_POLL_SECONDS)
        finally:
            for process in running.values():
                process.kill()
                process.wait()
    return Outcome(failures, stop.is_set() and not all(run.finished for run in runs))


def _start(run: Run, parallel: int) -> subprocess.Popen:
    run.claim()
    with open(run.log, "ab") as log:
        return subprocess.Popen(
            run.command,
            cwd=ROOT,
            env=environment(parallel),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # The terminal's Ctrl-C must reach a run once, through `execute`.
            start_new_session=True,
        )


def environment(parallel: int) -> dict[str, str]:
    """This process's environment, with the cores divided evenly among parallel runs."""
    if parallel == 1:
        return dict(os.environ)
    threads = str(max(1, provenance.cores() // parallel))
    # NPROC is what XLA takes for the number of cores.
    return {**os.environ, "NPROC": threads, "OMP_NUM_THREADS": threads}


def _failure(run: Run, code: int, stopped: bool) -> str:
    """Why a run that ended left no summary; "" where it did, or was told to stop."""
    if (code == 0 and run.finished) or (stopped and code in (0, -signal.SIGTERM)):
        return ""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code == 0:
        return "stopped from outside before it was finished"
    lines = run.log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")


class _Stop:
    """Turns signals into an event; a second signal has its usual effect."""

    def __enter__(self) -> threading.Event:
        self._event = threading.Event()
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self._event

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        self._event.set()
        signal.signal(number, self._previous[number])
