"""Measures the engine: clients/s on the EMNIST CNN, for every way of running a round.

    python -m experiments.benchmark --out=benchmarks/cpu.json [--clients=10,100] [--seconds=3]

A client has 100 examples and trains one epoch at batch 20. Each case (model, mapping,
convolution, clients a round) runs rounds until `--seconds` have passed, in `--repeats` turns:
the cases take turns, and each turn measures the machine's matrix-product rate beside it, so that
a machine whose speed drifts distorts the ratios least. Reported are medians. FLOPs are those of
the compiled training step with XLA's convolution, whatever the implementation spends.
"""

import os
import pathlib
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments import binary, provenance
from fedlite import methods, models, tasks
from fedlite.data.federated import Split
from fedlite.errors import UserError
from fedlite.federated.cost import client_cost
from fedlite.federated.engine import Engine, EngineOptions, even_chunk
from fedlite.federated.local import ClientOptimizer
from fedlite.federated.server_optimizer import server_optimizer
from fedlite.federated.workdir import to_json, write_atomically
from fedlite.models import adapters, units

_OUT = flags.DEFINE_string("out", None, "The JSON file to write; a Markdown table goes beside it.")
_CLIENTS = flags.DEFINE_list("clients", ["10", "100"], "Clients a round.")
_SECONDS = flags.DEFINE_float("seconds", 3.0, "Of each case and turn.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Turns.")
_CASES = flags.DEFINE_list(
    "cases", ["map", "vmap", "unrolled"], "Mappings of clients: map, vmap, unrolled."
)
_CONVOLUTIONS = flags.DEFINE_list(
    "convolutions", ["xla", "patches", "winograd"], "Implementations of the convolution."
)
_METHODS = flags.DEFINE_list(
    "methods",
    ["full", "dropout"],
    "full, dropout (0.5), frozen (FedPT without dense1), adapters or fedobd.",
)
_DTYPES = flags.DEFINE_list("dtypes", ["float32"], "Of the model's computation: float32, bfloat16.")
_CHUNKS = flags.DEFINE_list("chunks", ["64"], "Clients that vmap trains together, at most.")
_EXAMPLES = flags.DEFINE_integer("examples", 100, "Of a client.")

BATCH = 20
CLASSES = 62
EXAMPLE = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
_SPECS = {
    "full": ("fedavg", {}),
    "dropout": ("federated_dropout", {"federated_dropout": {"rates": ((".*", 0.5),)}}),
    "frozen": (
        "partial_training",
        {"partial_training": {"freeze": (("dense1/.*", True),)}},
    ),
    "adapters": (
        "partial_training",
        {"partial_training": {"freeze": ((r"adapters/.*|logits/.*", False), (".*", True))}},
    ),
    "fedobd": (
        "quantize+fedobd",
        {
            "fedobd": {"dropout_rate": 0.3},
            "quantize": {"up": "nnadq0.001", "down": "nnadq0.001"},
        },
    ),
}
# A 1x1 convolution beside each 3x3 one, and 64 units beside the large dense layer.
_ADAPTERS = {"places": ((r"conv\d", 0), ("dense1", 64)), "kind": "parallel", "init": "zero"}


class Case(NamedTuple):
    """One way of running a round."""

    method: str
    mapping: str
    convolution: str
    clients: int
    dtype: str = "float32"
    chunk: int = 64


