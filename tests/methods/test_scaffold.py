"""SCAFFOLD: the variates' identities, its payload, and a step by hand."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedlite.errors import UserError
from fedlite.federated.checkpoint import Checkpoints
from fedlite.methods import Keys, Report, Sums, Update, View
from fedlite.methods.scaffold import Scaffold
from fedlite.wire import Part
from tests import toy

FREEZE = {"freeze": (("dense1/.*", True),)}
CHAIN = "partial_training+scaffold+quantize"


@pytest.fixture(scope="module")
def task():
    return toy.make_task()


@pytest.fixture(scope="module")
def params(task):
    return toy.make_params(task)


def _engine(task, spec, clients=3, **sections):
    return toy.make_engine(task, toy.make_method(task, spec, **sections), clients=clients)


def _variates(engine, clients=8):
    return jax.tree.map(np.asarray, engine.store.gather(np.arange(clients)))


def _assert_mean_of_clients(server, clients, rtol=1e-6):
    assert server.keys() == clients.keys()
    for path, value in clients.items():
        scale = np.abs(value).max()
        assert scale > 1e-3
        np.testing.assert_allclose(value.mean(0), server[path], atol=rtol * scale)


def test_a_step_by_hand():
    """Two of four clients; w starts at 1, lr 0.1, two steps each, weights 1 and 3."""
    method = Scaffold(population=4, local_validation=0.0)
    state, mine = {"w": jnp.array([0.5, -1.0])}, {"w": jnp.array([0.25, 0.0])}
    view = View({"w": Part(jnp.ones(2))}, {})
    received, context = method.select(state, mine, Keys(None, None), view)
    optimizer = method.client_optimizer(received, optax.sgd(0.1))
    gradient = {"w": jnp.array([2.0, 3.0])}
    moved, _ = optimizer.update(gradient, optimizer.init(gradient), {"w": jnp.ones(2)})
    # -lr (g - c_i + c)
    np.testing.assert_allclose(moved["w"], [-0.1 * (2 - 0.25 + 0.5), -0.1 * (3 - 0 - 1)], 1e-6)
    report = Report(jnp.float32(0), jnp.int32(3), jnp.int32(2), jnp.float32(0.2))
    sums = []
    for delta, weight in ((jnp.array([-0.4, -0.6]), 1.0), (jnp.array([0.2, 0.0]), 3.0)):
        parts = {"w": Part(delta)}
        update, new = method.deselect(context, Update(parts, jnp.float32(weight)), report)
        # c_i+ - c_i = -c + (w_t - w_i) / (K lr)
        step = -state["w"] - delta / 0.2
        np.testing.assert_allclose(update.parts["control:w"].value, step, rtol=1e-6)
        np.testing.assert_allclose(new["w"], mine["w"] + step, rtol=1e-6)
        sums.append({k: update.weight * p.cover * p.value for k, p in update.parts.items()})
    total = jax.tree.map(jnp.add, *sums)
    combined = method.combine(state, None, Sums(total, {"w": 4.0, "control:w": 2.0}), report)
    aggregate = {k: combined.total[k] / combined.claim[k] for k in total}
    np.testing.assert_allclose(aggregate["w"], [(-0.4 + 0.6) / 4, -0.15], rtol=1e-6)
    revised = method.revise(state, None, None, aggregate, report)
    # (2 - 0.5 - 1 - 0.5) / 4 and (3 + 1 + 0 + 1) / 4
    np.testing.assert_allclose(revised["w"], [0.5 + 0.0, -1 + 1.25], atol=1e-6)


def test_under_full_participation(task, params):
    engine = _engine(task, "scaffold", clients=8)
    server, results = toy.run(engine, params, 2)
    _assert_mean_of_clients(server.state, _variates(engine))
    # The client without examples never moves.
    empty = toy.SIZES.index(0)
    assert not any(np.any(value[empty]) for value in _variates(engine).values())
    whole = 4 * sum(value.size for value in params.values())
    assert (results[1].down == 2 * whole).all() and (results[1].up == 2 * whole).all()


# Of dense2 [6, 5] + 5 and logits [5, 4] + 4, in bytes.
@pytest.mark.parametrize(
    ("inside", "sections", "down", "up"),
    [
        # 4 bits a value, and a norm of 4 bytes for each array.
        ("quantize", {"up": "uniform4"}, 59 * 4, 15 + 3 + 10 + 2 + 4 * 4),
        # Half of 6 and of 5 units.
        ("federated_dropout", {"rates": ((".*", 0.5),)}, 20 * 4, 20 * 4),
    ],
)
def test_payload_is_twice_that_of_fedavg(task, params, inside, sections, down, up):
    """Three of eight clients, a frozen layer, and a method inside."""
    sections = {inside: sections, "partial_training": FREEZE}
    engine = _engine(task, f"partial_training+scaffold+{inside}", **sections)
    server, (result, _) = toy.run(engine, params, 2)
    assert (result.down == 2 * down).all() and (result.up == 2 * up).all()
    # Variates exist for what is trained alone, and the server's is the mean of the clients'.
    state, mine = server.state[1], _variates(engine)[1]
    assert not any(path.startswith("dense1") for path in state)
    _assert_mean_of_clients(state, mine)
    toy.assert_same_bits(server.params["dense1/kernel"], params["dense1/kernel"])


def test_the_clients_variate_is_its_mean_gradient(task, params):
    """From c = c_i = 0, c_i+ = (w_t - w_i) / (K lr), whatever the server makes of it."""
    method = toy.make_method(task, "scaffold")
    # One client and plain SGD on the server with rate 1: its step is the client's update.
    engine = toy.make_engine(task, method, clients=1, lr=0.05, server=optax.sgd(1.0))
    server = engine.init(params)
    server, (result,) = engine.run(server, 0, 1)
    client = int(result.ids[0])
    steps = 2 * -(-toy.SIZES[client] // 4)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, server.params)
    for path, value in engine.store.gather(np.array([client])).items():
        np.testing.assert_allclose(value[0], moved[path] / (0.05 * steps), atol=1e-5)


def test_survives_kill_and_resume(task, params, tmp_path):
    sections = {"partial_training": FREEZE}
    whole, _ = toy.run(_engine(task, CHAIN, **sections), params, 4)
    engine = _engine(task, CHAIN, **sections)
    server = engine.init(params)
    for number in range(2):
        server, _ = engine.run(server, number, 1)
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(2, engine.host(server), engine.store.save(), {})
    del engine, server
    engine = _engine(task, CHAIN, **sections)
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        restored = checkpoints.restore(engine.host(engine.init(params)))
        engine.store.load(restored.clients)
    server = engine.place(restored.tree)
    for number in range(2, 4):
        server, _ = engine.run(server, number, 1)
    toy.assert_same_bits(server, whole)


def test_drift_is_taken_out():
    """Two clients with opposite quadratic losses: SCAFFOLD reaches the optimum, FedAvg does not.

    f_1 = (w - 1)^2 and f_2 = 2 (w + 1)^2: the sum is least at w = -1/3.
    """
    curvature, centre = np.array([2.0, 4.0]), np.array([1.0, -1.0])

    drifting = 0.0
    for _ in range(200):
        y = np.full(2, drifting)
        for _ in range(5):
            y = y - 0.05 * curvature * (y - centre)
        drifting = y.mean()
    assert abs(drifting + 1 / 3) > 0.01

    method = Scaffold(population=2, local_validation=0.0)
    state = {"w": jnp.zeros(())}
    mine = [{"w": jnp.zeros(())} for _ in range(2)]
    w = jnp.float32(0)
    report = Report(jnp.float32(0), jnp.int32(1), jnp.int32(5), jnp.float32(0.25))
    for _ in range(60):
        totals = []
        for i in range(2):
            view = View({"w": Part(w)}, {})
            received, context = method.select(state, mine[i], Keys(None, None), view)
            optimizer = method.client_optimizer(received, optax.sgd(0.05))
            y, opt_state = w, optimizer.init({"w": w})
            for _ in range(5):
                step, opt_state = optimizer.update(
                    {"w": curvature[i] * (y - centre[i])}, opt_state, {"w": y}
                )
                y = y + step["w"]
            update, mine[i] = method.deselect(
                context, Update({"w": Part(y - w)}, jnp.float32(1)), report
            )
            totals.append({k: p.value for k, p in update.parts.items()})
        total = jax.tree.map(jnp.add, *totals)
        combined = method.combine(state, None, Sums(total, {"w": 2.0, "control:w": 2.0}), report)
        aggregate = {k: combined.total[k] / combined.claim[k] for k in total}
        state = method.revise(state, None, None, aggregate, report)
        w = w + aggregate["w"]
    assert abs(float(w) + 1 / 3) < 1e-4


def test_steps_that_are_not_in_the_update_are_refused(task):
    context = toy.make_context(task, local_validation=0.2)
    with pytest.raises(UserError, match="set local_validation = 0"):
        toy.make_method(task, "scaffold", context)
