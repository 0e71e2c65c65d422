"""FedNova: FedAvg where all take as many steps, and by hand where they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedlite.errors import UserError
from fedlite.methods import Report, Sums, Update
from fedlite.methods.fednova import FedNova
from fedlite.wire import Part
from tests import toy


@pytest.fixture(scope="module")
def task():
    return toy.make_task()


@pytest.fixture(scope="module")
def params(task):
    return toy.make_params(task)


def _aggregate(method, clients):
    """The aggregate of clients (delta, weight, steps, cover)."""
    totals, claims = [], []
    for delta, weight, steps, cover in clients:
        report = Report(None, None, jnp.int32(steps), None)
        parts = {"w": Part(jnp.asarray(delta), cover), "b": Part(jnp.ones(1))}
        update, _ = method.deselect((), Update(parts, weight), report)
        totals.append({k: weight * p.cover * p.value for k, p in update.parts.items()})
        claims.append({k: jnp.float32(weight) * p.cover for k, p in update.parts.items()})
    total, claim = (jax.tree.map(lambda *v: sum(v), *side) for side in (totals, claims))
    total, claim = method.combine((), None, Sums(total, claim), Report(*[jnp.float32(1)] * 4))
    return np.asarray(total["w"] / claim["w"])


def test_unequal_steps_by_hand():
    """Weights 1 and 3, 2 and 4 steps: (0.25 * 2 + 0.75 * 4) (0.25 d1 / 2 + 0.75 d2 / 4)."""
    d1, d2 = np.array([1.0, -2.0]), np.array([2.0, 0.5])
    expected = 3.5 * (d1 / 8 + d2 * 3 / 16)
    found = _aggregate(FedNova(0.0, 0.0), [(d1, 1.0, 2, 1.0), (d2, 3.0, 4, 1.0)])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_entries_that_some_do_not_hold_are_normalised_alike():
    cover = jnp.array([1.0, 0.0])
    found = _aggregate(FedNova(0.0, 0.0), [([1.0, 0.0], 1.0, 2, cover), ([2.0, 0.5], 3.0, 4, 1.0)])
    np.testing.assert_allclose(found, [3.5 * (1 / 8 + 6 / 16), 3.5 * 0.5 / 4], rtol=1e-6)


def test_a_client_without_steps_counts_nothing():
    found = _aggregate(FedNova(0.0, 0.0), [([9.0], 0.0, 0, 1.0), ([2.0], 3.0, 4, 1.0)])
    np.testing.assert_allclose(found, [2.0], rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_norm_counts_how_often_a_gradient_acts(momentum):
    """With gradients of 1 and rate 1 the optimiser itself moves by ||a||_1."""
    optimizer = optax.sgd(1.0, momentum or None)
    w = jnp.zeros(1)
    opt_state = optimizer.init(w)
    for steps in range(1, 6):
        update, opt_state = optimizer.update(jnp.ones(1), opt_state, w)
        w = w + update
        norm = FedNova(momentum, 0.0).norm(jnp.float32(steps))
        np.testing.assert_allclose(norm, -w[0], rtol=1e-5)


def test_equal_steps_are_fedavg(task, params):
    """Four clients of different sizes whose batches are as many."""
    split = toy.make_split(sizes=(5, 7, 6, 8))
    servers = []
    for spec in ("fedavg", "fednova"):
        context = toy.make_context(task, 4, 3)
        method = toy.make_method(task, spec, context)
        servers.append(toy.run(toy.make_engine(task, method, split=split), params, 2)[0])
    toy.assert_close(servers[0].params, servers[1].params)


def test_composes_and_sends_nothing_more(task, params):
    """Around a codec, and inside partial training and dropout."""
    sections = {
        "partial_training": {"freeze": (("dense1/.*", True),)},
    }
    results = []
    for spec in (
        "partial_training+federated_dropout+quantize",
        "partial_training+federated_dropout+fednova+quantize",
    ):
        engine = toy.make_engine(task, toy.make_method(task, spec, **sections))
        server, (result,) = toy.run(engine, params, 1)
        assert all(np.isfinite(value).all() for value in server.params.values())
        results.append(result)
    np.testing.assert_array_equal(results[0].up, results[1].up)
    np.testing.assert_array_equal(results[0].down, results[1].down)


def test_dropped_entries_do_not_dilute_the_mean_of_the_norms(task, params):
    """Where all clients take as many steps it is FedAvg, also inside a method that zero-fills."""
    split = toy.make_split(sizes=(5, 7, 6, 8))
    context = toy.make_context(task, 4, 3)
    dropout = {"rates": ((".*", 0.5),), "aggregation": "zero"}
    servers = []
    # Chains of two both, so that dropout has the same keys.
    for spec in ("federated_dropout+fedavg", "federated_dropout+fednova"):
        method = toy.make_method(task, spec, context, federated_dropout=dropout)
        servers.append(toy.run(toy.make_engine(task, method, split=split), params, 2)[0])
    toy.assert_close(servers[0].params, servers[1].params)


def test_steps_that_are_not_in_the_update_are_refused(task):
    context = toy.make_context(task, local_validation=0.2)
    with pytest.raises(UserError, match="set local_validation = 0"):
        toy.make_method(task, "fednova", context)
