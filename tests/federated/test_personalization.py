"""Clients' accuracies before and after their own training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedlite.federated import local
from fedlite.federated.local import ClientData, ClientOptimizer, LocalPlan
from fedlite.federated.personalization import personalize
from fedlite.methods import Method
from fedlite.tasks import across_clients
from tests import toy

SIZES = (8, 20, 1, 12)


def _personalize(lr, epochs=3):
    task, split = toy.make_task(), toy.make_split(SIZES)
    server = toy.make_engine(task, Method(), split=split).init(toy.make_params(task))
    plan = LocalPlan(ClientOptimizer(), epochs, 4, max(SIZES), validation=0.5)
    key = jax.random.key(0)
    found = personalize(task, Method(), plan, server, lambda ids: (), split, lr, key)
    return task, split, server, plan, found


def test_before_is_the_servers_accuracy_on_what_each_client_holds_out():
    task, split, server, plan, found = _personalize(lr=0.1)
    # The client with one example holds nothing out.
    assert found.ids.tolist() == [0, 1, 3]
    for client, accuracy in zip(found.ids, found.before):
        size, begin = SIZES[client], split.offsets[client]
        order = np.asarray(local._division(plan, ClientData({}, 0, size, client)))
        rows = begin + order[size - size // 2 : size]
        logits = np.asarray(task.apply(server.params, jnp.asarray(split.arrays["x"][rows])))
        right = np.argmax(logits, -1) == split.arrays["y"][rows]
        assert accuracy == pytest.approx(right.mean(), abs=1e-6)


def test_training_on_personalises():
    *_, still = _personalize(lr=0.0)
    assert np.array_equal(still.before, still.after)
    *_, found = _personalize(lr=0.1, epochs=30)
    assert np.array_equal(found.before, still.before)
    assert found.after.mean() > found.before.mean() + 0.1


def test_the_spread_over_clients():
    spread = across_clients(np.arange(25) / 100)
    assert spread["mean"] == pytest.approx(0.12)
    # The least three of 25.
    assert spread["worst_decile"] == pytest.approx(0.01)
    assert (spread["q00"], spread["q50"], spread["q100"]) == pytest.approx((0, 0.12, 0.24))
    assert across_clients(np.array([]))["mean"] == 0
