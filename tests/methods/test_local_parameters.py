"""Local parameters: neither sent nor aggregated, each client's its own."""

import jax
import numpy as np
import pytest

from fedlite.errors import UserError
from tests import toy

LOCAL = {"local": (("dense2/bias", False), ("dense2/.*", True))}
KERNEL = "dense2/kernel"


@pytest.fixture(scope="module")
def task():
    return toy.make_task()


@pytest.fixture(scope="module")
def params(task):
    return toy.make_params(task)


def _engine(task, spec="local_parameters", **changes):
    method = toy.make_method(task, spec, local_parameters=LOCAL)
    return toy.make_engine(task, method, **changes)


def test_stays_with_the_client(task, params):
    engine = _engine(task)
    server, results = toy.run(engine, params, 2)
    sent = 4 * sum(value.size for path, value in params.items() if path != KERNEL)
    for result in results:
        assert (result.down == sent).all() and (result.up == sent).all()
    toy.assert_same_bits(server.params[KERNEL], params[KERNEL])
    assert np.any(server.params["dense2/bias"] != params["dense2/bias"])
    # The server's optimiser keeps no state for it either.
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(server.opt_state)) == sent // 4
    took_part = {int(i) for result in results for i in result.ids if toy.SIZES[i]}
    own = engine.store.gather(np.arange(8))[KERNEL]
    for client in range(8):
        changed = np.any(own[client] != params[KERNEL])
        assert changed == (client in took_part)
    first, second = sorted(took_part)[:2]
    assert np.any(own[first] != own[second])


def test_trains_on_from_where_it_was(task, params):
    """A lone client whose server does nothing else is a client that trains by itself."""
    split = toy.make_split(sizes=(8,))
    context = toy.make_context(task, 1, 1)
    keep = {"local": (("logits/bias", False), (".*", True))}
    engines = []
    for spec in ("local_parameters", "fedavg"):
        method = toy.make_method(task, spec, context, local_parameters=keep)
        server_optimizer = toy.server_optimizer("sgd", learning_rate=1.0)
        engine = toy.make_engine(task, method, split=split, clients=1, server=server_optimizer)
        engines.append((engine, toy.run(engine, params, 3)[0]))
    (local, served), (_, plain) = engines
    own = {k: v[0] for k, v in local.store.gather(np.array([0])).items()}
    toy.assert_close({**served.params, **own}, plain.params)


def test_inside_a_codec_and_around_dropout(task, params):
    engine = _engine(task, "quantize+local_parameters+federated_dropout")
    server, (result,) = toy.run(engine, params, 1)
    toy.assert_same_bits(server.params[KERNEL], params[KERNEL])
    # Half of 6 and of 5 units; a byte a value, and a norm of 4 bytes for each of 5 arrays.
    assert (result.up == 8 * 8 * 3 + 3 + 2 + 2 * 4 + 4 + 5 * 4).all()


def test_refusals(task):
    for local, says in [
        (((".*", True),), "leaves nothing to federate"),
        ((("dense9", True),), "matches the whole of no name"),
    ]:
        with pytest.raises(UserError, match=says):
            toy.make_method(task, "local_parameters", local_parameters={"local": local})
