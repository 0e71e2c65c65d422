"""What other programs rely on: the files of a finished run, and the numbers in them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.build import build
from fedlite.federated.cohort import sample_cohort
from fedlite.methods import Keys, Report, Update, server_view
from fedlite.wire import Part, write
from tests.experiments import cli, tiny

ROUNDS, CLIENTS, POPULATION = 30, 4, 12


@pytest.fixture(scope="module")
def summary(finished):
    return json.loads((finished / "summary.json").read_text())


@pytest.fixture(scope="module")
def lines(finished):
    return [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def experiment():
    return build(tiny.get_config())


def test_summary_has_these_keys(summary):
    assert set(summary) == {
        "method",
        "dataset",
        "model",
        "seed",
        "rounds",
        "final",
        "best",
        "client",
        "bytes",
        "server_params",
        "seconds",
        "clients_per_second",
        "padded_step_share",
        "left_out_examples",
        "unusable_examples",
        "normalization",
        "peak_host_memory_bytes",
        "privacy",
    }
    assert summary["method"] == "partial_training+federated_dropout+quantize"
    assert (summary["dataset"], summary["model"]) == ("digits", "mlp")
    assert (summary["seed"], summary["rounds"], summary["privacy"]) == (0, ROUNDS, None)
    assert {"accuracy", "loss"} <= set(summary["final"])
    assert {"accuracy", "loss", "round"} <= set(summary["best"])
    assert {"params", "trained_params", "flops_per_example", "peak_memory_bytes"} <= set(
        summary["client"]
    )
    assert set(summary["seconds"]) == {"compile", "train"}
    assert set(summary["bytes"]) == {
        "down_per_client_round",
        "up_per_client_round",
        "total",
        "total_paper_convention",
        "once_per_client",
    }


def test_summary_has_these_types(summary):
    for key in ("seed", "rounds", "server_params"):
        assert type(summary[key]) is int
    for key in ("clients_per_second", "padded_step_share"):
        assert type(summary[key]) is float
    for section, kind in (("final", float), ("seconds", float), ("bytes", int)):
        for key, value in summary[section].items():
            assert type(value) is kind or key == "client_accuracy", (section, key)
    assert type(summary["best"]["round"]) is int
    assert type(summary["client"]["peak_memory_bytes"]) is int
    # No process with JAX has less, and no machine for tests more.
    assert (summary["left_out_examples"], summary["normalization"]) == (0, "none")
    assert summary["unusable_examples"] == {}
    assert type(summary["peak_host_memory_bytes"]) is int
    assert 2**26 < summary["peak_host_memory_bytes"] < 2**40
    assert 0 < summary["clients_per_second"]
    assert 0 <= summary["padded_step_share"] < 1


def test_metrics_are_one_object_a_line(lines):
    assert all(type(line["round"]) is int for line in lines)
    assert [line["round"] for line in lines if line["kind"] == "train"] == [*range(1, ROUNDS + 1)]
    evaluated = [line for line in lines if line["kind"] == "eval"]
    assert [line["round"] for line in evaluated] == [5, 10, 15, 20, 25, 30]
    assert {line["split"] for line in evaluated} == {"test"}
    assert len(lines) == ROUNDS + 6
    # A round's evaluation follows it.
    assert [line["round"] for line in lines] == sorted(line["round"] for line in lines)


def test_final_and_best_are_evaluations(summary, lines):
    evaluated = [line for line in lines if line["kind"] == "eval"]
    best = max(evaluated, key=lambda line: line["accuracy"])
    for key in ("accuracy", "loss"):
        assert summary["final"][key] == evaluated[-1][key]
        assert summary["best"][key] == best[key]
    assert summary["best"]["round"] == best["round"]


def test_config_round_trips(finished, experiment):
    assert json.loads((finished / "config.json").read_text()) == experiment.config


def test_config_has_no_section_of_other_methods(experiment):
    assert {"partial_training", "federated_dropout", "quantize"} <= set(experiment.config)
    assert not {"clip", "fedprox"} & set(experiment.config)


def test_bytes_by_hand(summary, lines):
    # Half of 16 and 12 units, the bias of the first layer frozen: what travels of 64-16-12-10.
    values = 64 * 8 + (8 * 6 + 6) + (6 * 10 + 10)
    down, up, side = 4 * values, values + 5 * 4, 5 * 4
    seen = {
        client
        for number in range(ROUNDS)
        for client in sample_cohort(0, number, POPULATION, CLIENTS)
    }
    messages = ROUNDS * CLIENTS
    assert summary["bytes"] == {
        "down_per_client_round": down,
        "up_per_client_round": up,
        "total": messages * (down + up) + 8 * len(seen),
        "total_paper_convention": messages * (down + up - side),
        "once_per_client": 8,
    }
    train = [line for line in lines if line["kind"] == "train"]
    assert {(line["down_bytes"], line["up_bytes"]) for line in train} == {
        (CLIENTS * down, CLIENTS * up)
    }
    assert lines[-1]["total_bytes"] == summary["bytes"]["total"]
    assert summary["client"]["params"] == values + 8
    assert summary["client"]["trained_params"] == values
    assert summary["server_params"] == 64 * 16 + 16 + 16 * 12 + 12 + 12 * 10 + 10


def test_bytes_are_those_of_a_real_message(summary, experiment):
    def messages(params):
        key, method, view = jax.random.key(1), experiment.method, server_view(params)
        state, mine = method.init(key, view), method.init_client(key, view)
        view, context = method.select(state, mine, Keys(key, key), view)
        parts = {path: Part(0.1 * part.value) for path, part in view.trained.items()}
        report = Report(jnp.float32(0), jnp.int32(1), jnp.int32(1), jnp.float32(1))
        upload, _ = method.deselect(context, Update(parts, jnp.float32(1)), report)
        return {**view.trained, **view.read}, upload.parts

    for name, parts in zip(("down", "up"), jax.jit(messages)(experiment.init_params())):
        # A traced number of bits is static again.
        parts = {path: part._replace(bits=int(part.bits)) for path, part in parts.items()}
        assert len(write(parts)) == summary["bytes"][f"{name}_per_client_round"]


def test_checkpoints_are_orbax(finished, summary):
    assert sorted(int(path.name) for path in (finished / "checkpoints").iterdir()) == [24, 28, 30]
    arrays = cli.last_checkpoint(finished)
    # Parameters, and twice as much of what returns for Adam, with its counter.
    returned = summary["server_params"] - 16
    assert (
        sum(array.size for array in arrays.values()) == summary["server_params"] + 2 * returned + 1
    )
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_tensorboard_has_every_round(finished):
    steps = cli.tensorboard_steps(finished / "tensorboard")
    assert steps["train/loss"] == [*range(1, ROUNDS + 1)]
    assert steps["test/accuracy"] == [5, 10, 15, 20, 25, 30]


def test_divergence_ends_in_one_line(tmp_path):
    # Every step multiplies the weights by minus 10^12.
    outcome = cli.run(
        f"--config={cli.TINY}",
        "--config.method=fedavg",
        "--config.partial_training.freeze=()",
        "--config.client_optimizer.learning_rate=1000000.0",
        "--config.client_optimizer.weight_decay=1000000.0",
        f"--workdir={tmp_path}/run",
    )
    assert outcome.code == 2
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert "round 1: no client's update is finite" in line
    assert "client_optimizer.learning_rate" in line and "another --workdir" in line
    assert not (tmp_path / "run" / "summary.json").exists()
