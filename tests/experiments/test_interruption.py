"""A run that is killed or stopped at any moment resumes and ends with the same bits."""

import os
import random
import time

from tests.experiments import cli

ROUNDS = 30
# Runs the binary with a hook: code that changes fedlite before it starts.
HOOKED = """
import os, runpy, signal, sys
from fedlite.federated.workdir import Workdir

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

{hook}
sys.argv[0] = "train"
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""
STOP = """
append = Workdir.append
def hooked(self, number, kind, values):
    append(self, number, kind, values)
    if number == {round}:
        os.kill(os.getpid(), signal.{signal})
Workdir.append = hooked
"""


def _arguments(workdir):
    return f"--config={cli.TINY}", f"--workdir={workdir}"


def _hooked(workdir, hook):
    process = cli.start(*_arguments(workdir), program=("-c", HOOKED.format(hook=hook)))
    return cli.finish(process)


def _rounds(workdir) -> int:
    metrics = workdir / "metrics.jsonl"
    return metrics.read_text().count('"train"') if metrics.exists() else 0


def _writes_checkpoint(workdir) -> bool:
    return any((workdir / "checkpoints").glob("*tmp*"))


def test_kill_at_random_moments(finished, tmp_path):
    seed = int(os.environ.get("FEDLITE_KILL_SEED", random.randrange(10**6)))
    print(f"FEDLITE_KILL_SEED={seed}")
    rng, workdir = random.Random(seed), tmp_path / "run"
    early, middle, late = rng.randint(1, 8), rng.randint(9, 16), rng.randint(17, 28)
    # Each moment is a condition and a delay after it, in seconds.
    moments = [
        (lambda: workdir.exists(), rng.uniform(0, 2)),
        (lambda: _rounds(workdir) >= early, rng.uniform(0, 0.1)),
        (lambda: _rounds(workdir) >= middle and _writes_checkpoint(workdir), 0),
        (lambda: _rounds(workdir) >= late, rng.uniform(0, 0.1)),
        (lambda: _rounds(workdir) == ROUNDS, rng.uniform(0, 0.5)),
    ]
    for condition, delay in moments:
        process = cli.start(*_arguments(workdir))
        while process.poll() is None and not condition():
            time.sleep(0.002)
        time.sleep(delay)
        print(f"killed in round {_rounds(workdir)}, checkpoint {_writes_checkpoint(workdir)}")
        process.kill()
        outcome = cli.finish(process)
        assert outcome.code in (-9, 0), outcome.stderr
    assert cli.run(*_arguments(workdir)).code == 0
    cli.assert_same_run(workdir, finished)
    assert not _writes_checkpoint(workdir)
    shown = cli.tensorboard_steps(workdir / "tensorboard")
    assert shown["train/loss"] == [*range(1, ROUNDS + 1)]
    assert shown["test/accuracy"] == [5, 10, 15, 20, 25, 30]


def test_kill_between_last_round_and_summary(finished, tmp_path):
    workdir = tmp_path / "run"
    assert _hooked(workdir, "Workdir.write_summary = die").code == -9
    assert _rounds(workdir) == ROUNDS and not (workdir / "summary.json").exists()
    outcome = cli.run(*_arguments(workdir))
    assert outcome.code == 0
    cli.assert_same_run(workdir, finished)


def test_stop_by_signals(finished, tmp_path):
    workdir = tmp_path / "run"
    for number, name in ((7, "SIGTERM"), (18, "SIGINT")):
        outcome = _hooked(workdir, STOP.format(round=number, signal=name))
        assert outcome.code == 0, outcome.stderr
        assert "Stopped by a signal" in outcome.stdout
        stopped = _rounds(workdir)
        # A dispatch ends at the next evaluation or checkpoint.
        assert number <= stopped <= number + 4
        assert (workdir / "checkpoints" / str(stopped)).exists()
        assert not (workdir / "summary.json").exists()
    assert cli.run(*_arguments(workdir)).code == 0
    cli.assert_same_run(workdir, finished)


def test_rerun_of_a_finished_run(finished):
    summary = (finished / "summary.json").read_text()
    outcome = cli.run(*_arguments(finished))
    assert outcome.code == 0
    assert (finished / "summary.json").read_text() == summary
    assert not {"jit(run_rounds)", "jit(_score)"} & set(outcome.compiled)


def test_kill_on_two_devices(tmp_path):
    """Nothing depends on which device is done first."""
    alone, workdir = tmp_path / "alone", tmp_path / "run"
    arguments = f"--config={cli.TINY}:12", "--config.devices=0"
    two = {"NPROC": "2"}

    def start(path, program=("-m", "experiments.train")):
        return cli.start(*arguments, f"--workdir={path}", program=program, **two)

    hook = STOP.format(round=7, signal="SIGKILL")
    # Side by side, as each waits for its own compilation.
    processes = start(alone), start(workdir, ("-c", HOOKED.format(hook=hook)))
    assert [cli.finish(process).code for process in processes] == [0, -9]
    assert 7 <= _rounds(workdir) < 12
    assert cli.finish(start(workdir)).code == 0
    cli.assert_same_run(workdir, alone)
