"""A round against a plain reference, and what it may not depend on."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedlite.federated.cohort import lay_out, sample_cohort
from fedlite.federated.server_optimizer import server_optimizer
from fedlite.methods import Method, chain
from fedlite.models import units
from tests import toy


@pytest.fixture(scope="module")
def task():
    return toy.make_task()


@pytest.fixture(scope="module")
def params(task):
    return toy.make_params(task)


def test_fedavg_against_a_plain_reference(task, params):
    """Full batches, so that the order of examples does not matter: gradient descent by hand."""
    split = toy.make_split()
    engine = toy.make_engine(
        task,
        toy.make_method(task, "fedavg"),
        clients=8,
        epochs=3,
        batch_size=16,
        server=server_optimizer("sgd", learning_rate=0.5),
    )
    server, (result,) = toy.run(engine, params, rounds=1)

    gradient = jax.jit(jax.grad(_mean_loss, argnums=1), static_argnums=0)
    total, mean = 0, jax.tree.map(jnp.zeros_like, params)
    for client in range(split.num_clients):
        data = split.client(client)
        if not len(data["y"]):
            continue
        local, velocity = params, jax.tree.map(jnp.zeros_like, params)
        for _ in range(3):
            step = gradient(task, local, data["x"], data["y"])
            velocity = jax.tree.map(lambda v, g: 0.5 * v + g, velocity, step)
            local = jax.tree.map(lambda w, v: w - 0.1 * v, local, velocity)
        size = len(data["y"])
        total += size
        mean = jax.tree.map(lambda m, w, w0, n=size: m + n * (w - w0), mean, local, params)
    expected = jax.tree.map(lambda w, m: w + 0.5 * m / total, params, mean)
    toy.assert_close(server.params, expected)
    assert result.examples == total == split.num_examples
    assert result.nonfinite == 0


def _mean_loss(task, params, x, y):
    logits = units.apply(task.model, params, x.astype(jnp.float32) / 255)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


CHAIN = "partial_training+federated_dropout+quantize"
OPTIONS = {
    "partial_training": {"freeze": (("dense1/bias", True),)},
    "federated_dropout": {"rates": (("dense1", 0.5),)},
}


@pytest.mark.parametrize(
    "options",
    [
        {"clients_per_chunk": 3},
        {"clients_per_chunk": 5},
        {"clients_per_chunk": 2, "rounds_per_dispatch": 2},
        {"clients_per_chunk": 1, "unroll": True},
        {"clients_per_chunk": 5, "unroll": True},
        {"rounds_per_dispatch": 1, "resident_bytes": 0},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_mapping_does_not_change_the_result(task, params, reference, options):
    method = toy.make_method(task, CHAIN, **OPTIONS)
    server, results = toy.run(toy.make_engine(task, method, clients=5, **options), params, 5)
    toy.assert_close(server.params, reference[0].params)
    for left, right in zip(results, reference[1], strict=True):
        assert left.ids.tolist() == right.ids.tolist()
        assert left.down.tolist() == right.down.tolist()
        assert left.up.tolist() == right.up.tolist()
        assert left.examples == right.examples
        assert abs(left.loss - right.loss) < 1e-5


@pytest.fixture(scope="module")
def reference(task, params):
    method = toy.make_method(task, CHAIN, **OPTIONS)
    return toy.run(toy.make_engine(task, method, clients=5, clients_per_chunk=1), params, 5)


def test_streamed_data_gives_the_same_bits(task, params):
    method = toy.make_method(task, "fedavg")
    resident, _ = toy.run(toy.make_engine(task, method), params)
    streamed, _ = toy.run(toy.make_engine(task, method, resident_bytes=0), params)
    toy.assert_same_bits(streamed.params, resident.params)


_ON_FOUR_DEVICES = """
import numpy as np, jax
from tests import toy
from tests.federated import test_round
assert jax.device_count() == 4
task = toy.make_task()
params = toy.make_params(task)
for devices in (2, 4):
    method = toy.make_method(task, test_round.CHAIN, **test_round.OPTIONS)
    engine = toy.make_engine(
        task, method, clients=5, devices=devices, clients_per_chunk=2 if devices == 2 else 1
    )
    server, results = toy.run(engine, params, 5)
    np.savez(f"{OUT}/{devices}.npz", **server.params)
    np.save(f"{OUT}/{devices}.npy", [r.down.tolist() + r.up.tolist() for r in results])
engine = toy.make_engine(
    task, test_round.chain(test_round.Rounds()), clients=5, devices=4, resident_bytes=0
)
server, _ = toy.run(engine, params, 3)
np.save(f"{OUT}/counts.npy", engine.store.gather(np.arange(8))[0])
np.savez(f"{OUT}/stateful.npz", **server.params)
"""


def test_four_virtual_devices(task, params, reference, tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    subprocess.run(
        [sys.executable, "-c", _ON_FOUR_DEVICES.replace("{OUT}", str(tmp_path))],
        env={**os.environ, "XLA_FLAGS": flags},
        cwd=pathlib.Path(__file__).parents[2],
        check=True,
    )
    server, results = reference
    traffic = [r.down.tolist() + r.up.tolist() for r in results]
    for devices in (2, 4):
        toy.assert_close(dict(np.load(tmp_path / f"{devices}.npz")), server.params)
        assert np.load(tmp_path / f"{devices}.npy").tolist() == traffic
    engine = toy.make_engine(task, chain(Rounds()), clients=5)
    alone, _ = toy.run(engine, params, 3)
    toy.assert_close(dict(np.load(tmp_path / "stateful.npz")), alone.params)
    counts = np.asarray(engine.store.gather(np.arange(8))[0])
    assert np.load(tmp_path / "counts.npy").tolist() == counts.tolist()


@dataclasses.dataclass(frozen=True)
class Rounds(Method):
    """A client's state counts the rounds in which it trained."""

    def init_client(self, key, view):
        return jnp.int32(0)

    def deselect(self, context, update, report):
        return update, context + 1


