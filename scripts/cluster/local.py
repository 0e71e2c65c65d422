"""Jobs on this machine, by submitit's executor for it: to try what a cluster will do."""

import contextlib
import pathlib
import signal
import time
from collections.abc import Callable, Sequence

from scripts.cluster.job import Job, Resources, reason
from scripts.tables.harness.plan import ROOT

_POLL_SECONDS = 0.5


def run(
    jobs: Sequence[Job],
    resources: Resources,
    logs: pathlib.Path,
    *,
    say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Runs jobs, `resources.parallel` (or one) at a time.

    SIGINT or SIGTERM let those that run write a checkpoint.

    Args:
      jobs: in the order in which they start.
      resources: nodes, tasks and the options of Slurm do not matter here.
      logs: where submitit's files go.
      say: is told of every job that starts or ends.

    Returns:
      Why a job left no result, by its name; empty where all are well.
    """
    import submitit

    executor = submitit.LocalExecutor(logs)
    executor.update_parameters(
        timeout_min=resources.minutes,
        signal_delay_s=resources.grace,
        gpus_per_node=resources.gpus_per_node,
        stderr_to_stdout=True,
    )
    waiting, running, failures = list(jobs), {}, {}
    with _interruptible():
        try:
            while waiting or running:
                while waiting and len(running) < (resources.parallel or 1):
                    job = waiting.pop(0)
                    with contextlib.chdir(ROOT), _deaf_children():
                        running[job] = executor.submit(job)
                    say(f"{running[job].job_id} {job.name}: RUNNING")
                for job, handle in list(running.items()):
                    if not handle.done():
                        continue
                    del running[job]
                    if not job.finished:
                        failures[job.name] = reason(handle.paths.stdout)
                    outcome = "FAILED" if job.name in failures else "FINISHED"
                    say(f"{handle.job_id} {job.name}: {outcome}")
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            say("Stopping: each job finishes its round and writes a checkpoint.")
            for handle in running.values():
                handle._process.terminate()
            for handle in running.values():
                handle._process.wait()
            raise
    return failures


@contextlib.contextmanager
def _interruptible():
    """SIGTERM raises KeyboardInterrupt, as SIGINT does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _deaf_children():
    """Processes that start meanwhile ignore the terminal's Ctrl-C.

    submitit would kill its jobs upon it before they wrote a checkpoint.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
