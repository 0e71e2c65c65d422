"""Submits an experiment, a sweep or a table to a cluster, and waits for it.

    python -m scripts.submit --config=configs/fedavg/emnist_cnn.py --workdir=DIR \
        [--config.rounds=500 ...] [--sweep=client_optimizer.learning_rate=0.05,0.1 ...] \
        [--cluster=slurm --partition=P --gpus_per_node=1 --time=4:00:00 ...]
    python -m scripts.submit --table=fedpt/emnist --scale=bundled --workdir=DIR [...]
    python -m scripts.submit --config=... --workdir=DIR --nodes=2 [--tasks_per_node=4] [...]

Several jobs are one array: a sweep's has a job a value (several sweeps make a grid), each in a
directory of its own in DIR; a table's has one a row and seed, in the DIR that reproduce_table knows
as --out. What is finished is not submitted again, so the same command resumes. DIR/submit holds
logs and submitit's files, and must be seen by all nodes. The tasks of a job (one a node, or one a
GPU by --tasks_per_node) train one model together.

--cluster=dry prints the batch file and writes nothing; local runs the jobs here, `--parallel` at a
time. A job that is preempted or comes to its time limit writes a checkpoint and is put back into
the queue. Cancelled and failed jobs are reported.

Exit code: 0, 1 if a job left no result, 2 for bad input, 130 where the waiting was interrupted
(jobs on Slurm go on). See docs/clusters.md.
"""

import dataclasses
import importlib.util
import itertools
import math
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from experiments import binary
from fedlite.errors import UserError
from scripts.cluster import local, slurm
from scripts.cluster.job import Job, Resources

_CONFIG = binary.define_config()
_WORKDIR = binary.define_workdir()
_SWEEP = flags.DEFINE_multi_string("sweep", [], "KEY=VALUE,VALUE,...; several make a grid.")
_TABLE = flags.DEFINE_string("table", None, "PAPER/NAME, see scripts/tables/.")
_SCALE = flags.DEFINE_enum("scale", "bundled", ["bundled", "paper"], "Of the table.")
_SEEDS = flags.DEFINE_integer("seeds", 0, "Runs of a row; 0 for the table's own number.", 0)
_TINY = flags.DEFINE_bool("tiny", False, "The table's rows at a tiny size.")
_CLUSTER = flags.DEFINE_enum("cluster", "slurm", ["slurm", "local", "dry"], "Where jobs run.")
_WAIT = flags.DEFINE_bool("wait", True, "Wait for the jobs and report what became of them.")
_NODES = flags.DEFINE_integer("nodes", 1, "Of a job; all of them train one model.", 1)
_TASKS_PER_NODE = flags.DEFINE_integer("tasks_per_node", 1, "Processes of a job on a node.", 1)
_GPUS_PER_NODE = flags.DEFINE_integer("gpus_per_node", 0, "Of a job; it uses all of them.", 0)
_CPUS_PER_TASK = flags.DEFINE_integer("cpus_per_task", 0, "0 for the partition's default.", 0)
_TIME = flags.DEFINE_string("time", "1:00:00", "Limit of a job: MINUTES or [DAYS-]HH:MM:SS.")
_GRACE = flags.DEFINE_integer("grace", 120, "Seconds before it, for a round and a checkpoint.", 1)
_PARTITION = flags.DEFINE_string("partition", "", "Of the cluster.")
_PARALLEL = flags.DEFINE_integer("parallel", 0, "Jobs at a time; 0: all, locally one.", 0)
_SLURM = flags.DEFINE_multi_string("slurm", [], "Further options of sbatch, KEY=VALUE.")


