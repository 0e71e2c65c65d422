"""Federated pruning under one mask: what clients receive of the groups that the server kept.

Units leave the model with everything that reads them (`Masked`); of columns, rows and their halves
a compact kernel is left (`Compact`). Single entries are in `fedlite.methods.pruning_sparse`.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from fedlite.methods.algebra import Method, Update, View
from fedlite.methods.submodel import Kept, SubModel, take
from fedlite.models import compact
from fedlite.wire import Part
from fedlite.wire.message import first_on_wire


@dataclasses.dataclass(frozen=True)
class UnderMask(Method):
    """What federated pruning is while one mask holds.

    Attributes:
      plan: the `FederatedPruning`.
      counts: pairs (name, kept groups), of what is pruned.
    """

    plan: Any
    counts: tuple[tuple[str, int], ...]

    def init(self, key, view):
        """As `FederatedPruning`."""
        return self.plan.init(key, view)

    def flags(self, state) -> dict[str, Any]:
        """Which groups are kept, bool [groups] by name, of what is pruned."""
        raise NotImplementedError

    def announce(self, state, view: View) -> View:
        """The view with a bit for every prunable group, on the wire where the mask is new."""
        if not self.counts:
            return view
        flags, trained, first = self.flags(state), dict(view.trained), first_on_wire(view.trained)
        bits = [flags.get(n, jnp.ones(total, bool)) for n, total in self.plan.groups.totals.items()]
        # Traced, as a program of its own for the first round would take as long to compile.
        new = jnp.isin(state["round"], jnp.array([turn.round for turn in self.plan.turns]))
        trained[first] = trained[first].with_flags(jnp.concatenate(bits), told=new)
        return view._replace(trained=trained)

    def revise(self, state, key, params, aggregate, report):
        """The server's turn, see `FederatedPruning.rescored`."""
        return self.plan.rescored(state, params, aggregate, self.flags(state))

    def deployed(self, state, params):
        """The server's model with zeros where it is pruned."""
        flags, groups = self.flags(state), self.plan.groups
        return {k: jnp.where(groups.hit(k, flags), v, 0) for k, v in params.items()}


class _Indexed(UnderMask):
    """A mask over few groups, by their indices."""

    def kept(self, state) -> dict[str, Kept]:
        """The best groups by name; equal scores in the order of the groups."""
        totals = self.plan.groups.totals
        found = {}
        for name, count in self.counts:
            best = jnp.argsort(-state["scores"][name], stable=True)[:count]
            found[name] = Kept(jnp.sort(best), totals[name])
        return found

    def flags(self, state):
        """As `UnderMask`."""
        return {
            name: jnp.zeros(own.total, bool).at[own.indices].set(True)
            for name, own in self.kept(state).items()
        }


@dataclasses.dataclass(frozen=True)
class Masked(_Indexed, SubModel):
    """The sub-model of the units that are kept."""

    # As the cohort shares the mask, either rule means the same where units are kept.
    aggregation = "count"
    rescale = False

    @property
    def axes(self):
        """The model's `UnitAxes`."""
        return self.plan.axes

    def units(self, state, keys, widths):
        """Those that are kept."""
        return {width: kept.indices for width, kept in self.kept(state).items() if width in widths}

    def select(self, state, mine, keys, view):
        """The sub-model, and the mask where it is new."""
        view, context = SubModel.select(self, state, mine, keys, view)
        return self.announce(state, view), context

    def deployed(self, state, params):
        """The sub-model that clients receive."""
        kept = self.kept(state)
        return {path: take(self.axes.of(path), value, kept) for path, value in params.items()}


@dataclasses.dataclass(frozen=True)
class Compact(_Indexed):
    """Compact kernels, and the bias entries of the columns that are kept."""

    def _indices(self, state) -> dict[str, list]:
        """Kept groups by the path of a kernel, a part each."""
        found: dict[str, list] = {}
        for name, own in self.kept(state).items():
            found.setdefault(name.rpartition("#")[0], []).append(own.indices)
        return found

    def select(self, state, mine, keys, view):
        """Compact kernels with their indices, and the mask where it is new."""
        indices, groups = self._indices(state), self.plan.groups
        read = {
            compact.index_name(groups.pattern, number, path): Part(own, bits=0)
            for path, kept in indices.items()
            for number, own in enumerate(kept)
        }

        def cut(name, part):
            path = name.rpartition(":")[2]
            if path in indices:
                matrix, own = groups.matrices[path], indices[path]
                return part.map_arrays(
                    lambda array: compact.take(groups.pattern, array.reshape(matrix), own)
                )
            if (kernel := groups.owner(path)) in indices:
                columns = indices[kernel][0]
                return part.map_arrays(lambda array: jnp.take(array.ravel(), columns, mode="clip"))
            return part

        trained, old = ({name: cut(name, part) for name, part in side.items()} for side in view)
        view = self.announce(state, View(trained, {**old, **read}))
        return view, (mine, indices, self.flags(state))

    def deselect(self, context, update, report):
        """Puts every kernel back where its groups came from."""
        (mine, indices, flags), groups = context, self.plan.groups

        def back(name, part):
            path = name.rpartition(":")[2]
            shape = self.plan.shapes[path]
            if path in indices:
                matrix, kept = groups.matrices[path], indices[path]
            elif (kernel := groups.owner(path)) in indices:
                matrix, kept = (1, 1, groups.matrices[kernel][2]), indices[kernel]
            else:
                return part
            full = part.map_arrays(
                lambda array: compact.put(groups.pattern, array, kept, matrix).reshape(shape)
            )
            return claimed(full, groups.hit(path, flags))

        parts = {name: back(name, part) for name, part in update.parts.items()}
        return Update(parts, update.weight), mine


def claimed(part: Part, hit) -> Part:
    """The part that claims and sends what was kept alone."""
    return part._replace(cover=jnp.where(hit, part.cover, 0.0), sent=jnp.where(hit, part.sent, 0))
