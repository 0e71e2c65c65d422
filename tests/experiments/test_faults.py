# ruff: noqa: E501
"""What may go wrong in a run, and which test shows that nothing is lost and the message is clear.

| fault | expected | test |
| --- | --- | --- |
| kill -9 at any moment | the next start ends with the same bits | experiments.test_interruption::test_kill_at_random_moments |
| kill -9 between the last round and the summary | the next start writes it | experiments.test_interruption::test_kill_between_last_round_and_summary |
| SIGTERM or SIGINT in training | a checkpoint, code 0, the same bits | experiments.test_interruption::test_stop_by_signals |
| SIGTERM in an evaluation | the same | experiments.test_faults::test_sigterm_in_an_evaluation |
| SIGTERM to one of two processes | both stop after the same round | federated.test_processes::test_stopped_killed_and_resumed_by_one_process |
| kill -9 of a worker, or of process 0 | the other one ends; one process resumes | federated.test_processes::test_stopped_killed_and_resumed_by_one_process |
| a worker that never comes | one line within the time limit | federated.test_processes::test_a_process_that_waits_in_vain |
| bad input in one of two processes | both end with code 2, one line | federated.test_processes::test_an_error_of_one_process_ends_all |
| processes with different data or configs | all refuse | federated.test_processes::test_processes_agree |
| a full disk in a checkpoint | one line; the older ones resume | experiments.test_faults::test_full_disk_in_a_checkpoint |
| a full disk in the metrics | one line; a checkpoint resumes | experiments.test_faults::test_full_disk_in_the_metrics |
| the newest checkpoint truncated | the one before it resumes | experiments.test_bad_workdir::test_newest_checkpoint_cannot_be_read |
| all checkpoints truncated | refused, nothing written | experiments.test_bad_workdir::test_no_checkpoint_can_be_read |
| a flipped bit in a checkpoint | seen, the one before it resumes | federated.test_checkpoint::test_silent_corruption_is_seen_by_the_checksum |
| the clients' states damaged | the checkpoint before it resumes | federated.test_store::test_a_damaged_file_is_passed_over |
| a checkpoint of another model | refused, names the difference | experiments.test_bad_workdir::test_checkpoints_of_another_run |
| NaN in a client's update | the client is left out | federated.test_training::test_one_poisoned_client_is_left_out |
| NaN in all updates | one line; checkpoints are untouched | federated.test_training::test_no_finite_client_ends_the_run |
| a client with no data | weighs nothing, its state stays | federated.test_round::test_client_state_follows_the_client |
| a cohort with no data | the round changes nothing | experiments.test_faults::test_a_cohort_without_data |
| a data file changed between runs | refused, nothing written | experiments.test_bad_workdir::test_data_changed |
| an unwritable directory | refused before anything is compiled | experiments.test_bad_workdir::test_is_not_writable |
| a corrupt config.json | refused, nothing written | experiments.test_bad_workdir::test_config_is_no_json |
| corrupt lines in metrics.jsonl | left out, the run resumes | experiments.test_faults::test_corrupt_metrics |
| two runs in one directory | the second is refused | experiments.test_bad_workdir::test_is_in_use |
"""

import errno
import importlib
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from fedlite import methods
from fedlite.federated.evaluation import Evaluator
from fedlite.federated.workdir import Workdir
from tests import toy
from tests.experiments import cli
from tests.experiments.test_interruption import HOOKED

# A limit on file sizes fails as a full disk does, in the middle of a file.
_FULL = """
import resource
from fedlite.federated.checkpoint import Checkpoints
save = Checkpoints.save
def hooked(self, number, *rest):
    if number == 8:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
    save(self, number, *rest)
Checkpoints.save = hooked
"""


def _arguments(workdir):
    return f"--config={cli.TINY}", f"--workdir={workdir}"


def _steps(workdir):
    names = (path.name for path in (workdir / "checkpoints").iterdir())
    return sorted(int(name) for name in names if name.isdecimal())


