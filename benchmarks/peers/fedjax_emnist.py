"""Clients/s of FedJAX's FedAvg on its own EMNIST CNN; prints one JSON line a turn.

    python fedjax_emnist.py [--clients=10] [--seconds=5] [--turns=1]

100 examples a client, batch 20, one epoch, SGD: as `python -m experiments.benchmark`. Needs an
environment of its own: `pip install fedjax==0.0.17 jax==0.10.2`.
"""

import argparse
import importlib.metadata
import json
import time

import jax

# FedJAX 0.0.17 uses names that jax has since moved.
for name in ("map", "leaves", "flatten", "unflatten", "structure", "reduce"):
    if not hasattr(jax, f"tree_{name}"):
        setattr(jax, f"tree_{name}", getattr(jax.tree, name))
if not hasattr(jax, "tree_multimap"):
    jax.tree_multimap = jax.tree.map

import fedjax  # noqa: E402
import numpy as np  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("--clients", type=int, default=10)
parser.add_argument("--seconds", type=float, default=5.0)
parser.add_argument("--turns", type=int, default=1)
arguments = parser.parse_args()

rng = np.random.default_rng(0)
datasets = {
    str(client): {
        "x": rng.random((100, 28, 28, 1), dtype=np.float32),
        "y": rng.integers(0, 62, 100).astype(np.int32),
    }
    for client in range(arguments.clients)
}
federated = fedjax.InMemoryFederatedData(datasets)
model = fedjax.models.emnist.create_conv_model(only_digits=False)
algorithm = fedjax.algorithms.fed_avg.federated_averaging(
    fedjax.model_grad(model),
    fedjax.optimizers.sgd(0.1),
    fedjax.optimizers.sgd(1.0),
    fedjax.ShuffleRepeatBatchHParams(batch_size=20, num_epochs=1),
)
state = algorithm.init(model.init(jax.random.PRNGKey(0)))
count = sum(np.size(leaf) for leaf in jax.tree_util.tree_leaves(state.params))


def one_round(state, number):
    """One round of all clients."""
    keys = jax.random.split(jax.random.PRNGKey(number), arguments.clients)
    cohort = [(c, federated.get_client(c), key) for c, key in zip(federated.client_ids(), keys)]
    state, _ = algorithm.apply(state, cohort)
    return jax.block_until_ready(state)


for number in range(2):
    state = one_round(state, number)
for _ in range(arguments.turns):
    begin, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < arguments.seconds:
        state = one_round(state, done)
        done += 1
    print(
        json.dumps(
            {
                "framework": f"FedJAX {importlib.metadata.version('fedjax')}",
                "params": int(count),
                "clients_per_second": done * arguments.clients / elapsed,
            }
        ),
        flush=True,
    )
