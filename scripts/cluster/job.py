"""One experiment as a job: a program of `experiments`, run inside a process of submitit's.

The program is run in the job's own process, not in a child: Slurm sends its signals to every
process of a step, and a child without a handler for SIGUSR2 would die of it.

SIGUSR2 comes before the time limit, or before a preemption. It is turned into the SIGTERM upon
which `experiments.train` finishes its round and writes a checkpoint; then submitit puts the job
back into the queue, and the next start resumes. Of several tasks, which train together, all get the
signal and task 0 alone puts the job back. SIGTERM alone ends the job with a checkpoint but
does not put it back, or `scancel` would never be the end of it; where Slurm preempts by
PreemptMode=REQUEUE, it puts the job back itself.
"""

import dataclasses
import importlib
import os
import pathlib
import signal
import sys
from collections.abc import Mapping
from typing import Any

PREEMPTION = signal.SIGUSR2


class JobError(Exception):
    """A job ended without its result."""


@dataclasses.dataclass(frozen=True)
class Resources:
    """What each job asks for.

    Attributes:
      minutes: time limit.
      grace: seconds between the signal and the time limit, for a round and a checkpoint.
      nodes, tasks_per_node: processes of a job, which train together.
      gpus_per_node, cpus_per_task: 0 for the partition's default.
      partition: "" for the default one.
      parallel: jobs at a time; 0 for all.
      extra: further options of sbatch, such as {"account": "x"}.
    """

    minutes: int
    grace: int
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 0
    partition: str = ""
    parallel: int = 0
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def tasks(self) -> int:
        """How many processes a job has."""
        return self.nodes * self.tasks_per_node


@dataclasses.dataclass(frozen=True)
class Job:
    """A program of `experiments` with its flags.

    Attributes:
      name: for people.
      module: with `main`, such as "experiments.train".
      flags: besides --workdir.
      workdir: absolute.
      result: the file in `workdir` that says that all is done.
    """

    name: str
    module: str
    flags: tuple[str, ...]
    workdir: str
    result: str = "summary.json"

    @property
    def arguments(self) -> tuple[str, ...]:
        """All flags."""
        return (*self.flags, f"--workdir={self.workdir}")

    @property
    def finished(self) -> bool:
        """Whether the result is there."""
        return (pathlib.Path(self.workdir) / self.result).exists()

    def __call__(self):
        """Runs the program, on the node.

        Raises:
          JobError: it ended without its result.
        """
        requeue = signal.getsignal(PREEMPTION)
        idle = signal.getsignal(signal.SIGTERM)
        preempted = False

        def stop(number, frame):
            nonlocal preempted
            if preempted:
                return
            preempted = True
            if signal.getsignal(signal.SIGTERM) is idle:
                # The program does not listen yet: there is nothing to save.
                requeue(number, frame)
            else:
                os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(PREEMPTION, stop)
        try:
            code = self._run()
        except SystemExit as error:
            if preempted:
                raise
            code = error.code
        finally:
            signal.signal(PREEMPTION, requeue)
        if self.finished or (not code and _follows()):
            return
        if preempted:
            requeue(PREEMPTION, None)
        reason = f"ended with code {code}" if code else "was stopped by a signal"
        raise JobError(f"{self.name} {reason} before it wrote {self.result}")

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue: the same job, which resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self) -> int:
        from experiments import binary

        # The config's overrides are looked for there.
        sys.argv = [self.module, *self.arguments]
        program = importlib.import_module(self.module)
        binary.guarded(program.main)(binary.parse_flags(sys.argv))
        return 0


def _follows() -> bool:
    """Whether this is not process 0, which alone writes the result and puts the job back."""
    from fedlite.federated import processes

    return processes.index() > 0


def reason(log: pathlib.Path) -> str:
    """Why a job left no result, and where its log lies: the program's error, else the job's."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"no log, {log}"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["an empty log"]
    program = [line for line in lines if line.startswith("error: ")]
    job = [line.partition("JobError: ")[2] for line in lines if "JobError: " in line]
    return f"{(program or job or lines)[-1]} ({log})"
