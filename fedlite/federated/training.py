"""A whole run: rounds, evaluation, checkpoints, metrics, and the summary at its end.

Several processes do all of it alike, evaluation included, so that none waits for another but in the
rounds; process 0 alone reads and writes the directory and shows progress.
"""

import contextlib
import dataclasses
import pathlib
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from fedlite.data.federated import FederatedDataset
from fedlite.errors import UserError
from fedlite.federated import processes, statistics
from fedlite.federated.checkpoint import Checkpoints, fingerprint, shared
from fedlite.federated.cost import client_cost
from fedlite.federated.engine import Engine, EngineOptions, RoundResult
from fedlite.federated.evaluation import Evaluator
from fedlite.federated.local import ClientOptimizer
from fedlite.federated.meter import Meter
from fedlite.federated.personalization import personalize_run
from fedlite.federated.profile import Profiler
from fedlite.federated.progress import Board, ProgressBar, Unseen
from fedlite.federated.round import Server, look_at_received
from fedlite.federated.workdir import UnwrittenWorkdir, Workdir, to_json, write_atomically
from fedlite.methods import Method, Recipe
from fedlite.tasks import Task

MEGABYTE = 2**20
# A signal waits for the end of a dispatch, so it runs about so long, or one round.
DISPATCH_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """Everything that a run needs, as objects.

    Attributes:
      names: "method", "dataset" and "model", for the summary.
      config: what is kept in config.json and compared on resuming; JSON values.
      dataset: with the splits "train" and "test".
      task: model and loss.
      init_params: makes the server's parameters at round 0, by path; called when all else has
        been found good, since it compiles.
      method: of the clients and the server.
      recipe: clients, epochs and learning rate of a round.
      client_optimizer: of the local steps.
      server_optimizer: one object for the run.
      options: of the engine.
      seed: of cohorts, batches, dropout and codecs.
      rounds, eval_every, checkpoint_every: in rounds.
      personalization: epochs and learning rate of every client's own training after the last
        round, see `fedlite.federated.personalization`; 0 epochs for none.
    """

    names: dict[str, str]
    config: dict[str, Any]
    dataset: FederatedDataset
    task: Task
    init_params: Callable[[], dict[str, jax.Array]]
    method: Method
    recipe: Recipe
    client_optimizer: ClientOptimizer
    server_optimizer: optax.GradientTransformation
    options: EngineOptions
    seed: int
    rounds: int
    eval_every: int
    checkpoint_every: int
    personalization: tuple[int, float] = (0, 0.0)

    def engine(self) -> Engine:
        """A new engine for the split "train"."""
        return Engine(
            task=self.task,
            method=self.method,
            recipe=self.recipe,
            split=self.dataset.splits["train"],
            client_optimizer=self.client_optimizer,
            server_optimizer=self.server_optimizer,
            options=self.options,
            seed=self.seed,
        )


def train(
    experiment: Experiment, workdir: Workdir, profile_rounds: int = 0
) -> dict[str, Any] | None:
    """Runs or resumes an experiment.

    Args:
      experiment: what to run.
      workdir: where.
      profile_rounds: so many rounds after the first one are traced into `workdir`/profile.

    Returns:
      The summary, or None where a signal stopped the run after a checkpoint.

    Raises:
      UserError: the directory belongs to another run, or training diverged.
    """
    if processes.index():
        workdir, profile_rounds = UnwrittenWorkdir(workdir.path), 0
    with processes.together():
        workdir.check(experiment.config)
        # Some errors of a method show only when its state is made: before anything is written.
        run = _Run(experiment, workdir, profile_rounds)
    processes.check_alike(config=experiment.config, data=run.fingerprint)
    with processes.together():
        workdir.claim(experiment.config)
    try:
        with _Signals() as stopped:
            return run.go(stopped)
    finally:
        workdir.release()