def main(_):
    """Submits what the flags say."""
    binary.require(workdir=_WORKDIR.value)
    resources = _resources()
    workdir = pathlib.Path(_WORKDIR.value).resolve()
    if importlib.util.find_spec("submitit") is None:
        raise UserError("submitit is not installed: pip install -e '.[submit]'")
    stages = _table_stages(workdir) if _TABLE.value else [_experiment_jobs(workdir)]
    stages = [[job for job in stage if not job.finished] for stage in stages]
    stages = [stage for stage in stages if stage]
    if not stages:
        print(_farewell(workdir))
        return
    name = "fedlite-" + _slug(_TABLE.value or _config_name())
    logs = workdir / "submit"
    if _CLUSTER.value == "dry":
        for stage in stages:
            print(_dry(stage, name, _of_stage(stage, resources), logs))
        return
    if not _WAIT.value and (_CLUSTER.value == "local" or len(stages) > 1):
        raise UserError("--nowait is for one array on Slurm; leave it away here")
    _make_directory(logs)
    failures = {}
    for stage in stages:
        failures = _execute(stage, name, _of_stage(stage, resources), logs)
        if failures:
            break
    for job, why in failures.items():
        print(f"FAILED: {job}: {why}")
    if failures:
        sys.exit(1)
    if _WAIT.value:
        print(_farewell(workdir))


def _resources() -> Resources:
    tasks, gpus = _TASKS_PER_NODE.value, _GPUS_PER_NODE.value
    if _CLUSTER.value == "local" and _NODES.value * tasks > 1:
        raise UserError(
            f"--nodes={_NODES.value} --tasks_per_node={tasks}: --cluster=local runs a job in one "
            "process; take 1 of both, or start the processes by hand (docs/clusters.md)"
        )
    if gpus and tasks not in (1, gpus):
        raise UserError(
            f"--tasks_per_node={tasks} for --gpus_per_node={gpus}: take 1, which uses all GPUs of "
            f"its node, or {gpus}, one for each GPU"
        )
    minutes = _minutes(_TIME.value)
    if _GRACE.value >= 60 * minutes:
        raise UserError(f"--grace={_GRACE.value} s leaves nothing of --time={_TIME.value}")
    extra = [option.partition("=") for option in _SLURM.value]
    for key, _, value in extra:
        if not key or not value:
            raise UserError(f"--slurm={key}: give KEY=VALUE, as in --slurm=account=NAME")
    return Resources(
        minutes=minutes,
        grace=_GRACE.value,
        nodes=_NODES.value,
        tasks_per_node=tasks,
        gpus_per_node=gpus,
        cpus_per_task=_CPUS_PER_TASK.value,
        partition=_PARTITION.value,
        parallel=_PARALLEL.value,
        extra={key: value for key, _, value in extra},
    )


def _of_stage(jobs: Sequence[Job], resources: Resources) -> Resources:
    """The resources; one task where a program is not made for several, as for the backbones."""
    if all(job.module == "experiments.train" for job in jobs):
        return resources
    return dataclasses.replace(resources, nodes=1, tasks_per_node=1)


def _minutes(text: str) -> int:
    """A time limit, rounded up."""
    if re.fullmatch(r"[1-9]\d*", text):
        return int(text)
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text)
    days, hours, minutes, seconds = (
        (int(part or 0) for part in match.groups()) if match else [0] * 4
    )
    total = math.ceil(((24 * days + hours) * 60 + minutes) + seconds / 60)
    if not total:
        raise UserError(f"--time={text} is no time: give MINUTES or [DAYS-]HH:MM:SS")
    return total


def _experiment_jobs(workdir: pathlib.Path) -> list[Job]:
    """One job, or one for each point of the sweeps' grid."""
    binary.require(config=_CONFIG.value)
    given = {
        **{"config": _config_file()},
        **{f"config.{key}": value for key, value in _overrides().items()},
    }
    grid = [_sweep(text) for text in _SWEEP.value]
    jobs = []
    for point in itertools.product(*grid):
        values = given | {f"config.{key}": value for key, value in point}
        arguments = tuple(f"--{key}={value}" for key, value in values.items())
        _check_flags(arguments)
        label = ",".join(f"{key}={value}" for key, value in point)
        directory = workdir / re.sub(r"[^\w.,=+-]+", "_", label) if label else workdir
        name = label or _config_name()
        jobs.append(Job(name, "experiments.train", arguments, str(directory)))
    if len({job.workdir for job in jobs}) < len(jobs):
        raise UserError("--sweep: two points of the grid are the same; name every value once")
    return jobs