def _faults():
    return re.findall(r"^\| (.+) \| (.+) \| (\w+)\.(\w+)::(\w+) \|$", __doc__, re.MULTILINE)


def test_there_are_at_least_twenty():
    assert len({fault for fault, *_ in _faults()}) == __doc__.count("\n|") - 2 >= 20


@pytest.mark.parametrize("fault", _faults(), ids=lambda fault: fault[0].replace(" ", "_"))
def test_every_fault_has_its_test(fault):
    _, _, package, module, name = fault
    assert callable(getattr(importlib.import_module(f"tests.{package}.{module}"), name))


def test_sigterm_in_an_evaluation(finished, tmp_path, monkeypatch):
    evaluate, calls = Evaluator.evaluate, []

    def hooked(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", hooked)
        outcome = cli.run(*_arguments(tmp_path / "run"))
    assert outcome.code == 0, outcome.stderr
    assert "Stopped by a signal" in outcome.stdout
    # Evaluations are every 5 rounds, checkpoints every 4.
    assert len(calls) == 2 and _steps(tmp_path / "run")[-1] == 10
    assert cli.run(*_arguments(tmp_path / "run")).code == 0
    cli.assert_same_run(tmp_path / "run", finished)


def test_full_disk_in_a_checkpoint(finished, tmp_path):
    workdir = tmp_path / "run"
    process = cli.start(*_arguments(workdir), program=("-c", HOOKED.format(hook=_FULL)))
    outcome = cli.finish(process)
    assert outcome.code == 2, outcome.stderr
    # A writer in another thread may still tell that nobody waits for it any more.
    assert str(cli.ROOT / "fedlite" / "federated") not in outcome.stderr
    (line,) = [text for text in outcome.stderr.splitlines() if text.startswith("error: ")]
    assert os.strerror(errno.EFBIG) in line and "make room" in line and "resumes" in line
    assert _steps(workdir) == [4]
    assert cli.run(*_arguments(workdir)).code == 0
    cli.assert_same_run(workdir, finished)


def test_full_disk_in_the_metrics(finished, tmp_path, monkeypatch):
    workdir, append = tmp_path / "run", Workdir.append

    def hooked(self, number, kind, values):
        if number == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")
        append(self, number, kind, values)

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "append", hooked)
        outcome = cli.run(*_arguments(workdir))
    assert outcome.code == 2
    (line,) = outcome.stderr.splitlines()
    assert "No space left on device" in line and "make room" in line
    assert _steps(workdir) == [4]
    assert cli.run(*_arguments(workdir)).code == 0
    cli.assert_same_run(workdir, finished)


def test_corrupt_metrics(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "30")
    (workdir / "summary.json").unlink()
    metrics = workdir / "metrics.jsonl"
    torn = metrics.read_bytes()[:-9]
    metrics.write_bytes(b'\xff\xfe{"round": "x"}\n[3]\n\n' + torn)
    assert cli.run(*_arguments(workdir)).code == 0
    cli.assert_same_run(workdir, finished)


def test_a_cohort_without_data():
    task = toy.make_task()
    split = toy.make_split(sizes=(0, 0, 0, 0, 0, 0, 0, 9))
    engine = toy.make_engine(
        task, methods.build_chain("fedavg", toy.make_context(task), {}), split=split, clients=2
    )
    server, moved = engine.init(toy.make_params(task)), []
    for number in range(8):
        before = jax.tree.map(np.asarray, engine.host(server).params)
        server, (result,) = engine.run(server, number, 1)
        after = jax.tree.map(np.asarray, engine.host(server).params)
        moved.append(any((before[path] != after[path]).any() for path in before))
        assert moved[-1] == (7 in result.ids) == (result.examples == 9)
        assert result.nonfinite == 0
        assert len(result.down) == 2 and (result.down > 0).all()
    assert set(moved) == {False, True}