class _Run:
    def __init__(self, experiment: Experiment, workdir: Workdir, profile_rounds: int):
        self.experiment, self.workdir = experiment, workdir
        self.first = processes.index() == 0
        self.profiler = Profiler(workdir.path / "profile", profile_rounds)
        train_split = experiment.dataset.splits["train"]
        self.engine = experiment.engine()
        if experiment.personalization[0] and self.engine.streams:
            raise UserError(
                "personalization.epochs needs data that fits on the device, and "
                f"{experiment.dataset.name!r} is streamed: leave it 0, or take fewer clients"
            )
        self.server = self.engine.init(experiment.init_params())
        self.meter = Meter(train_split.num_clients)
        self.evaluators = {
            name: Evaluator(experiment.task, split)
            for name, split in experiment.dataset.splits.items()
            if name != "train"
        }
        self.fingerprint = fingerprint(experiment.dataset)
        self.round = 0
        self.last_saved = -1
        self.best: dict[str, Any] = {}
        self.final: dict[str, Any] = {}
        self.steps = {"padded": 0, "real": 0}
        self.seconds = {"compile": 0.0, "train": 0.0}
        self.peak_memory = 0
        self.pace: float | None = None

    def go(self, stopped: threading.Event) -> dict[str, Any] | None:
        experiment = self.experiment
        title = f"{experiment.names['method']} on {experiment.names['dataset']}"
        with contextlib.ExitStack() as stack:
            self.checkpoints = None
            if self.first:
                checkpoints = Checkpoints(self.workdir.checkpoints)
                self.checkpoints = stack.enter_context(contextlib.closing(checkpoints))
            self._resume()
            if not self._over():
                bar = board = Unseen()
                if self.first:
                    bar = ProgressBar(title, experiment.rounds, self.round)
                    board = Board(self.workdir.tensorboard, self.round + 1)
                with bar, board as self.board, contextlib.closing(self.profiler):
                    self._rounds(bar, stopped)
            if not self._over():
                return None
            summary = self._summary()
            self.workdir.write_summary(summary)
            return summary

    def _rounds(self, bar: ProgressBar | Unseen, stopped: threading.Event):
        while not self._over():
            # Every process has a clock and signals of its own.
            count, stop = processes.agree(self._coming_rounds(), stopped.is_set())
            if stop:
                break
            self._dispatch(bar, count)
            if self._due(self.experiment.eval_every):
                self._evaluate(bar)
            if self._due(self.experiment.checkpoint_every):
                self._save()
        if self.round:
            self._save()

    def _due(self, every: int) -> bool:
        return self.round % every == 0 or self._over()

    def _over(self) -> bool:
        """Whether all rounds took place, or the method ended the run before that."""
        if self.round >= self.experiment.rounds:
            return True
        return self.engine.plan(self.server, self.round)[1].ended

    def _coming_rounds(self) -> int:
        """How many rounds the next dispatch has."""
        _, recipe = self.engine.plan(self.server, self.round)
        ends = [self.round + self.engine.max_rounds, recipe.until, self.experiment.rounds]
        for every in (self.experiment.eval_every, self.experiment.checkpoint_every):
            ends.append((self.round // every + 1) * every)
        # The first dispatch is one round, to see how long it takes.
        fast = 1 if self.pace is None else int(DISPATCH_SECONDS / self.pace)
        ends.append(self.round + max(1, fast))
        return self.profiler.limit(min(ends) - self.round)

    def _dispatch(self, bar: ProgressBar | Unseen, count: int):
        with self.profiler.dispatch(count):
            begin, compiled = time.perf_counter(), self.engine.compile_seconds
            self.server, results = self.engine.run(self.server, self.round, count)
            compiled = self.engine.compile_seconds - compiled
            elapsed = time.perf_counter() - begin - compiled
        self.pace = elapsed / len(results)
        self.seconds["compile"] += compiled
        self.seconds["train"] += elapsed
        # Of training: a later start that only writes the summary has a peak of its own.
        self.peak_memory = max(self.peak_memory, peak_host_memory())
        for result in results:
            self._account(result)
        rate = self.meter.client_rounds / max(self.seconds["train"], 1e-9)
        megabytes = self.meter.total / MEGABYTE
        bar.update(self.round, loss=results[-1].loss, megabytes=megabytes, rate=rate)

    def _account(self, result: RoundResult):
        self.round += 1
        self.meter.add(result)
        self.steps["padded"] += result.padded_steps
        self.steps["real"] += result.real_steps
        values = {
            # Where nobody answered there is none.
            "loss": result.loss if result.examples else float("nan"),
            "examples": result.examples,
            "clients": len(result.ids),
            "nonfinite_clients": result.nonfinite,
            "down_bytes": int(result.down.sum()),
            "up_bytes": int(result.up.sum()),
            "total_bytes": self.meter.total,
        }
        if self.experiment.options.availability.on:
            values |= {"failed_clients": result.failed, "stragglers": result.stragglers}
        self.workdir.append(self.round, "train", values)
        self.board.add(self.round, "train", values)
        if result.nonfinite and not result.examples:
            raise UserError(
                f"round {self.round}: no client's update is finite; lower "
                "client_optimizer.learning_rate or set client_optimizer.clip, in another --workdir "
                f"(the last checkpoint in {self.workdir.checkpoints} is untouched)"
            )

    def _evaluate(self, bar: ProgressBar | Unseen):
        method, _ = self.engine.plan(self.server, self.round)
        host = self.engine.host(self.server)
        params = method.deployed(host.state, host.params)
        guarantee = self.experiment.method.privacy(self.round)
        privacy = {} if guarantee is None else {"epsilon": guarantee["epsilon"]}
        metric, last = self.experiment.task.metric, self._over()
        for name, evaluator in self.evaluators.items():
            metrics, clients = evaluator.evaluate(params, last)
            values = {"split": name, **metrics, "total_bytes": self.meter.total, **privacy}
            self.workdir.append(self.round, "eval", values)
            headline = {key: metrics[key] for key in (metric.name, "loss")}
            self.board.add(self.round, name, headline)
            if self.first and last and clients is not None:
                counts = {"round": self.round, "metric": metric.name, "clients": clients}
                write_atomically(self.workdir.path / f"clients_{name}.json", to_json(counts))
            if name == "test":
                self.final = {key: value for key, value in metrics.items() if key != "examples"}
                value = metrics[metric.name]
                if not self.best or metric.better(value, self.best[metric.name]):
                    self.best = {**headline, "round": self.round}
                bar.evaluated(metric.name, value, **privacy)
        self.board.flush()

    def _save(self):
        if self.round == self.last_saved:
            return
        # Their events are not written again either.
        self.board.flush()
        if self.first:
            self.checkpoints.save(
                self.round,
                self.engine.host(self.server),
                self.engine.store.save(),
                {
                    "data": self.fingerprint,
                    "meter": self.meter.save(),
                    "best": self.best,
                    "final": self.final,
                    "steps": self.steps,
                    "seconds": self.seconds,
                    "peak_memory": self.peak_memory,
                },
            )
        self.last_saved = self.round

    def _resume(self):
        template, restored = self.engine.host(self.server), None
        with processes.together():
            if self.first:
                restored = self.checkpoints.restore(template)
            if restored and restored.progress["data"] != self.fingerprint:
                raise UserError(
                    f"{self.workdir.path}: the data of {self.experiment.dataset.name!r} changed "
                    "since this run began; restore it, or use another --workdir"
                )
        restored = shared(restored, template)
        if restored is None:
            self.workdir.rewind(-1)
            return
        progress = restored.progress
        self.server = self.engine.place(restored.tree)
        self.engine.store.load(restored.clients)
        self.meter.load(progress["meter"])
        self.best, self.final = progress["best"], progress["final"]
        self.steps, self.seconds = dict(progress["steps"]), dict(progress["seconds"])
        self.peak_memory = progress.get("peak_memory", 0)
        self.round = self.last_saved = restored.round
        self.workdir.rewind(self.round)

    def _summary(self) -> dict[str, Any]:
        experiment = self.experiment
        host = self.engine.host(self.server)
        method, recipe = self.engine.plan(self.server, max(self.round - 1, 0))
        personalized = {}
        if experiment.personalization[0]:
            found = personalize_run(self.engine, host, self.round, *experiment.personalization)
            personalized = {"personalization": found.summary()}
        cost = client_cost(
            experiment.task,
            method,
            self.engine.local_plan(recipe),
            host,
            experiment.dataset.splits["train"].arrays,
        )
        return {
            **experiment.names,
            "seed": experiment.seed,
            "rounds": self.round,
            "final": self.final,
            "best": self.best,
            "client": cost._asdict(),
            "bytes": self.meter.summary(),
            "server_params": sum(int(np.prod(p.shape)) for p in host.params.values()),
            "seconds": self.seconds,
            "clients_per_second": self.meter.client_rounds / max(self.seconds["train"], 1e-9),
            "padded_step_share": 1 - self.steps["real"] / max(self.steps["padded"], 1),
            "normalization": _normalization(experiment.task.model, method, host),
            "left_out_examples": experiment.task.left_out(experiment.dataset.splits["train"]),
            "unusable_examples": dict(experiment.dataset.unusable),
            "peak_host_memory_bytes": self.peak_memory,
            "privacy": experiment.method.privacy(self.round),
            **personalized,
        }


def _normalization(model: nn.Module, method: Method, server: Server) -> str:
    """Of which kind, and what becomes of running statistics."""
    travel = look_at_received(method, server, statistics.travel)
    return ", ".join(filter(None, (getattr(model, "normalization", "none"), travel)))


def peak_host_memory() -> int:
    """The most memory that this process had at a time, in bytes, mapped files included."""
    try:
        # On Linux `getrusage` begins with the memory of the process that started this one.
        status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])
    except (OSError, TypeError):
        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class _Signals:
    """Turns SIGTERM and SIGINT into an event; a second signal has its usual effect."""

    def __enter__(self) -> threading.Event:
        self._event = threading.Event()
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self._event

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _handle(self, number, frame):
        self._event.set()
        signal.signal(number, self._previous[number] or signal.SIG_DFL)