def _table_stages(workdir: pathlib.Path) -> list[list[Job]]:
    """The backbones that a table needs, and its rows."""
    if _CONFIG.value or _SWEEP.value:
        raise UserError("--table has its own configs: leave away --config and --sweep")
    from scripts import tables
    from scripts.tables.harness import plan, prepare
    from scripts.tables.harness.computed import ComputedTable

    table = tables.load(_TABLE.value)
    if isinstance(table, ComputedTable):
        raise UserError(
            f"--table={_TABLE.value} has no runs: make it by python -m scripts.reproduce_table"
        )
    scale = tables.scale_of(table, _SCALE.value)
    runs = plan.plan(scale, workdir, seeds=_SEEDS.value, small=_TINY.value)
    if _CLUSTER.value != "dry":
        _make_directory(workdir)
        for run in runs:
            run.claim()
    backbones = [
        Job(
            f"backbone {backbone.name}",
            # Behind "-m" and the module.
            *_split_command(prepare._arguments(backbone, _TINY.value)),
            str(plan.backbone_directory(workdir, backbone.name)),
            "backbone.json",
        )
        for backbone in scale.backbones
    ]
    rows = [
        Job(run.name, "experiments.train", run.flags, str(run.directory.resolve())) for run in runs
    ]
    return [backbones, rows]


def _split_command(arguments: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    _, module, *rest = arguments
    return module, tuple(rest)


def _execute(
    jobs: Sequence[Job], name: str, resources: Resources, logs: pathlib.Path
) -> dict[str, str]:
    """Runs jobs to their end; why some left no result, by name."""
    if _CLUSTER.value == "local":
        return local.run(jobs, resources, logs, say=_say)
    numbers = slurm.submit(jobs, name, resources, logs)
    for number, job in numbers.items():
        _say(f"{number} {job.name}: submitted, in {job.workdir}")
    return slurm.watch(numbers, logs, say=_say) if _WAIT.value else {}


def _dry(jobs: Sequence[Job], name: str, resources: Resources, logs: pathlib.Path) -> str:
    lines = [slurm.batch_file(jobs, name, resources, logs).rstrip(), ""]
    for index, job in enumerate(jobs):
        place = f"task {index} of the array" if len(jobs) > 1 else "the job"
        lines.append(f"# {place}: python -m {job.module} {shlex.join(job.arguments)}")
    return "\n".join(lines)


def _farewell(workdir: pathlib.Path) -> str:
    if not _TABLE.value:
        return f"All is finished, in {workdir}"
    from scripts.tables.harness import machine

    command = machine.command(_TABLE.value, _SCALE.value, seeds=_SEEDS.value, small=_TINY.value)
    return f"All rows are finished; the table: {command.replace('--out=DIR', f'--out={workdir}')}"


def _sweep(text: str) -> list[tuple[str, str]]:
    """(KEY, VALUE) pairs of "KEY=VALUE,VALUE"; commas in brackets belong to a value."""
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise UserError(f"--sweep={text}: give KEY=VALUE,VALUE,...")
    section, at = _CONFIG.value, ""
    for part in key.split("."):
        at = f"{at}.{part}" if at else part
        if not isinstance(section, ConfigDict) or part not in section:
            known = section if isinstance(section, ConfigDict) else ()
            raise UserError(f"--sweep={text}: {binary.unknown_key(at, known)}")
        section = section[part]
    found, depth = [""], 0
    for letter in values:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [(key, value) for value in found]


def _check_flags(arguments: Sequence[str]):
    """Refuses values that the program would refuse when it parses its flags."""
    values = flags.FlagValues()
    argv = ["train", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"--sweep: {error}") from error


def _config_file() -> str:
    """The config's file by its absolute path, with its variant."""
    file, colon, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return os.path.abspath(file) + colon + variant


def _overrides() -> dict[str, object]:
    return config_flags.get_override_values(flags.FLAGS["config"])


def _config_name() -> str:
    file = pathlib.Path(_config_file().partition(":")[0])
    return f"{file.parent.name}/{file.stem}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _make_directory(path: pathlib.Path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--workdir={_WORKDIR.value} cannot be used ({error.strerror}: {error.filename}); "
            "name another directory"
        ) from error


def _say(text: str):
    print(text, flush=True)


if __name__ == "__main__":
    app.run(binary.guarded(main), flags_parser=binary.parse_flags)
