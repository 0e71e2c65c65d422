"""Local training: schedules, weight decay, and the best epoch by a client's own validation."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedlite.errors import UserError
from fedlite.federated.local import ClientData, ClientOptimizer, LocalPlan, train_locally
from fedlite.methods import Method, server_view
from tests import toy


@pytest.fixture(scope="module")
def task():
    return toy.make_task()


@pytest.fixture(scope="module")
def params(task):
    return toy.make_params(task)


def _train(task, params, optimizer, *, epochs=1, lr=0.1, client=2, key=0, **plan):
    """One client's update and report; client 2 has the most examples, 12."""
    split = toy.make_split()
    plan = LocalPlan(optimizer, epochs, batch_size=4, max_size=12, **plan)
    arrays = {name: jnp.asarray(array) for name, array in split.arrays.items()}
    data = ClientData(arrays, split.offsets[client], split.sizes[client], client)
    train = jax.jit(
        lambda lr: train_locally(
            task, Method(), plan, server_view(params), data, jax.random.key(key), lr, plan.max_steps
        )
    )
    return train(lr)


def _assert_close(one, other, rtol=1e-5):
    toy.assert_close(*(jax.tree.map(np.asarray, tree) for tree in (one, other)), rtol=rtol)


def test_cosine_falls_an_epoch_at_a_time(task, params):
    """Two epochs at 1 and 1/2 of the rate: the second is a round of its own at half the rate."""
    cosine = ClientOptimizer(schedule="cosine")
    update, report = _train(task, params, cosine, epochs=2, lr=0.1)
    # 3 steps at 0.1 and 3 at 0.05.
    assert float(report.lr_sum) == pytest.approx(0.45, rel=1e-6)
    constant, at_constant = _train(task, params, ClientOptimizer(), epochs=2, lr=0.1)
    assert float(at_constant.lr_sum) == pytest.approx(0.6, rel=1e-6)
    assert not np.allclose(update["logits/kernel"], constant["logits/kernel"])
    one, _ = _train(task, params, cosine, epochs=1, lr=0.1)
    same, _ = _train(task, params, ClientOptimizer(), epochs=1, lr=0.1)
    _assert_close(one, same)


def test_weight_decay_over_the_examples_of_a_client(task, params):
    divided = ClientOptimizer(weight_decay=1.2, decay_over_examples=True)
    _assert_close(
        _train(task, params, divided)[0],
        _train(task, params, ClientOptimizer(weight_decay=0.1))[0],
    )


@pytest.mark.parametrize("unroll", [False, True])
def test_the_best_epoch_is_that_of_least_loss_on_what_was_held_out(task, params, unroll):
    """Every choice is scored by hand; the second and third epoch are worse than the first."""
    options = {"lr": 0.1, "validation": 0.5, "unroll": unroll}
    runs = [_train(task, params, ClientOptimizer(), epochs=n, **options)[0] for n in (1, 2, 3, 4)]
    losses = [_held_out_loss(task, params, update) for update in runs]
    # Each run keeps the best of its epochs, so more epochs never score worse.
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < losses[0]
    free = _train(task, params, ClientOptimizer(), epochs=3, lr=0.1)[0]
    assert not np.allclose(free["logits/kernel"], runs[-2]["logits/kernel"])


def _held_out_loss(task, params, update, client=2, share=0.5):
    """The loss on the last examples of the client's fixed random order."""
    from fedlite.federated import local

    split = toy.make_split()
    size = int(split.sizes[client])
    plan = LocalPlan(ClientOptimizer(), 1, 4, 12, validation=share)
    data = ClientData({}, 0, size, client)
    held_out = np.asarray(local._division(plan, data))[size - int(size * share) : size]
    rows = split.offsets[client] + held_out
    trained = {path: params[path] + update[path] for path in params}
    scores = task.evaluate(trained, {k: jnp.asarray(a[rows]) for k, a in split.arrays.items()})
    return float(scores.loss.mean())


def test_held_out_examples_are_not_trained_on(task, params):
    """Other labels on what is held out change the choice of an epoch, never an epoch."""
    split = toy.make_split()
    begin, size = int(split.offsets[2]), 12
    from fedlite.federated import local

    optimizer = ClientOptimizer()
    plan = LocalPlan(optimizer, 1, 4, 12, validation=0.5)
    order = np.asarray(local._division(plan, ClientData({}, 0, size, 2)))

    def update(rows):
        y = split.arrays["y"].copy()
        y[begin + rows] = (y[begin + rows] + 1) % toy.CLASSES
        arrays = {"x": jnp.asarray(split.arrays["x"]), "y": jnp.asarray(y)}
        data = ClientData(arrays, begin, size, 2)
        view, key = server_view(params), jax.random.key(0)
        return jax.jit(
            lambda: train_locally(task, Method(), plan, view, data, key, 0.01, plan.max_steps)[0]
        )()

    plain = update(np.array([], int))
    toy.assert_same_bits(update(order[6:]), plain)
    assert not np.array_equal(update(order[:6])["logits/kernel"], plain["logits/kernel"])


def test_a_client_too_small_to_hold_anything_out_keeps_its_last_epoch(task, params):
    optimizer = ClientOptimizer()
    # Client 1 has one example.
    kept, _ = _train(task, params, optimizer, client=1, epochs=2, validation=0.5)
    _assert_close(kept, _train(task, params, optimizer, client=1, epochs=2)[0])
    assert np.abs(kept["logits/bias"]).max() > 0


def test_an_unknown_schedule_is_refused():
    with pytest.raises(UserError, match="constant, cosine"):
        dataclasses.replace(ClientOptimizer(), schedule="linear")
