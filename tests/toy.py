"""A tiny task that the tests share: small images, a small network, ragged clients."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from fedlite import methods, models, tasks
from fedlite.data.federated import Split
from fedlite.federated.engine import Engine, EngineOptions
from fedlite.federated.local import ClientOptimizer
from fedlite.federated.server_optimizer import server_optimizer
from fedlite.models import units

CLASSES = 4
SIZES = (5, 1, 12, 8, 3, 0, 9, 7)
EXAMPLE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)


def make_split(sizes=SIZES, seed=0) -> Split:
    """Images whose mean brightness tells the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, sum(sizes)).astype(np.int32)
    noise = rng.integers(0, 60, (sum(sizes), 8, 8, 1))
    x = (noise + 45 * y[:, None, None, None]).astype(np.uint8)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Split({"x": x, "y": y}, offsets, tuple(f"c{i}" for i in range(len(sizes))))


def make_task(name="mlp", **options) -> tasks.Classification:
    """A small model by name with the classification task."""
    defaults = {
        "mlp": {"hidden": (6, 5)},
        "emnist_cnn": {"conv1": 3, "conv2": 4, "dense1": 6},
    }
    model = models.build(name, num_classes=CLASSES, **{**defaults[name], **options})
    return tasks.Classification(model, units.unit_axes(model, EXAMPLE))


def make_params(task, seed=0):
    """Fresh parameters of a task's model."""
    return units.init_params(task.model, jax.random.key(seed), EXAMPLE)


def make_context(task, population=8, clients_per_round=3, **more) -> methods.Context:
    """The context in which methods are built."""
    shapes = FrozenDict(units.param_shapes(task.model, EXAMPLE))
    # The momentum is that of `make_engine`.
    facts = {"rounds": 4, "client_momentum": 0.5, **more}
    return methods.Context(task.axes, shapes, population, clients_per_round, **facts)


def make_method(task, spec, context=None, **sections) -> methods.Method:
    """A method by its spec; sections are its options by name."""
    return methods.build_chain(spec, context or make_context(task), sections)


def make_engine(task, method, *, split=None, clients=3, epochs=2, lr=0.1, server=None, **options):
    """An engine on one device unless `devices` says otherwise."""
    options = {"batch_size": 4, "devices": 1, **options}
    return Engine(
        task=task,
        method=method,
        recipe=methods.Recipe(clients, epochs, lr),
        split=split or make_split(),
        client_optimizer=ClientOptimizer(momentum=0.5),
        server_optimizer=server or server_optimizer("momentum", learning_rate=0.7),
        options=EngineOptions(**options),
        seed=3,
    )


def run(engine, params, rounds=3):
    """Runs rounds; returns the server on the host and the results."""
    server, results, done = engine.init(params), [], 0
    while done < rounds:
        until = engine.plan(server, done)[1].until
        count = min(engine.max_rounds, rounds - done, until - done)
        server, more = engine.run(server, done, count)
        results += more
        done += count
    return jax.tree.map(np.asarray, engine.host(server)), results


def assert_same_bits(a, b):
    """Both trees have the same leaves, bit for bit."""
    leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(leaves_a) == len(leaves_b)
    for left, right in zip(leaves_a, leaves_b):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def assert_close(a, b, rtol=1e-5):
    """Both parameter sets agree to `rtol` of each array's largest magnitude."""
    assert a.keys() == b.keys()
    for path in a:
        left, right = np.asarray(a[path]), np.asarray(b[path])
        scale = max(np.abs(left).max(), 1e-3)
        assert np.abs(left - right).max() <= rtol * scale, path
