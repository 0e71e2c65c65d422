"""Measures what a large population costs: `python -m benchmarks.population --data=DIR`.

FedAvg, and SCAFFOLD (whose clients have state of their own), with a cohort of 1,000 of 1,000 and of
1,000,000 clients. Every case has a process of its own. They take turns, a few rounds each, so
that a machine whose speed drifts distorts the ratios least; after every turn the model is evaluated
and a checkpoint is written, so that the memory is that of a real run. DIR keeps the populations
(3.2 GB), which are made where they are not there yet. Writes benchmarks/population.md, or `--out`.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

from absl import app, flags

from experiments import binary, provenance
from fedlite import data
from fedlite.federated.workdir import write_atomically

_DATA = flags.DEFINE_string("data", None, "Where the populations lie, or are made.")
_OUT = flags.DEFINE_string("out", "benchmarks/population.md", "The Markdown file to write.")
_POPULATIONS = flags.DEFINE_list("populations", ["1000", "1000000"], "Of clients.")
_CLIENTS = flags.DEFINE_integer("clients", 1000, "Of a round.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 16, "Of a turn.", 1)
_TURNS = flags.DEFINE_integer("turns", 6, "Of each case.", 1)

CONFIG = "configs/fedavg/population_mlp.py"
# Hidden units. A client's state of SCAFFOLD is as large as the model: with a small one, the speed
# of the disk is no matter.
METHODS = {"fedavg": (64,), "scaffold": (8,)}


class Turn(NamedTuple):
    """What a case took.

    Attributes:
      wall, cpu: seconds a round, and of the processor of all threads.
      memory: peak resident memory of the process so far in bytes, mapped files included.
    """

    wall: float
    cpu: float
    memory: int


class Case:
    """A case in a process of its own, which waits for its turns."""

    def __init__(self, method: str, population: int):
        """Starts, and waits until the first rounds have compiled."""
        arguments = {
            "method": method,
            "hidden": METHODS[method],
            "population": population,
            "clients": _CLIENTS.value,
            "rounds": _ROUNDS.value,
            "data_dir": _DATA.value,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.population", "--worker", json.dumps(arguments)],
            cwd=provenance.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.turn()

    def turn(self) -> Turn:
        """Runs some rounds."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a case ended with code {self._process.wait()}")
        return Turn(*json.loads(line))

    def close(self):
        """Ends the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def work(method: str, hidden: list, population: int, clients: int, rounds: int, data_dir: str):
    """A case's process: for every line on stdin some rounds, and a line with their `Turn`."""
    from configs.fedavg import population_mlp
    from experiments.build import build
    from fedlite.federated.checkpoint import Checkpoints, fingerprint
    from fedlite.federated.evaluation import Evaluator
    from fedlite.federated.meter import Meter
    from fedlite.federated.training import peak_host_memory

    binary.start_jax()
    config = population_mlp.get_config()
    config.method, config.model.hidden = method, tuple(hidden)
    config.clients_per_round = clients
    config.dataset.clients, config.dataset.data_dir = population, data_dir
    experiment = build(config)
    train = experiment.dataset.splits["train"]
    engine = experiment.engine()
    meter = Meter(train.num_clients)
    evaluator = Evaluator(experiment.task, experiment.dataset.splits["test"])
    progress = {"data": fingerprint(experiment.dataset)}
    server = engine.init(experiment.init_params())
    done = 0
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = Checkpoints(pathlib.Path(directory) / "checkpoints", keep=1)
        for _ in sys.stdin:
            wall, cpu, end = time.perf_counter(), time.process_time(), done + rounds
            while done < end:
                count = min(engine.max_rounds, end - done)
                server, results = engine.run(server, done, count)
                done += count
                for result in results:
                    meter.add(result)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            evaluator(engine.host(server).params)
            progress["meter"] = meter.save()
            checkpoints.save(done, engine.host(server), engine.store.save(), progress)
            turn = Turn(wall / rounds, cpu / rounds, peak_host_memory())
            print(json.dumps(turn), flush=True)
        checkpoints.close()


def measure(populations: list[int]) -> list[dict[str, Any]]:
    """All cases, those of a method in turns; one dict a case."""
    rows = []
    for method in METHODS:
        cases = [Case(method, population) for population in populations]
        turns: list[list[Turn]] = [[] for _ in cases]
        for number in range(_TURNS.value):
            for case, taken in zip(cases, turns):
                taken.append(case.turn())
                print(number, method, taken[-1], flush=True)
        for case in cases:
            case.close()
        for population, taken in zip(populations, turns):
            walls = [turn.wall for turn in taken]
            rows.append(
                {
                    "method": method,
                    "population": population,
                    "wall": statistics.median(walls),
                    "spread": [min(walls), max(walls)],
                    # Of neighbours in time: what slows the machine slows both.
                    "ratio": statistics.median(a.wall / b.wall for a, b in zip(taken, turns[0])),
                    "cpu": statistics.median(turn.cpu for turn in taken),
                    "cpu_ratio": statistics.median(a.cpu / b.cpu for a, b in zip(taken, turns[0])),
                    "memory": taken[-1].memory,
                }
            )
    return rows


def markdown(rows: list[dict[str, Any]], command: str) -> str:
    """The rows as a table."""
    lines = [
        "# Populations of any size",
        "",
        f"`{command}`, {provenance.code()}.",
        "",
        f"Machine: {provenance.machine()}.",
        "",
        f"{_CLIENTS.value:,} clients a round, each with 1 to 7 images of 28 x 28; a perceptron "
        f"with {' and '.join(f'{h[0]} hidden units ({m})' for m, h in METHODS.items())}. "
        f"{_TURNS.value} turns of {_ROUNDS.value} rounds; seconds a round are medians [least, "
        "most], CPU seconds those of all threads, ratios (to the first population) medians over "
        "neighbouring turns. Memory is the most that the process had resident, mapped files "
        "included, with evaluation and a checkpoint after every turn. The small population lies "
        "on the device; of the large one the examples of the next program call's rounds are read "
        "from a file while those of the last one run. A client's state (SCAFFOLD) is as large "
        "as the model and lies on disk.",
        "",
        "| method | population | s/round | ratio | CPU s/round | ratio | peak memory MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = row["spread"]
        lines.append(
            f"| {row['method']} | {row['population']:,} | {row['wall']:.3f} [{low:.3f}, "
            f"{high:.3f}] | {row['ratio']:.2f} | {row['cpu']:.3f} | {row['cpu_ratio']:.2f} "
            f"| {row['memory'] / 1e6:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(_):
    """Measures and writes the table."""
    binary.require(data=_DATA.value)
    try:
        populations = [int(value) for value in _POPULATIONS.value]
    except ValueError:
        populations = []
    if not populations or min(populations) < _CLIENTS.value:
        binary.fail("--populations must be numbers joined by commas, at least --clients each")
    for population in populations:
        data.load("population", clients=population, data_dir=_DATA.value)
    rows = measure(populations)
    command = "python -m benchmarks.population --data=DIR" + "".join(
        f" {flag.serialize()}"
        for flag in (flags.FLAGS[name] for name in ("populations", "clients", "rounds", "turns"))
        if not flag.using_default_value
    )
    text = markdown(rows, command)
    write_atomically(pathlib.Path(_OUT.value), text)
    print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(**json.loads(sys.argv[2]))
    else:
        app.run(binary.guarded(main), flags_parser=binary.parse_flags)
