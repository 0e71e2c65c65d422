"""Tests of scripts/submit.py and scripts/cluster/.

Signals and requeues are tested with small programs in place of training and handlers in place of
submitit's; two real runs go through submitit's executor for this machine.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from absl import flags, logging
from absl.testing import flagsaver

from experiments import binary
from fedlite.errors import UserError
from fedlite.federated import processes
from scripts import submit
from scripts.cluster import job as job_lib
from scripts.cluster import slurm
from scripts.cluster.job import Job

# Its import configures logging, which closes the stream of absl's handler unless that is stderr: so
# not first in a test, where stderr may be capsys'.
with contextlib.suppress(ImportError):
    import submitit  # noqa: F401

ROOT = pathlib.Path(__file__).parents[2]
MNIST = "configs/fedavg/mnist5k_cnn.py"
TINY = "tests/experiments/tiny.py:2"


def run(*arguments):
    """The program in this process; its exit code."""
    argv, before = ["submit", *map(str, arguments)], sys.argv
    saved, verbosity = flagsaver.save_flag_values(flags.FLAGS), logging.get_verbosity()
    try:
        # ml_collections looks for overrides there.
        sys.argv = argv
        flags.FLAGS.unparse_flags()
        binary.guarded(submit.main)(binary.parse_flags(argv))
    except SystemExit as exit_:
        return exit_.code
    finally:
        sys.argv = before
        flagsaver.restore_flag_values(saved, flags.FLAGS)
        logging.set_verbosity(verbosity)
    return 0


@pytest.fixture(name="submitit")
def _submitit():
    return pytest.importorskip("submitit", reason="the extra 'submit' is not installed")


# Dry runs.


def test_the_batch_file_of_one_job(submitit, tmp_path, capsys):
    there = tmp_path / "run"
    code = run(f"--config={MNIST}", "--config.rounds=3", f"--workdir={there}", "--cluster=dry",
               "--gpus_per_node=4", "--cpus_per_task=8", "--partition=debug", "--time=1-02:30:00",
               "--grace=300", "--slurm=account=me")  # fmt: skip
    assert code == 0 and not there.exists()
    assert capsys.readouterr().out == textwrap.dedent(
        f"""\
        #!/bin/bash

        # Parameters
        #SBATCH --account=me
        #SBATCH --cpus-per-task=8
        #SBATCH --gpus-per-node=4
        #SBATCH --job-name=fedlite-fedavg-mnist5k-cnn
        #SBATCH --nodes=1
        #SBATCH --ntasks-per-node=1
        #SBATCH --open-mode=append
        #SBATCH --output={there}/submit/%j_0_log.out
        #SBATCH --partition=debug
        #SBATCH --requeue
        #SBATCH --signal=USR2@300
        #SBATCH --time=1590
        #SBATCH --wckey=submitit

        # setup
        cd {ROOT}

        # command
        export SUBMITIT_EXECUTOR=slurm
        srun --unbuffered --output {there}/submit/%j_%t_log.out --cpus-per-task=8 \
{sys.executable} -u -m submitit.core._submit {there}/submit

        # the job: python -m experiments.train --config={ROOT}/{MNIST} --config.rounds=3 \
