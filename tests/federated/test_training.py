import contextlib
import dataclasses
import json
import os
import signal
import threading
import time

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedlite import methods, tasks
from fedlite.data.federated import FederatedDataset, Split
from fedlite.errors import UserError
from fedlite.federated import training
from fedlite.federated.engine import Engine, EngineOptions
from fedlite.federated.local import ClientOptimizer
from fedlite.federated.progress import ProgressBar
from fedlite.federated.server_optimizer import server_optimizer
from fedlite.federated.workdir import Workdir
from tests import toy

ADAM = server_optimizer("adam", learning_rate=0.01)


def _dataset(split=None) -> FederatedDataset:
    return FederatedDataset(
        "toy", {"train": split or toy.make_split(), "test": toy.make_split(seed=1)}, toy.CLASSES
    )


def _experiment(method=None, dataset=None, **changes) -> training.Experiment:
    task = toy.make_task()
    parts = {
        "names": {"method": "toy", "dataset": "toy", "model": "mlp"},
        "config": {"seed": 3},
        "dataset": dataset or _dataset(),
        "task": task,
        "init_params": lambda: toy.make_params(task),
        "method": method or toy.make_method(task, "fedavg"),
        "recipe": methods.Recipe(clients=3, epochs=1, lr=0.1),
        "client_optimizer": ClientOptimizer(),
        "server_optimizer": ADAM,
        # Two clients of unlike size in a chunk: some steps are padded.
        "options": EngineOptions(batch_size=4, devices=1, clients_per_chunk=2),
        "seed": 3,
        "rounds": 10,
        "eval_every": 4,
        "checkpoint_every": 3,
    }
    return training.Experiment(**{**parts, **changes})


def _train(experiment, path):
    return training.train(experiment, Workdir(path))


def _steps(path):
    return sorted(int(step.name) for step in (path / "checkpoints").iterdir())


def _outcome(path):
    """What must not depend on how a run was interrupted."""
    summary = json.loads((path / "summary.json").read_text())
    del summary["seconds"], summary["clients_per_second"], summary["peak_host_memory_bytes"]
    return summary, (path / "metrics.jsonl").read_text()


class Crash(Exception):
    pass


@contextlib.contextmanager
def _hook(monkeypatch, round_number, act):
    """Calls `act` when a round's metrics are written."""
    append = Workdir.append

    def hooked(self, number, kind, values):
        append(self, number, kind, values)
        if (number, kind) == (round_number, "train"):
            act()

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "append", hooked)
        yield


def _crash():
    raise Crash


@dataclasses.dataclass(frozen=True)
class Tired(methods.Method):
    """Clients remember how often they took part, and return less each time."""

    def init_client(self, key, view):
        return jnp.zeros((2,))

    def deselect(self, context, update, report):
        parts = {k: p._replace(value=p.value / (1 + context[0])) for k, p in update.parts.items()}
        return update._replace(parts=parts), context + 1


@dataclasses.dataclass(frozen=True)
class Poison(methods.Method):
    """From a round on, every client's update is NaN."""

    begin: int
    active: bool = False

    def client_optimizer(self, view, optimizer):
        if not self.active:
            return optimizer
        return optax.chain(optimizer, optax.scale(jnp.nan))

    def at(self, round_number, state, recipe):
        active = round_number >= self.begin
        until = recipe.until if active else min(recipe.until, self.begin)
        method = dataclasses.replace(self, active=active)
        return method, dataclasses.replace(recipe, until=until)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished")
    assert _train(_experiment(), path) == json.loads((path / "summary.json").read_text())
    return path


def test_evaluates_and_saves_when_due(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(line["round"], line["kind"]) for line in lines if line["kind"] == "eval"] == [
        (4, "eval"),
        (8, "eval"),
        (10, "eval"),
    ]
    assert 0 < json.loads((finished / "summary.json").read_text())["padded_step_share"] < 1
    # Of 3, 6, 9 and the last, three are kept.
    assert _steps(finished) == [6, 9, 10]


@dataclasses.dataclass(frozen=True)
class Mistakes(tasks.Classification):
    """The same model, judged by what it gets wrong."""

    metric = tasks.Metric("mistakes", "mistakes", higher=False)

    def report(self, outputs, split, last):
        metrics, _ = super().report(outputs, split, last)
        wrong = 1 - metrics["accuracy"]
        clients = {"c0": {"errors": round(wrong * 45), "words": 45}}
        return tasks.Evaluation({"loss": metrics["loss"], "mistakes": wrong, "last": last}, clients)


