"""Federated pruning of single entries, the bound that structured patterns are measured against.

A client trains whole arrays with zeros in them, which stay zero: bytes on the wire fall (the kept
values, and a bit an entry with each new mask), FLOPs and memory do not.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax

from fedlite.methods.algebra import Update, View
from fedlite.methods.pruning_mask import UnderMask, claimed
from fedlite.wire import Part

# Of the masks that a client makes from what was announced.
_TAG = "unstructured"


@dataclasses.dataclass(frozen=True)
class Sparse(UnderMask):
    """What federated pruning is while one mask over single entries holds; see `UnderMask`."""

    def flags(self, state):
        """By rank, which the state holds: to sort all entries in each round would take long."""
        return {name: state["ranks"][name] < count for name, count in self.counts}

    def select(self, state, mine, keys, view):
        """The kept entries, and the mask where it is new; the client makes `read` from it."""
        hits = self._hits(state)

        def cut(name, part):
            hit = hits.get(name.rpartition(":")[2])
            if hit is None:
                return part
            return part._replace(
                value=jnp.where(hit, part.value, 0), sent=jnp.where(hit, part.sent, 0)
            )

        trained, read = ({name: cut(name, part) for name, part in side.items()} for side in view)
        masks = {f"{_TAG}:{path}": Part(hits[path], bits=0) for path in trained if path in hits}
        return self.announce(state, View(trained, {**read, **masks})), (mine, hits)

    def client_optimizer(self, view, optimizer):
        """Keeps at zero what is pruned, whatever its gradient."""
        masks = {
            path: view.read[f"{_TAG}:{path}"].value
            for path in view.trained
            if f"{_TAG}:{path}" in view.read
        }

        def masked(gradients, params=None):
            return {k: jnp.where(masks[k], g, 0) if k in masks else g for k, g in gradients.items()}

        return optax.chain(optax.stateless(masked), optimizer) if masks else optimizer

    def deselect(self, context, update, report):
        """The kept entries; nothing is claimed of the others."""
        mine, hits = context

        def back(name, part):
            hit = hits.get(name.rpartition(":")[2])
            if hit is None:
                return part
            return claimed(part._replace(value=jnp.where(hit, part.value, 0)), hit)

        parts = {name: back(name, part) for name, part in update.parts.items()}
        return Update(parts, update.weight), mine

    def _hits(self, state) -> dict[str, Any]:
        flags, groups = self.flags(state), self.plan.groups
        return {path: groups.hit(path, flags) for path in groups.matrices if f"{path}#0" in flags}
