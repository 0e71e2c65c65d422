"""The clients' own state between rounds, keyed by client; on the host."""

from typing import Any

import jax
import numpy as np

from fedlite.methods import Method, View


class ClientStore:
    """State of each client for methods that have any (`Method.init_client`).

    A client's state comes into being when it first takes part, so a population of millions
    costs memory only for those that did.
    """

    def __init__(self, method: Method, view: View, population: int, key):
        def one(client):
            return method.init_client(jax.random.fold_in(key, client), view)

        example = jax.eval_shape(one, jax.ShapeDtypeStruct((), np.int32))
        leaves, self._structure = jax.tree.flatten(example)
        self.stateful = bool(leaves)
        # The system gives zeroed memory page by page, when it is written.
        self._leaves = [np.zeros((population, *leaf.shape), leaf.dtype) for leaf in leaves]
        self._seen = np.zeros(population if self.stateful else 0, bool)
        self._init = jax.jit(jax.vmap(one))

    def gather(self, ids: np.ndarray) -> Any:
        """The state of clients `ids` (any shape; negative ids fill), leaves [*ids.shape, ...]."""
        if not self.stateful:
            return jax.tree.unflatten(self._structure, [])
        clients = np.maximum(ids, 0)
        new = np.unique(clients[~self._seen[clients]])
        if len(new):
            for leaf, value in zip(self._leaves, jax.tree.leaves(self._init(new.astype(np.int32)))):
                leaf[new] = value
            self._seen[new] = True
        return jax.tree.unflatten(self._structure, [leaf[clients] for leaf in self._leaves])

    def scatter(self, ids: np.ndarray, state: Any):
        """Writes back what `gather` gave for `ids`, after a round."""
        real = ids >= 0
        for leaf, value in zip(self._leaves, jax.tree.leaves(state)):
            leaf[ids[real]] = np.asarray(value)[real]

    def save(self) -> dict[str, np.ndarray]:
        """The state of all clients that took part, by name."""
        if not self.stateful:
            return {}
        seen = np.flatnonzero(self._seen)
        return {"seen": seen, **{f"{i:04d}": leaf[seen] for i, leaf in enumerate(self._leaves)}}

    def load(self, saved: dict[str, np.ndarray]):
        """Restores what `save` returned."""
        if not self.stateful:
            return
        seen = np.asarray(saved["seen"])
        self._seen[:] = False
        self._seen[seen] = True
        for i, leaf in enumerate(self._leaves):
            leaf[seen] = saved[f"{i:04d}"]