--workdir={there}
        """
    )


@pytest.mark.parametrize(("tasks", "cpus"), [(1, 0), (4, 8)])
def test_several_nodes_train_one_model(submitit, tmp_path, capsys, tasks, cpus):
    given = ("--nodes=2", f"--tasks_per_node={tasks}", "--gpus_per_node=4")
    code = run(f"--config={MNIST}", f"--workdir={tmp_path}", "--cluster=dry", *given,
               f"--cpus_per_task={cpus}")  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    for option in given:
        assert f"#SBATCH {option.replace('_', '-').replace('tasks-per', 'ntasks-per')}\n" in out
    cpus = f"--cpus-per-task={cpus} " if cpus else ""
    assert f"%t_log.out {cpus}--kill-on-bad-exit=1 {sys.executable}" in out
    # One job, whose tasks have the same command.
    assert "--array" not in out
    (job,) = [line for line in out.splitlines() if line.startswith("# the job")]
    assert job.endswith(f"--workdir={tmp_path}")


def test_backbones_are_trained_by_one_task(submitit, tmp_path, capsys):
    arguments = (f"--workdir={tmp_path}", "--cluster=dry", "--tiny", "--nodes=2")
    assert run("--table=adapters/transfer", *arguments) == 0
    backbones, rows = capsys.readouterr().out.split("#!/bin/bash")[1:]
    assert "python -m experiments.pretrain" in backbones
    assert "--nodes=1\n" in backbones and "--kill-on-bad-exit" not in backbones
    assert "--nodes=2\n" in rows and "--kill-on-bad-exit" in rows


def test_a_grid_is_an_array(submitit, tmp_path, capsys):
    code = run(f"--config={MNIST}", f"--workdir={tmp_path}", "--cluster=dry", "--parallel=2",
               "--sweep=client_optimizer.learning_rate=0.05,0.1", "--sweep=seed=0,1",
               "--sweep=model.name=emnist_cnn")  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    assert "#SBATCH --array=0-3%2\n" in out
    assert f"#SBATCH --output={tmp_path}/submit/%A_%a_0_log.out\n" in out
    expected = [
        f"# task {index} of the array: python -m experiments.train --config={ROOT}/{MNIST} "
        f"--config.client_optimizer.learning_rate={rate} --config.seed={seed} "
        f"--config.model.name=emnist_cnn --workdir={tmp_path}/"
        f"client_optimizer.learning_rate={rate},seed={seed},model.name=emnist_cnn"
        for index, (rate, seed) in enumerate([("0.05", 0), ("0.05", 1), ("0.1", 0), ("0.1", 1)])
    ]
    assert out.splitlines()[-4:] == expected


def test_a_table_has_a_job_a_row_and_seed(submitit, tmp_path, capsys):
    done = tmp_path / "runs/fedpt/seed0"
    done.mkdir(parents=True)
    (done / "summary.json").touch()
    arguments = ("--table=quickstart", f"--workdir={tmp_path}", "--cluster=dry", "--tiny")
    assert run(*arguments, "--seeds=2") == 0
    out = capsys.readouterr().out
    assert "#SBATCH --job-name=fedlite-quickstart\n" in out
    tasks = [line for line in out.splitlines() if line.startswith("# task")]
    # Of 3 rows with 2 seeds one is there.
    assert "--array=0-4%5" in out and len(tasks) == 5
    assert tasks[0].startswith(
        "# task 0 of the array: python -m experiments.train --config=configs/fedavg/mnist5k_cnn.py"
    )
    assert tasks[0].endswith(f"--workdir={tmp_path}/runs/fedavg/seed0")
    assert [path.name for path in tmp_path.rglob("*.json")] == ["summary.json"]


def test_nothing_is_left_to_do(submitit, tmp_path, capsys):
    (tmp_path / "summary.json").touch()
    assert run(f"--config={MNIST}", f"--workdir={tmp_path}", "--cluster=slurm") == 0
    assert capsys.readouterr().out == f"All is finished, in {tmp_path}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=" + MNIST], "--workdir is needed"),
        (["--workdir=x"], "--config is needed"),
        (["--config=nowhere.py", "--workdir=x"], "--config=nowhere.py is not there"),
        (["--table=fedpt", "--workdir=x"], "--table=fedpt is unknown"),
        (["--table=quickstart", "--scale=paper", "--workdir=x"], "--scale=paper is not a scale"),
        (["--table=quickstart", "--sweep=seed=1", "--workdir=x"], "leave away --config"),
        (["--table=fedobd/accounting", "--workdir=x"], "has no runs"),
        (["--config=" + MNIST, "--workdir=x", "--nodes=2", "--cluster=local"], "in one process"),
        (["--config=" + MNIST, "--workdir=x", "--tasks_per_node=2", "--gpus_per_node=4"],
         "--tasks_per_node=2 for --gpus_per_node=4: take 1"),
        (["--config=" + MNIST, "--workdir=x", "--time=soon"], "--time=soon is no time"),
        (["--config=" + MNIST, "--workdir=x", "--time=0:00:00"], "is no time"),
        (["--config=" + MNIST, "--workdir=x", "--time=2"], "--grace=120 s leaves nothing"),
        (["--config=" + MNIST, "--workdir=x", "--slurm=exclusive"], "give KEY=VALUE"),
        (["--config=" + MNIST, "--workdir=x", "--sweep=seed"], "--sweep=seed: give KEY=VALUE"),
        (["--config=" + MNIST, "--workdir=x", "--sweep=sed=1"], "did you mean seed?"),
        (["--config=" + MNIST, "--workdir=x", "--sweep=seed.x=1"], "unknown config key seed.x"),
        (["--config=" + MNIST, "--workdir=x", "--sweep=rounds=1,many"], "config.rounds=many"),
        (["--config=" + MNIST, "--workdir=x", "--sweep=seed=1,1"], "two points"),
        (["--config=" + MNIST, "--workdir=x", "--cluster=cloud"], "cloud"),
        (["--config=" + MNIST, "--workdir=x", "--nodez=2"], "unknown option --nodez"),
        (["--config=" + MNIST, "--workdir=/proc/x", "--cluster=local"], "cannot be used"),
        (["--config=" + MNIST, "--workdir=x", "--cluster=local", "--nowait"], "for one array"),
    ],
)  # fmt: skip
def test_bad_flags_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    if "--cluster=local" in arguments:
        pytest.importorskip("submitit")
    # Configs are named from the root; --workdir=x is not.
    arguments = [a.replace("--workdir=x", f"--workdir={tmp_path / 'x'}") for a in arguments]
    monkeypatch.chdir(ROOT)
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("error: ") and message in err and not out
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_missing_submitit_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(submit.importlib.util, "find_spec", lambda name: None)
    assert run(f"--config={MNIST}", f"--workdir={tmp_path / 'x'}", "--cluster=dry") == 2
    assert "submitit is not installed: pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("1:30:00", 90), ("0:01:30", 2), ("2-00:00:00", 2880)]
)
def test_time_limits(text, minutes):
    assert submit._minutes(text) == minutes


# Slurm.

ARRAY = """\
JobId=7 ArrayJobId=7 ArrayTaskId=2-3,9%2 JobName=x UserId=a(0) JobState=PENDING Reason=JobArray \
Dependency=(null) Command=/a b/x.sh
JobId=9 ArrayJobId=7 ArrayTaskId=1 JobName=x JobState=RUNNING Reason=None Restarts=1
JobId=8 ArrayJobId=7 ArrayTaskId=0 JobName=x JobState=COMPLETED Reason=None ExitCode=0:0
"""
SINGLE = "JobId=12 JobName=x UserId=a(0) JobState={} Reason=None Requeue=1 Restarts=0\n"


def test_scontrol_lines_are_read():
    pending = {"7_2": "PENDING", "7_3": "PENDING", "7_9": "PENDING"}
    assert slurm.parse_states(ARRAY) == {**pending, "7_1": "RUNNING", "7_0": "COMPLETED"}
    assert slurm.parse_states(SINGLE.format("CANCELLED")) == {"12": "CANCELLED"}
    assert slurm.parse_states("No jobs in the system\n") == {}
    stepped = "JobId=7 ArrayJobId=7 ArrayTaskId=0-8:4 JobState=PENDING"
    assert list(slurm.parse_states(stepped)) == ["7_0", "7_4", "7_8"]


def watch(monkeypatch, tmp_path, answers, names=("12",), finish=()):
    """Watches jobs of which scontrol says one answer after the other."""
    jobs = {n: Job(f"job {n}", "m", (), str(tmp_path / n)) for n in names}
    for number in finish:
        (tmp_path / number).mkdir()
        (tmp_path / number / "summary.json").touch()
    answers, said = iter(answers), []
    monkeypatch.setattr(slurm, "show", lambda number: next(answers))
    return slurm.watch(jobs, tmp_path, say=said.append, seconds=0), said


def test_a_job_is_watched_through_a_requeue(monkeypatch, tmp_path):
    states = ["PENDING", "RUNNING", "RUNNING", "COMPLETING", "REQUEUED", "PENDING", "COMPLETED"]
    answers = [SINGLE.format(state) for state in states]
    answers.insert(2, None)
    failures, said = watch(monkeypatch, tmp_path, answers, finish=["12"])
    assert failures == {}
    assert [line.split(": ")[-1] for line in said if line.startswith("12 ")] == [
        "PENDING", "RUNNING", "COMPLETING", "REQUEUED", "PENDING", "COMPLETED"
    ]  # fmt: skip
    assert sum("does not answer" in line for line in said) == 1


@pytest.mark.parametrize("state", ["CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL"])
def test_cancelled_and_failed_jobs_are_reported(state, monkeypatch, tmp_path):
    (tmp_path / "12_0_log.out").write_text("error: no GPU; take another\nTraceback\nmore\n\n")
    failures, _ = watch(monkeypatch, tmp_path, [SINGLE.format(state)])
    assert failures == {"job 12": f"{state}: error: no GPU; take another ({tmp_path}/12_0_log.out)"}


def test_a_job_that_completed_without_a_result_failed(monkeypatch, tmp_path):
    (tmp_path / "12_0_log.out").write_text("one\nlast words\n")
    failures, _ = watch(monkeypatch, tmp_path, [SINGLE.format("COMPLETED")])
    assert failures == {"job 12": f"last words ({tmp_path}/12_0_log.out)"}


def test_jobs_that_slurm_forgot(monkeypatch, tmp_path):
    """Task 1 ended as scontrol saw it, task 0 unseen; that it finished is in its directory."""
    names = ("7_0", "7_1", "7_2")
    answers = [
        "JobId=8 ArrayJobId=7 ArrayTaskId=0 JobState=RUNNING\n"
        "JobId=9 ArrayJobId=7 ArrayTaskId=1 JobState=CANCELLED\n"
        "JobId=7 ArrayJobId=7 ArrayTaskId=2 JobState=RUNNING\n",
        "",
    ]
    failures, said = watch(monkeypatch, tmp_path, answers, names, finish=["7_0"])
    assert said[-2:] == ["7_0 job 7_0: GONE", "7_2 job 7_2: GONE"]
    assert list(failures) == ["job 7_1", "job 7_2"]
    assert failures["job 7_1"].startswith("CANCELLED: no log")


SCONTROL = """\
#!/bin/sh
case $5 in
  1) echo "JobId=1 JobState=RUNNING";;
  2) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1;;
  *) echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1;;