class Runner:
    """A compiled case."""

    def __init__(self, case: Case, split: Split):
        options = {"convolution": case.convolution, "dtype": case.dtype}
        model = models.build("emnist_cnn", num_classes=CLASSES, **options)
        if case.method == "adapters":
            model = adapters.wrap(model, **_ADAPTERS)
        self._task = tasks.Classification(model, units.unit_axes(model, EXAMPLE))
        params = units.init_params(model, jax.random.key(0), EXAMPLE)
        shapes = units.param_shapes(model, EXAMPLE)
        context = methods.Context(self._task.axes, shapes, split.num_clients, case.clients, 1)
        spec, sections = _SPECS[case.method]
        on_device = -(-case.clients // jax.device_count())
        self._split = split
        self._case = case
        self.params = sum(value.size for value in params.values())
        self._engine = Engine(
            task=self._task,
            method=methods.build_chain(spec, context, sections),
            recipe=methods.Recipe(clients=case.clients, epochs=1, lr=0.1),
            split=split,
            client_optimizer=ClientOptimizer(),
            server_optimizer=server_optimizer(),
            options=EngineOptions(
                batch_size=BATCH,
                clients_per_chunk=even_chunk(on_device, case.chunk)
                if case.mapping == "vmap"
                else 1,
                unroll=case.mapping == "unrolled",
            ),
            seed=0,
        )
        self._server = self._engine.init(params)
        self._round = 0
        # The first round compiles, the second one finds everything warm.
        self._step(1)
        self._step(1)
        self.compile_seconds = self._engine.compile_seconds

    def _step(self, rounds: int):
        self._server, _ = self._engine.run(self._server, self._round, rounds)
        self._round += rounds

    def clients_per_second(self, seconds: float) -> float:
        """Runs whole dispatches for at least `seconds`."""
        begin, done, count = time.perf_counter(), 0, 1
        while True:
            self._step(count)
            done += count
            elapsed = time.perf_counter() - begin
            if elapsed >= seconds:
                return done * self._case.clients / elapsed
            left = int((seconds - elapsed) * done / elapsed)
            count = max(1, min(self._engine.max_rounds, left))

    def flops_per_client(self) -> float:
        """Of a round, as XLA counts the compiled step."""
        plan = self._engine.local_plan(self._engine.recipe)
        method, _ = self._engine.plan(self._server, self._round)
        cost = client_cost(
            self._task, method, plan, self._engine.host(self._server), self._split.arrays
        )
        return cost.flops_per_example * int(self._split.sizes[0])


def matrix_size() -> int:
    """Of matrices whose product is long beside a dispatch, and short beside a turn."""
    return 2048 if jax.default_backend() == "cpu" else 8192


def matrix_rate(seconds: float = 0.5) -> float:
    """FLOP/s of float32 products of square matrices on all devices.

    At JAX's default precision, as in the models: on a recent GPU that is TF32. On a CPU a product
    on one device takes all cores.
    """
    n, size = 1 if jax.default_backend() == "cpu" else jax.device_count(), matrix_size()
    matrix = jnp.ones((size, size), jnp.float32)
    if n == 1:
        product = jax.jit(lambda a: (a @ a) * (1.0 / size))
    else:
        matrix = jnp.broadcast_to(matrix, (n, size, size))
        product = jax.pmap(lambda a: (a @ a) * (1.0 / size))
    matrix = product(matrix).block_until_ready()
    begin, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        # Several at a time, so that an accelerator's queue stays full.
        for _ in range(4):
            matrix = product(matrix)
        matrix.block_until_ready()
        done += 4
    return n * done * 2 * size**3 / elapsed


def make_split(clients: int, examples: int) -> Split:
    """Random images of EMNIST's shape; speed does not depend on what they show."""
    rng = np.random.default_rng(0)
    total = clients * examples
    arrays = {
        "x": rng.integers(0, 256, (total, 28, 28, 1)).astype(np.uint8),
        "y": rng.integers(0, CLASSES, total).astype(np.int32),
    }
    offsets = np.arange(0, total + 1, examples)
    return Split(arrays, offsets, tuple(str(i) for i in range(clients)))


def skipped(case: Case) -> str:
    """Why a case is not run, or nothing."""
    if case.mapping == "unrolled" and case.clients > 10:
        return "unrolls 5 steps of each client: minutes to compile"
    if case.convolution == "xla" and case.mapping != "unrolled" and jax.default_backend() == "cpu":
        if case.clients > 10:
            return "XLA's CPU convolution is slow inside a loop, as the case of 10 clients shows"
    return ""


def measure(cases: list[Case], examples: int, seconds: float, repeats: int) -> list[dict[str, Any]]:
    """Runs all cases in turns; one dict a case."""
    split = make_split(max(case.clients for case in cases), examples)
    runners = {}
    for case in cases:
        if not skipped(case):
            runners[case] = Runner(case, split)
            print(f"compiled {tuple(case)} in {runners[case].compile_seconds:.1f} s", flush=True)
    speeds = {case: [] for case in runners}
    fractions = {case: [] for case in runners}
    rates = []
    flops = {case: runner.flops_per_client() for case, runner in runners.items()}
    for _ in range(repeats):
        for case, runner in runners.items():
            rates.append(matrix_rate())
            speeds[case].append(runner.clients_per_second(seconds))
            fractions[case].append(speeds[case][-1] * flops[case] / rates[-1])
    rows = []
    for case in cases:
        row = case._asdict()
        if case in runners:
            row |= {
                "clients_per_second": statistics.median(speeds[case]),
                "spread": [min(speeds[case]), max(speeds[case])],
                "matrix_rate_fraction": statistics.median(fractions[case]),
                "flops_per_client": flops[case],
                "compile_seconds": runners[case].compile_seconds,
            }
        else:
            row["skipped"] = skipped(case)
        rows.append(row)
    rows.append({"matrix_rate": statistics.median(rates)})
    return rows


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    lines = [
        "# Clients a second on the EMNIST CNN",
        "",
        f"`{report['command']}`, {report['code']}.",
        "",
        f"Machine: {report['machine']}; JAX devices: {report['devices']}; matrix products at "
        f"{report['matrix_rate'] / 1e9:,.0f} GFLOP/s (float32, "
        f"{report['matrix_size']:,} rows).",
        "",
        f"{report['examples']} examples a client, batch {BATCH}, one epoch; medians of "
        f"{report['repeats']} turns [least, most]. The fraction is of the matrix-product rate "
        "measured beside each turn; FLOPs are counted with XLA's own convolution.",
        "",
        "| model | mapping | convolution | type | clients a round | of a chunk | clients/s "
        "| fraction | compile s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["cases"]:
        keys = ("method", "mapping", "convolution", "dtype", "clients")
        together = even_chunk(row["clients"], row["chunk"]) if row["mapping"] == "vmap" else 1
        name = "".join(f"| {row[key]} " for key in keys) + f"| {together} "
        if "skipped" in row:
            lines.append(f"{name}| not run: {row['skipped']} | | |")
            continue
        low, high = row["spread"]
        lines.append(
            f"{name}| {row['clients_per_second']:.1f} [{low:.1f}, {high:.1f}] "
            f"| {row['matrix_rate_fraction']:.2f} | {row['compile_seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(_):
    """Measures and writes the report."""
    binary.require(out=_OUT.value)
    for name, values, known in (
        ("methods", _METHODS.value, tuple(_SPECS)),
        ("cases", _CASES.value, ("map", "vmap", "unrolled")),
        ("convolutions", _CONVOLUTIONS.value, ("auto", "xla", "patches", "winograd")),
        ("dtypes", _DTYPES.value, ("float32", "bfloat16")),
    ):
        if unknown := set(values) - set(known):
            raise UserError(f"--{name}: unknown {sorted(unknown)[0]!r}; use {', '.join(known)}")
    try:
        clients, chunks = ([int(v) for v in flag.value] for flag in (_CLIENTS, _CHUNKS))
    except ValueError as error:
        raise UserError(
            f"--clients and --chunks must be numbers joined by commas ({error})"
        ) from error
    if min([*clients, *chunks, _EXAMPLES.value, _REPEATS.value]) < 1:
        raise UserError("--clients, --chunks, --examples and --repeats must be at least 1")
    binary.use_all_cores()
    out = pathlib.Path(_OUT.value)
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out={out}: its directory is not there; make it")
    cases = [
        Case(method, mapping, convolution, count, dtype, chunk)
        for count in clients
        for method in _METHODS.value
        for mapping in _CASES.value
        for convolution in _CONVOLUTIONS.value
        for dtype in _DTYPES.value
        for chunk in (chunks if mapping == "vmap" else chunks[:1])
    ]
    # The one setting beside the flags that changes what is measured.
    count = os.environ.get("JAX_NUM_CPU_DEVICES")
    devices = f"JAX_NUM_CPU_DEVICES={count} " if count else ""
    *rows, ceiling = measure(cases, _EXAMPLES.value, _SECONDS.value, _REPEATS.value)
    report = {
        "command": f"{devices}python -m experiments.benchmark --out={out.name} "
        f"--clients={','.join(_CLIENTS.value)} --methods={','.join(_METHODS.value)} "
        f"--cases={','.join(_CASES.value)} --convolutions={','.join(_CONVOLUTIONS.value)} "
        f"--dtypes={','.join(_DTYPES.value)} --chunks={','.join(_CHUNKS.value)} "
        f"--seconds={_SECONDS.value:g} --repeats={_REPEATS.value}",
        "code": provenance.code(),
        "machine": provenance.machine(),
        "devices": jax.device_count(),
        "matrix_size": matrix_size(),
        "examples": _EXAMPLES.value,
        "repeats": _REPEATS.value,
        **ceiling,
        "cases": rows,
    }
    write_atomically(out, to_json(report))
    write_atomically(out.with_suffix(".md"), markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    app.run(binary.guarded(main), flags_parser=binary.parse_flags)
