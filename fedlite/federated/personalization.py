"""Personalisation: each client's accuracy before and after it trains on for itself.

The server's model is scored on the examples that each client holds out (`LocalPlan.validation`,
the same division as in training, so nobody ever trained on them); then the client trains what it
would train in a round, from what it would receive, and is scored again. Nothing is sent back. Of a
speech task it is the token accuracy, see `fedlite.tasks.Speech.evaluate`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedlite.data.federated import Split
from fedlite.federated.engine import Engine
from fedlite.federated.local import ClientData, LocalPlan, held_out_scores, train_locally, values
from fedlite.federated.round import Server
from fedlite.methods import Keys, Method, server_view
from fedlite.tasks import Task, across_clients

# Clients a call: their own states are in memory at a time.
_PIECE = 32


class Personalized(NamedTuple):
    """Of the clients that hold anything out.

    Attributes:
      ids: int64 [clients].
      before, after: accuracy on the held-out examples, float64 [clients].
    """

    ids: np.ndarray
    before: np.ndarray
    after: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Mean, worst decile and quantiles over the clients, before and after."""
        return {
            "clients": len(self.ids),
            "before": across_clients(self.before),
            "after": across_clients(self.after),
        }


def personalize_run(
    engine: Engine, server: Server, rounds: int, epochs: int, lr: float
) -> Personalized:
    """What becomes of the clients of an engine's split.

    Args:
      engine: its method, data and options; its clients hold out `EngineOptions.validation`.
      server: after the last round, on the host or one device.
      rounds: that took place.
      epochs: of each client's own training.
      lr: of it; 0 for that of the rounds.
    """
    method, recipe = engine.method.at(max(rounds - 1, 0), server.state, engine.recipe)
    plan = dataclasses.replace(engine.local_plan(recipe), epochs=epochs, unroll=False)
    key = jax.random.fold_in(jax.random.key(engine.seed), rounds)
    rate = lr or engine.recipe.lr
    return personalize(
        engine.task, method, plan, server, engine.store.gather, engine.split, rate, key
    )


def personalize(
    task: Task,
    method: Method,
    plan: LocalPlan,
    server: Server,
    gather: Callable[[np.ndarray], Any],
    split: Split,
    lr,
    key,
) -> Personalized:
    """Trains and scores every client of a split by itself.

    Args:
      task: the model and its loss.
      method: says what a client receives and trains: `Method.at` of the round at hand.
      plan: static; its `epochs` are those of the personalisation, its `validation` the share of
        the examples that is held out.
      server: on the host or a device.
      gather: gives the clients' own state by their numbers, leaves [clients, ...].
      split: the training split, each client's examples.
      lr: of the personalisation.
      key: of its random draws.
    """
    if not plan.validation:
        raise ValueError("a plan without held-out examples leaves nothing to score")
    plan = dataclasses.replace(plan, choose_epoch=False)
    arrays = {name: jnp.asarray(array) for name, array in split.arrays.items()}
    steps = plan.max_steps

    def one(server, arrays, client):
        own, number, start, size = client
        keys = Keys(key, jax.random.fold_in(key, number))
        view, _ = method.select(server.state, own, keys, server_view(server.params))
        data = ClientData(arrays, start, size, number)
        received = values(view.trained)
        update, _ = train_locally(task, method, plan, view, data, keys.client, lr, steps)
        trained = {path: received[path] + update[path] for path in received}
        return [
            jnp.stack(held_out_scores(task, plan, {**values(view.read), **model}, data, steps)[2:])
            for model in (received, trained)
        ]

    @jax.jit
    def piece(server, arrays, clients):
        return jax.lax.map(functools.partial(one, server, arrays), clients)

    found = []
    starts, sizes = split.offsets[:-1].astype(np.int32), split.sizes.astype(np.int32)
    for begin in range(0, split.num_clients, _PIECE):
        # The last piece is filled up with its last client, so that one program does.
        numbers = np.arange(begin, begin + _PIECE)
        clients = np.minimum(numbers, split.num_clients - 1)
        arguments = (gather(clients), clients.astype(np.int32), starts[clients], sizes[clients])
        real = numbers < split.num_clients
        found.append(
            [np.asarray(scores, float)[real] for scores in piece(server, arrays, arguments)]
        )
    before, after = (np.concatenate(scores) for scores in zip(*found))
    scored = before[:, 1] > 0
    accuracies = (correct[scored, 0] / correct[scored, 1] for correct in (before, after))
    return Personalized(np.flatnonzero(scored), *accuracies)