def test_client_state_follows_the_client(task, params):
    engine = toy.make_engine(task, Rounds(), clients=3)
    _, results = toy.run(engine, params, 6)
    expected = np.zeros(8, int)
    for result in results:
        expected[result.ids] += 1
    # Client 5 has no examples: it trains nothing, so its state stays.
    expected[5] = 0
    counts = engine.store.gather(np.arange(8))
    assert np.asarray(counts).tolist() == expected.tolist()
    saved = engine.store.save()
    fresh = toy.make_engine(task, Rounds(), clients=3)
    fresh.init(params)
    fresh.store.load(saved)
    assert np.asarray(fresh.store.gather(np.arange(8))).tolist() == expected.tolist()


def test_a_client_that_diverges_is_left_out(task, params):
    split = toy.make_split()
    x = split.arrays["x"].astype(np.float32) / 255
    bad = x.copy()
    bad[split.offsets[2]] = np.nan
    method = toy.make_method(task, "quantize")

    def run(x, sizes=None):
        ours = dataclasses.replace(split, arrays={"x": x, "y": split.arrays["y"]})
        return toy.run(
            toy.make_engine(task, method, split=ours, clients=8, batch_size=8), params, 2
        )

    poisoned, results = run(bad)
    assert [r.nonfinite for r in results] == [1, 1]
    assert all(np.isfinite(value).all() for value in poisoned.params.values())
    assert results[0].examples == split.num_examples - split.sizes[2]
    clean, _ = run(x)
    assert any(not np.array_equal(clean.params[k], poisoned.params[k]) for k in params)


def test_entries_that_nobody_claims_keep_their_bits_under_momentum(task, params):
    method = toy.make_method(
        task, "federated_dropout", federated_dropout={"rates": (("dense1", 0.8),)}
    )
    engine = toy.make_engine(task, method, clients=1, server=server_optimizer("momentum"))
    server = engine.init(params)
    held = []
    for round_number in range(3):
        before = jax.tree.map(np.asarray, engine.host(server).params)
        server, _ = engine.run(server, round_number, 1)
        after = jax.tree.map(np.asarray, engine.host(server).params)
        held.append((before["dense1/bias"] != after["dense1/bias"]).sum())
    # One of six units is trained at a time; the momentum of the others does not move them.
    assert max(held) <= 1 and sum(held) >= 1


def test_count_and_zero_aggregation(task, params):
    """With one client a round both rules agree; with several, zero-fill moves less."""

    def move(aggregation, clients):
        options = {"rates": (("dense1", 0.5),), "aggregation": aggregation}
        method = toy.make_method(task, "federated_dropout", federated_dropout=options)
        engine = toy.make_engine(task, method, clients=clients, server=server_optimizer())
        server, _ = toy.run(engine, params, 1)
        return server.params["dense1/kernel"] - params["dense1/kernel"]

    np.testing.assert_allclose(move("count", 1), move("zero", 1), rtol=1e-6, atol=1e-8)
    count, zero = np.abs(move("count", 8)), np.abs(move("zero", 8))
    assert (count >= zero - 1e-7).all() and (count > zero + 1e-6).any()


def test_cohorts_are_a_function_of_seed_and_round():
    first = sample_cohort(1, 5, 1000, 50)
    assert first.tolist() == sample_cohort(1, 5, 1000, 50).tolist()
    assert len(set(first.tolist())) == 50 and (np.diff(first) > 0).all()
    assert first.tolist() != sample_cohort(1, 6, 1000, 50).tolist()
    assert first.tolist() != sample_cohort(2, 5, 1000, 50).tolist()
    assert sample_cohort(1, 5, 7, 9).tolist() == list(range(7))
    draws = np.concatenate([sample_cohort(0, r, 20, 5) for r in range(2000)])
    np.testing.assert_allclose(np.bincount(draws) / 2000, 0.25, atol=4 * 0.0097)


def test_layout_puts_like_sizes_together():
    sizes = np.array([5, 40, 1, 38, 20, 21])
    layout = lay_out(
        np.arange(6), sizes, sizes * 100, devices=2, clients_per_chunk=2, batch_size=10
    )
    assert layout.cohort.ids.tolist() == [[[1, 3], [0, 2]], [[5, 4], [-1, -1]]]
    assert layout.cohort.steps.tolist() == [[4, 1], [3, 0]]
    assert layout.cohort.starts[0, 0].tolist() == [4000, 3800]
    # Of 2 * (4 + 1 + 3 + 0) steps run 4 + 4 + 1 + 1 + 3 + 2.
    assert (layout.padded_steps, layout.real_steps) == (16, 15)


def test_one_program_serves_all_rounds(task, params):
    engine = toy.make_engine(task, toy.make_method(task, "fedavg"), rounds_per_dispatch=4)
    server = engine.init(params)
    server, _ = engine.run(server, 0, 3)
    compiled = engine.compile_seconds
    for first, count in ((3, 1), (4, 4), (8, 2)):
        server, results = engine.run(server, first, count)
        assert len(results) == count
    assert engine.compile_seconds == compiled > 0
