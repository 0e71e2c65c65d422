"""Federated pruning under one mask: the sub-model of the units that the server kept."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from fedlite.methods.submodel import Kept, SubModel, take


@dataclasses.dataclass(frozen=True)
class Masked(SubModel):
    """What federated pruning is while one mask holds.

    Attributes:
      plan: the `FederatedPruning`.
      counts: pairs (width, kept units) of the widths that are pruned.
      announced: whether the broadcast tells the mask.
    """

    plan: Any
    counts: tuple[tuple[str, int], ...]
    announced: bool

    # As the cohort shares the mask, either rule means the same where units are kept.
    aggregation = "count"
    rescale = False

    @property
    def axes(self):
        """The model's `UnitAxes`."""
        return self.plan.axes

    def init(self, key, view):
        """As `FederatedPruning`."""
        return self.plan.init(key, view)

    def units(self, state, keys, widths):
        """The best of each width; equal scores in the order of the units."""
        return {
            width: jnp.argsort(-state["scores"][width], stable=True)[:count]
            for width, count in self.counts
            if width in widths
        }

    def kept(self, state) -> dict[str, Kept]:
        """The kept units of the widths that are pruned."""
        units = self.units(state, None, self.plan.widths)
        return {w: Kept(jnp.sort(units[w]), self.plan.widths[w]) for w in units}

    def select(self, state, mine, keys, view):
        """The sub-model, and the mask where it is new."""
        view, context = super().select(state, mine, keys, view)
        if self.announced:
            kept, trained, first = self.kept(state), dict(view.trained), min(view.trained)
            bits = [
                flags(kept[w]) if w in kept else jnp.ones(n, bool)
                for w, n in self.plan.widths.items()
            ]
            trained[first] = trained[first].with_flags(jnp.concatenate(bits))
            view = view._replace(trained=trained)
        return view, context

    def revise(self, state, key, params, aggregate, report):
        """The server's turn, see `FederatedPruning.rescored`."""
        return self.plan.rescored(state, params, aggregate, self.kept(state))

    def deployed(self, state, params):
        """The sub-model that clients receive."""
        kept = self.kept(state)
        return {path: take(self.axes.of(path), value, kept) for path, value in params.items()}


def flags(kept: Kept):
    """Which units of a width are kept, bool [units]."""
    return jnp.zeros(kept.total, bool).at[kept.indices].set(True)