esac
"""


def test_scontrol_is_asked(monkeypatch, tmp_path):
    (tmp_path / "scontrol").write_text(SCONTROL.replace("$5", "$4"))
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm.show("1") == "JobId=1 JobState=RUNNING\n"
    assert slurm.show("2") == ""
    assert slurm.show("3") is None


SBATCH = "#!/bin/sh\ncat $1 > {directory}/seen; echo Submitted batch job 41\n"


def test_jobs_are_submitted_as_one_array(submitit, monkeypatch, tmp_path, capsys):
    """With programs in place of Slurm's; the jobs leave no result."""
    tools = tmp_path / "bin"
    tools.mkdir()
    line = "JobId=4{0} ArrayJobId=41 ArrayTaskId={0} JobState=CANCELLED"
    for name, text in (
        ("sbatch", SBATCH.format(directory=tmp_path)),
        ("srun", "#!/bin/sh\n"),
        ("scontrol", f"#!/bin/sh\necho '{line.format(0)}'\necho '{line.format(1)}'\n"),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    there = tmp_path / "run"
    arguments = (f"--config={ROOT}/{TINY}", f"--workdir={there}", "--sweep=seed=0,1")
    assert run(*arguments, "--nowait") == 0
    assert "41_1 seed=1: submitted, in" in capsys.readouterr().out
    assert "#SBATCH --array=0-1%2\n" in (tmp_path / "seen").read_text()
    assert len(list((there / "submit").glob("*submitted.pkl"))) == 2
    assert run(*arguments) == 1
    out = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[:3] for line in out[-2:]] == [
        ["FAILED", f"seed={seed}", "CANCELLED"] for seed in (0, 1)
    ]
    (tools / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1")
    assert run(*arguments) == 2
    assert "sbatch refuses: sbatch: error: invalid partition" in capsys.readouterr().err


# A job's process. `requeue` stands for submitit's handler.

PROGRAM = """
import os, pathlib, signal, sys
from absl import flags
WORKDIR = flags.DEFINE_string("workdir", None, "")
HOW = flags.DEFINE_string("how", "", "")
def main(_):
    there = pathlib.Path(WORKDIR.value)
    if HOW.value == "fail":
        print("error: bad", file=sys.stderr)
        sys.exit(2)
    if HOW.value == "early":
        os.kill(os.getpid(), signal.SIGUSR2)
    stopped = []
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    if HOW.value in ("preempt", "terminate"):
        number = signal.SIGUSR2 if HOW.value == "preempt" else signal.SIGTERM
        os.kill(os.getpid(), number)
    assert bool(stopped) == (HOW.value in ("preempt", "terminate"))
    (there / ("checkpoint" if stopped else "summary.json")).touch()
    signal.signal(signal.SIGTERM, before)
"""
NODE = """
import pathlib, signal, sys
from scripts.cluster.job import Job
def requeue(number, frame):
    print("requeued", flush=True)
    sys.exit(144)
signal.signal(signal.SIGUSR2, requeue)
signal.signal(signal.SIGTERM, lambda *_: print("bypassed", flush=True))
Job("j", "program", ("--how=" + sys.argv[1],), sys.argv[2])()
print("over")
"""


@pytest.mark.parametrize(
    ("how", "code", "out", "files"),
    [
        ("", 0, "over\n", {"summary.json"}),
        # The checkpoint first, then back into the queue.
        ("preempt", 144, "requeued\n", {"checkpoint"}),
        # Nothing listens yet: back at once.
        ("early", 144, "requeued\n", set()),
        # scancel: a checkpoint, and no new start.
        ("terminate", 1, "", {"checkpoint"}),
        ("fail", 1, "", set()),
    ],
)
def test_a_job_and_its_signals(how, code, out, files, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    there = tmp_path / "run"
    there.mkdir()
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", NODE, how, str(there)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert {path.name for path in there.iterdir()} == files
    if how == "terminate":
        assert "JobError: j was stopped by a signal before it wrote summary.json" in done.stderr
    if how == "fail":
        assert "JobError: j ended with code 2" in done.stderr


def test_a_task_that_follows_leaves_the_rest_to_task_0(tmp_path, monkeypatch):
    """A run that was stopped: process 0 tells that there is no result, the others end well."""
    job = Job("j", "program", (), str(tmp_path))
    monkeypatch.setattr(Job, "_run", lambda self: 0)
    with pytest.raises(job_lib.JobError, match="was stopped by a signal"):
        job()
    monkeypatch.setattr(processes, "index", lambda: 1)
    job()
    monkeypatch.setattr(Job, "_run", lambda self: sys.exit(2))
    with pytest.raises(job_lib.JobError, match="ended with code 2"):
        job()


def test_what_is_put_back_is_the_same_job(submitit):
    job = Job("j", "m", ("--a=1",), "/x")
    assert job.checkpoint().function == job and job.checkpoint().args == ()
    assert dataclasses.replace(job, flags=()) != job


def test_reasons(tmp_path):
    assert job_lib.reason(tmp_path / "none").startswith("no log")
    (tmp_path / "log").write_text("\n")
    assert job_lib.reason(tmp_path / "log").startswith("an empty log")
    (tmp_path / "log").write_text(
        "Traceback\nscripts.cluster.job.JobError: j was stopped\nsrun: x\n"
    )
    assert job_lib.reason(tmp_path / "log") == f"j was stopped ({tmp_path}/log)"


def test_without_slurm_there_is_a_remedy(submitit, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    job = Job("j", "m", (), str(tmp_path))
    with pytest.raises(UserError, match="no srun here"):
        slurm.submit([job], "x", job_lib.Resources(60, 120), tmp_path)


# This machine.


def test_two_real_runs_here_and_one_that_is_refused(submitit, tmp_path, capfd):
    there = tmp_path / "run"
    arguments = (f"--config={ROOT}/{TINY}", f"--workdir={there}", "--cluster=local", "--time=5")
    assert run(*arguments, "--sweep=seed=0,1") == 0
    out = capfd.readouterr().out.splitlines()
    assert [line.split(" ", 1)[1] for line in out[:-1]] == [
        f"seed={seed}: {state}" for seed in (0, 1) for state in ("RUNNING", "FINISHED")
    ]
    assert out[-1] == f"All is finished, in {there}"
    for seed in (0, 1):
        summary = json.loads((there / f"seed={seed}" / "summary.json").read_text())
        assert (summary["seed"], summary["rounds"]) == (seed, 2)
    # What is finished is not run again; what is refused is reported with its line.
    assert run(*arguments, "--sweep=seed=1,-1") == 1
    out = capfd.readouterr().out.splitlines()
    assert out[-1].startswith("FAILED: seed=-1: error: seed = -1 is out of range")


def test_an_interruption_lets_jobs_write_a_checkpoint(submitit, tmp_path):
    (tmp_path / "program.py").write_text(
        textwrap.dedent(
            """
            import pathlib, signal, time
            from absl import flags
            WORKDIR = flags.DEFINE_string("workdir", None, "")
            def main(_):
                there, stopped = pathlib.Path(WORKDIR.value), []
                signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
                (there / "ready").touch()
                while not stopped:
                    time.sleep(0.02)
                (there / "checkpoint").touch()
            """
        )
    )
    there = tmp_path / "run"
    there.mkdir()
    script = (
        # A shell's background jobs, and so their tests, begin with SIGINT ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import pathlib; from experiments import binary; from scripts.cluster import local, job\n"
        f"there = pathlib.Path({str(there)!r})\n"
        "jobs = [job.Job('j', 'program', (), str(there))]\n"
        "run = lambda _: local.run(jobs, job.Resources(5, 120), there / 'submit')\n"
        "binary.guarded(run)([])"
    )
    path = os.pathsep.join([str(ROOT), str(tmp_path), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 60
        while not (there / "ready").exists() and time.monotonic() < end:
            time.sleep(0.1)
        # As a terminal does: to the whole group.
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Stopping: each job" in out
    assert (there / "checkpoint").exists()
