"""On a real Slurm, which `tests.slurm.cluster` brings up on this machine.

A minute or two, so it runs only where the environment variable FEDLITE_SLURM is 1; there it fails
where Slurm is not installed. `.ci/run` sets it where it can.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from tests import toy
from tests.experiments import cli
from tests.slurm import cluster

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = ROOT / "configs/fedavg/digits_mlp.py"

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        os.environ.get("FEDLITE_SLURM") != "1",
        reason=f"brings up a Slurm cluster; FEDLITE_SLURM=1 runs it, after {cluster.INSTALL}",
    ),
]


@pytest.fixture(scope="module")
def slurm():
    """The environment for commands on the cluster."""
    with cluster.running() as environment:
        yield environment


def command(environment, *arguments, timeout=240):
    """Runs a program to its end; its output."""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def rounds(workdir):
    """The rounds of metrics.jsonl, in the order of its lines."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [line["round"] for line in map(json.loads, lines) if line["kind"] == "train"]


def test_two_tasks_train_one_model(slurm, tmp_path):
    train = ("-m", "experiments.train", f"--config={DIGITS}", "--config.rounds=4")
    together, alone = tmp_path / "together", tmp_path / "alone"
    out = command(slurm, "srun", "--ntasks=2", sys.executable, *train, f"--workdir={together}")
    # Two runs, one after the other, would both say so.
    assert out.count(f"summary in {together}") == 1
    outcome = cli.run(*train[2:], "--config.devices=1", f"--workdir={alone}")
    assert outcome.code == 0, outcome.stderr
    # One process writes.
    assert rounds(together) == [1, 2, 3, 4]
    toy.assert_close(cli.last_checkpoint(together), cli.last_checkpoint(alone))
    summaries = [json.loads((path / "summary.json").read_text()) for path in (together, alone)]
    assert summaries[0]["bytes"] == summaries[1]["bytes"]


def test_an_array_of_six_makes_a_table(slurm, tmp_path):
    table = ("--table=quickstart", "--scale=bundled", "--tiny", "--seeds=2")
    out = command(
        slurm, sys.executable, "-m", "scripts.submit", *table, f"--workdir={tmp_path}", "--time=10"
    )
    numbers = re.findall(r"^(\d+)_(\d+) .*: COMPLETED$", out, re.MULTILINE)
    assert len({job for job, _ in numbers}) == 1, out
    assert sorted(int(index) for _, index in numbers) == [0, 1, 2, 3, 4, 5]
    assert len(list(tmp_path.glob("runs/*/seed[01]/summary.json"))) == 6
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/summary.json")}
    reproduce = (sys.executable, "-m", "scripts.reproduce_table", *table, f"--out={tmp_path}")
    command(slurm, *reproduce)
    text = (tmp_path / "table.md").read_text()
    assert text.count("\n| ") >= 3
    # Nothing was run again.
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize(("tasks", "count"), [(1, 300), (2, 150)])
def test_a_preempted_job_resumes_with_the_same_bits(slurm, tmp_path, tasks, count):
    """SIGUSR2 is what Slurm sends before a preemption or the time limit, see docs/clusters.md."""
    config = (f"--config={cli.TINY}:{count}", "--config.devices=0")
    preempted, straight = tmp_path / "preempted", tmp_path / "straight"
    submit = [sys.executable, "-m", "scripts.submit", *config, f"--workdir={preempted}"]
    submit += ["--time=10", f"--tasks_per_node={tasks}"]
    process = subprocess.Popen(
        submit, env=slurm, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        end = time.monotonic() + 120
        metrics = preempted / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < 20:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        (job,) = command(slurm, "squeue", "--noheader", "--format=%i").split()
        command(slurm, "scancel", "--signal=USR2", job)
        train = (sys.executable, "-m", "experiments.train", *config, f"--workdir={straight}")
        command(slurm, "srun", f"--ntasks={tasks}", *train)
        out, _ = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert out.rstrip().endswith(f"All is finished, in {preempted}")
    # It was stopped on the way, and started twice.
    assert "Restarts=1 " in command(slurm, "scontrol", "show", "job", "-o", job)
    log = (preempted / f"submit/{job}_0_log.out").read_text()
    assert "Stopped by a signal" in log
    assert rounds(preempted) == list(range(1, count + 1))
    cli.assert_same_run(preempted, straight)


def test_a_cancelled_job_is_reported(slurm, tmp_path):
    submit = [sys.executable, "-m", "scripts.submit", f"--config={cli.TINY}:100000"]
    process = subprocess.Popen(
        [*submit, f"--workdir={tmp_path}", "--time=10"],
        env=slurm,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while not (jobs := command(slurm, "squeue", "--noheader", "--format=%i").split()):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        command(slurm, "scancel", *jobs)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert re.search(r"^FAILED: .*CANCELLED", out, re.MULTILINE), out
