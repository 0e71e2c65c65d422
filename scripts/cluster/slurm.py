"""Jobs on Slurm: the batch file, its submission, and what becomes of it.

States are read by `scontrol show job -o`, which every cluster has; `sacct` needs an accounting
database. scontrol forgets a job some minutes after its end (MinJobAge), so what it said last
counts.
"""

import pathlib
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedlite.errors import UserError
from scripts.cluster.job import Job, Resources, reason
from scripts.tables.harness.plan import ROOT

# How often a job may run into its time limit and be put back.
_TIMEOUTS = 1000
_POLL_SECONDS = 15.0
# A job in any other state may come to one of these; GONE stands for a job that ended unseen.
GONE = "GONE"
_ENDS = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT", GONE),
}


def parameters(name: str, resources: Resources) -> dict[str, Any]:
    """What submitit's executor for Slurm is given."""
    optional = {
        "gpus_per_node": resources.gpus_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "partition": resources.partition,
        "array_parallelism": resources.parallel,
        "srun_args": _srun_arguments(resources),
    }
    return {
        "job_name": name,
        "time": resources.minutes,
        "signal_delay_s": resources.grace,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, **resources.extra},
        # The programs find configs relative to here.
        "setup": [f"cd {shlex.quote(str(ROOT))}"],
        **{key: value for key, value in optional.items() if value},
    }


def _srun_arguments(resources: Resources) -> list[str]:
    arguments = []
    if resources.cpus_per_task:
        # Since Slurm 22.05 a step does not have it from its job.
        arguments.append(f"--cpus-per-task={resources.cpus_per_task}")
    if resources.tasks > 1:
        # The others would wait for a task that is gone.
        arguments.append("--kill-on-bad-exit=1")
    return arguments


def batch_file(jobs: Sequence[Job], name: str, resources: Resources, logs: pathlib.Path) -> str:
    """The text that sbatch is given for some jobs; nothing is written."""
    from submitit.slurm.slurm import SlurmExecutor

    class WithoutSlurm(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1

    executor = WithoutSlurm(logs, max_num_timeout=_TIMEOUTS)
    executor.update_parameters(**parameters(name, resources))
    if len(jobs) > 1:
        executor.parameters["map_count"] = len(jobs)
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def submit(
    jobs: Sequence[Job], name: str, resources: Resources, logs: pathlib.Path
) -> dict[str, Job]:
    """Submits jobs, several as one array.

    Returns:
      The jobs by Slurm's number: "12", or "12_0", "12_1", ... for an array.

    Raises:
      UserError: this is no node of a Slurm cluster, or sbatch refuses.
    """
    from submitit.core.utils import FailedJobError
    from submitit.slurm.slurm import SlurmExecutor

    if SlurmExecutor.affinity() < 0:
        raise UserError(
            "no srun here: submit from a node of a Slurm cluster, or see the batch file by "
            "--cluster=dry"
        )
    executor = SlurmExecutor(logs, max_num_timeout=_TIMEOUTS)
    executor.update_parameters(**parameters(name, resources))
    try:
        with executor.batch():
            submitted = [executor.submit(job) for job in jobs]
    except FailedJobError as error:
        raise UserError(f"sbatch refuses: {error}; mend the options") from error
    return {handle.job_id: job for handle, job in zip(submitted, jobs)}


def watch(
    jobs: Mapping[str, Job],
    logs: pathlib.Path,
    *,
    say: Callable[[str], None] = print,
    seconds: float = _POLL_SECONDS,
) -> dict[str, str]:
    """Waits until jobs are over, through requeues.

    Args:
      jobs: by Slurm's number, as `submit` gives them.
      logs: where submitit's files are.
      say: is told of every change of a job's state.
      seconds: between two looks.

    Returns:
      Why a job left no result, by its name; empty where all are well.
    """
    main = next(iter(jobs)).split("_")[0]
    states: dict[str, str] = dict.fromkeys(jobs, "")
    while not all(state in _ENDS for state in states.values()):
        if any(states.values()):
            time.sleep(seconds)
        shown = show(main)
        if shown is None:
            say("scontrol does not answer; the jobs go on, and are looked at again.")
            time.sleep(seconds)
            continue
        parsed = parse_states(shown)
        for number, job in jobs.items():
            before = states[number]
            states[number] = parsed.get(number, before if before in _ENDS else GONE)
            if states[number] != before:
                say(f"{number} {job.name}: {states[number]}")
    failures = {}
    for number, job in jobs.items():
        if not job.finished:
            ended = "" if states[number] == "COMPLETED" else f"{states[number]}: "
            failures[job.name] = ended + reason(logs / f"{number}_0_log.out")
    return failures


def parse_states(text: str) -> dict[str, str]:
    """States by job number, from the lines of `scontrol show job -o`.

    An array's waiting tasks share a line, "ArrayTaskId=2-4,7%2"; a task by itself has its own.
    """
    states = {}
    for line in text.splitlines():
        fields = dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", line))
        if "JobState" not in fields:
            continue
        if "ArrayTaskId" in fields:
            for index in _indices(fields["ArrayTaskId"]):
                states[f"{fields['ArrayJobId']}_{index}"] = fields["JobState"]
        else:
            states[fields["JobId"]] = fields["JobState"]
    return states


def show(number: str) -> str | None:
    """What scontrol says of a job: "" once Slurm has forgotten it, None if it does not answer."""
    done = subprocess.run(
        ["scontrol", "show", "job", "-o", number], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return "" if "Invalid job id" in done.stderr else None
    return done.stdout


def _indices(text: str) -> list[int]:
    """ "2-4,7%2" is 2, 3, 4 and 7; "0-8:4" is 0, 4 and 8."""
    indices = []
    for part in text.partition("%")[0].split(","):
        first, last, step = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part).groups()
        indices += range(int(first), int(last or first) + 1, int(step or 1))
    return indices