def test_the_task_says_what_is_best(tmp_path):
    toys = toy.make_task()
    summary = _train(_experiment(task=Mistakes(toys.model, toys.axes)), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    assert [line["last"] for line in evaluations] == [False, False, True]
    mistakes = [line["mistakes"] for line in evaluations]
    assert summary["best"]["mistakes"] == min(mistakes) < max(mistakes)
    assert summary["final"] == {key: evaluations[-1][key] for key in ("loss", "mistakes", "last")}
    counts = json.loads((tmp_path / "clients_test.json").read_text())
    assert counts["round"] == 10 and counts["metric"] == "mistakes"
    assert counts["clients"]["c0"]["errors"] == round(45 * mistakes[-1])


def test_crash_and_resume(finished, tmp_path, monkeypatch):
    for round_number in (2, 5, 10):
        with _hook(monkeypatch, round_number, _crash), pytest.raises(Crash):
            _train(_experiment(), tmp_path)
    assert _train(_experiment(), tmp_path) is not None
    assert _outcome(tmp_path) == _outcome(finished)


def test_signal_ends_with_a_checkpoint(finished, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    for round_number, number in ((4, signal.SIGTERM), (7, signal.SIGINT)):
        with _hook(monkeypatch, round_number, lambda number=number: os.kill(os.getpid(), number)):
            assert _train(_experiment(), tmp_path) is None
        assert not (tmp_path / "summary.json").exists()
        assert signal.getsignal(signal.SIGTERM) is before
    # Round 4 ended with an evaluation, 7 and 8 were one dispatch.
    assert _steps(tmp_path) == [4, 6, 8]
    _train(_experiment(), tmp_path)
    assert _outcome(tmp_path) == _outcome(finished)


def test_second_signal_has_its_usual_effect(tmp_path, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        # Two that are pending at once are one.
        while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell's background jobs, and so their tests, begin with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _hook(monkeypatch, 5, twice), pytest.raises(KeyboardInterrupt):
            _train(_experiment(), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def test_runs_off_the_main_thread(finished, tmp_path):
    thread = threading.Thread(target=_train, args=(_experiment(), tmp_path))
    thread.start()
    thread.join()
    assert _outcome(tmp_path) == _outcome(finished)


def test_dispatches_last_about_so_long(finished, tmp_path, monkeypatch):
    counts, run = [], Engine.run

    def counted(self, server, first, count):
        counts.append(count)
        return run(self, server, first, count)

    monkeypatch.setattr(Engine, "run", counted)
    _train(_experiment(eval_every=100, checkpoint_every=100), tmp_path / "fast")
    # One to see how long it takes.
    assert counts == [1, 9]
    counts.clear()
    monkeypatch.setattr(training, "DISPATCH_SECONDS", 0.0)
    _train(_experiment(), tmp_path / "slow")
    assert counts == [1] * 10
    assert _outcome(tmp_path / "slow") == _outcome(finished)


def test_clients_state_is_resumed(tmp_path, monkeypatch):
    _train(_experiment(Tired()), tmp_path / "straight")
    with _hook(monkeypatch, 8, _crash), pytest.raises(Crash):
        _train(_experiment(Tired()), tmp_path / "crashed")
    _train(_experiment(Tired()), tmp_path / "crashed")
    assert _outcome(tmp_path / "crashed") == _outcome(tmp_path / "straight")


def test_one_poisoned_client_is_left_out(tmp_path):
    split = toy.make_split()
    x = split.arrays["x"].astype(np.float32) / 255
    x[split.offsets[2] : split.offsets[3]] = np.nan
    poisoned = Split({**split.arrays, "x": x}, split.offsets, split.client_ids)
    recipe = methods.Recipe(clients=8, epochs=1, lr=0.1)
    summary = _train(_experiment(dataset=_dataset(poisoned), recipe=recipe, rounds=3), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["nonfinite_clients"] for line in train] == [1, 1, 1]
    assert {line["examples"] for line in train} == {sum(toy.SIZES) - toy.SIZES[2]}
    assert np.isfinite(summary["final"]["loss"])
    # Its upload travelled all the same.
    assert {line["up_bytes"] for line in train} == {8 * 4 * summary["server_params"]}


def test_no_finite_client_ends_the_run(tmp_path):
    experiment = _experiment(Poison(begin=7))
    for _ in range(2):
        with pytest.raises(UserError, match="round 8: no client's update is finite") as error:
            _train(experiment, tmp_path)
        assert "client_optimizer.learning_rate" in str(error.value)
        # Older checkpoints stay, and a rerun begins with them.
        assert _steps(tmp_path) == [3, 6]
        assert not (tmp_path / "summary.json").exists()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["round"] for line in train] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line["nonfinite_clients"] for line in train] == [0] * 7 + [3]


def test_a_client_without_examples_does_not_hide_it(tmp_path):
    recipe = methods.Recipe(clients=8, epochs=1, lr=0.1)
    assert 0 in toy.SIZES
    with pytest.raises(UserError, match="round 1: no client's update is finite"):
        _train(_experiment(Poison(begin=0), recipe=recipe), tmp_path)


@dataclasses.dataclass(frozen=True)
class Unhappy(methods.Method):
    """Finds fault when its state is made."""

    def init(self, key, view):
        raise UserError("put it further left")


def test_errors_of_a_method_come_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="further left"):
        _train(_experiment(Unhappy()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_directory_is_free_after_the_run(tmp_path, monkeypatch):
    for act in (_crash, lambda: None):
        workdir = Workdir(tmp_path)
        with _hook(monkeypatch, 1, act), contextlib.suppress(Crash):
            training.train(_experiment(rounds=2), workdir)
        Workdir(tmp_path).check({"seed": 3})


def test_initial_parameters_are_made_last(tmp_path):
    def never():
        raise AssertionError("made for a run that is refused")

    (tmp_path / "config.json").write_text('{"seed": 4}')
    with pytest.raises(UserError, match="seed was 4 and is 3"):
        _train(_experiment(init_params=never), tmp_path)
    with pytest.raises(UserError, match="devices = 99"):
        _train(
            _experiment(init_params=never, options=EngineOptions(batch_size=4, devices=99)),
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_log_lines_are_whole(capsys):
    title = "partial_training+federated_dropout+quantize " * 4 + "[bold]"
    with ProgressBar(title, rounds=10, every=0.0) as bar:
        bar.update(4, loss=0.5, megabytes=1.25, rate=30.0)
        bar.evaluated("accuracy", 0.9)
        bar.update(10, loss=0.25, megabytes=2.5, rate=30.0)
    assert capsys.readouterr().err.splitlines() == [
        f"{title}: round 4/10 loss 0.500 1.2 MB 30.0 clients/s",
        f"{title}: round 10/10 loss 0.250 accuracy 0.900 2.5 MB 30.0 clients/s",
    ]


def test_log_lines_tell_how_long_the_rest_takes(capsys, monkeypatch):
    """2 rounds in 10 seconds after the first one, which is left out: 35 for the last 7."""
    now = iter([0.0, 60.0, 60.0, 60.0, 70.0, 70.0, 70.0])
    monkeypatch.setattr("fedlite.federated.progress.time.monotonic", lambda: next(now, 70.0))
    with ProgressBar("t", rounds=10, every=0.0) as bar:
        bar.update(1, loss=0.5, megabytes=1.0, rate=30.0)
        bar.update(3, loss=0.5, megabytes=1.0, rate=30.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "t: round 1/10 loss 0.500 1.0 MB 30.0 clients/s"
    assert lines[1] == "t: round 3/10 loss 0.500 1.0 MB 30.0 clients/s 0:00:35 left"


@dataclasses.dataclass(frozen=True)
class Brief(methods.Method):
    """Two rounds of three clients, then two of all at half the rate, then the end."""

    def at(self, round_number, state, recipe):
        if round_number < 2:
            return self, dataclasses.replace(recipe, until=2)
        if round_number < 4:
            return self, dataclasses.replace(recipe, clients=8, lr=recipe.lr / 2, until=4)
        return self, dataclasses.replace(recipe, ended=True)

    def privacy(self, rounds):
        return {"epsilon": 0.5 * rounds, "delta": 1e-5, "assumptions": "none"}


def test_a_method_may_end_the_run(tmp_path, monkeypatch):
    summary = _train(_experiment(Brief()), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["clients"] for line in lines if line["kind"] == "train"] == [3, 3, 8, 8]
    evaluated = [line for line in lines if line["kind"] == "eval"]
    assert [line["round"] for line in evaluated] == [4]
    assert summary["rounds"] == 4
    assert summary["final"]["accuracy"] == evaluated[0]["accuracy"]
    # The guarantee is that of the rounds that took place.
    assert summary["privacy"] == {"epsilon": 2.0, "delta": 1e-5, "assumptions": "none"}
    assert evaluated[0]["epsilon"] == 2.0
    # Started again, nothing is left to do; stopped in the middle, it goes on to the same end.
    outcome = _outcome(tmp_path)
    _train(_experiment(Brief()), tmp_path)
    assert _outcome(tmp_path) == outcome
    with _hook(monkeypatch, 3, _crash), pytest.raises(Crash):
        _train(_experiment(Brief(), checkpoint_every=1), tmp_path / "crashed")
    _train(_experiment(Brief(), checkpoint_every=1), tmp_path / "crashed")
    assert _outcome(tmp_path / "crashed") == outcome
