"""Physically smaller sub-models: what federated dropout and structured pruning share.

A sub-model keeps some units of each droppable width. `select` takes the kept units along
the array axes that belong to the width (derived in `fedlite.models.units`), `deselect` puts
the update back where the units came from. Kept counts are static, kept indices are traced.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from fedlite.errors import UserError
from fedlite.methods.algebra import Method, Update, View

AGGREGATIONS = ("count", "zero")


class Kept(NamedTuple):
    """The kept units of one width: sorted int32 indices, and how many units there are."""

    indices: Any
    total: int


def take(axes, value, kept: dict[str, Kept]):
    """The sub-array of `value` at the kept units; `axes` are the array's `UnitAxis`es.

    One gather for all dimensions. With one for each, XLA puts the last dimension's units outermost
    and reads the whole array once for each unit, several times slower on a CPU.
    """
    cut = {d: axis for d, axis in enumerate(axes) if axis and axis.width in kept}
    if not cut:
        return value
    count = max(cut) + 1
    if count > value.ndim:
        raise ValueError(f"an array of {value.ndim} axes has no units along axis {count - 1}")
    shape, flat = [], jnp.int32(0)
    for dimension, size in enumerate(value.shape[:count]):
        entries = jnp.arange(size)
        if axis := cut.get(dimension):
            entries = _entries(kept[axis.width].indices, axis.size)
        shape.append(len(entries))
        flat = flat[..., None] * size + entries
    rest = value.shape[count:]
    # The indices are valid; "clip" is the mode that checks nothing and fills nothing.
    value = jnp.take(value.reshape(-1, *rest), flat.ravel(), axis=0, mode="clip")
    return value.reshape(*shape, *rest)


def mask(axes, kept: dict[str, Kept], ndim: int):
    """Where `take` reads from: a bool array that broadcasts against the full array."""
    hit = jnp.ones((1,) * ndim, bool)
    for dimension, axis in enumerate(axes):
        if axis and axis.width in kept:
            indices, total = kept[axis.width]
            entries = jnp.repeat(jnp.zeros(total, bool).at[indices].set(True), axis.size)
            hit &= entries.reshape([-1 if d == dimension else 1 for d in range(ndim)])
    return hit


def put(axes, value, kept: dict[str, Kept]):
    """The inverse of `take`: zeros where no unit was kept.

    A scatter is slow and keeps a temporary of the full array for each client, so it is written
    as gathers of the inverse index, several times faster on a CPU. What was dropped reads a zero
    that is put behind the kept units.
    """
    cut = {d: axis for d, axis in enumerate(axes) if axis and axis.width in kept}
    value = jnp.pad(value, [(0, int(d in cut)) for d in range(value.ndim)])
    for dimension, axis in cut.items():
        indices, total = kept[axis.width]
        entries = _entries(indices, axis.size)
        inverse = jnp.full(total * axis.size, len(entries), jnp.int32)
        inverse = inverse.at[entries].set(jnp.arange(len(entries), dtype=jnp.int32))
        value = jnp.take(value, inverse, axis=dimension, mode="clip")
    return value


def scale(axes, path: str, kept: dict[str, Kept]) -> float:
    """total / kept of each width that the kernel at `path` reads from, as in inverted dropout."""
    read = [axes.of(path)[d].width for d in axes.input_axes(path)]
    return math.prod(kept[w].total / len(kept[w].indices) for w in read if w in kept)


def _entries(units, size: int):
    # A unit is `size` neighbouring entries: the channels of a norm group, a head.
    return (units[:, None] * size + jnp.arange(size)).ravel() if size > 1 else units


class SubModel(Method):
    """Base of the methods that train a part of each width; a subclass says which units.

    Subclasses are dataclasses with the fields `axes` (the model's `UnitAxes`), `aggregation`
    and `rescale`:
      aggregation: "count" divides an entry's sum by the clients that hold it (papers.md 1.4
        rule B: a unit that few clients drew moves as far as any), "zero" by the whole cohort
        (rule A: who does not hold an entry says that it did not move).
      rescale: whether the kernels that read from a width are multiplied by total / kept, as
        inverted dropout does, so that the next layer sees the same mean.
    """

    axes: Any
    aggregation: str
    rescale: bool

    def units(self, state, keys, widths: dict[str, int]) -> dict[str, Any]:
        """Indices of the kept units by width; a width that is left out is kept whole."""
        raise NotImplementedError

    def select(self, state, mine, keys, view):
        """Cuts every part, trained or read, to the kept units."""
        widths = self.axes.widths(
            {k: p.value.shape for k, p in {**view.read, **view.trained}.items() if ":" not in k}
        )
        # Keeping all is no gather at all, so that rate 0 is bit-equal to the full model.
        kept = {
            width: Kept(jnp.sort(indices), widths[width])
            for width, indices in self.units(state, keys, widths).items()
            if len(indices) < widths[width]
        }

        def cut(path, part):
            axes = self.axes.of(path)
            part = part.map_arrays(lambda array: take(axes, array, kept))
            if ":" in path or (scale := self._scale(path, kept)) == 1:
                return part
            return part._replace(value=part.value * scale)

        view = View(*({path: cut(path, part) for path, part in side.items()} for side in view))
        return view, (mine, kept)

    def deselect(self, context, update, report):
        """Puts every part back where its units came from."""
        mine, kept = context

        def back(path, part):
            axes = self.axes.of(path)
            if not any(axis and axis.width in kept for axis in axes):
                return part
            hit = mask(axes, kept, part.value.ndim)
            full = part.map_arrays(lambda array: put(axes, array, kept))
            # `hit` stays as small as it is: it broadcasts over the axes that nobody drops.
            cover, sent = full.cover, jnp.where(hit, full.sent, 0)
            if self.aggregation == "count":
                cover = jnp.where(hit, cover, 0.0)
            elif jnp.ndim(cover):
                cover = jnp.where(hit, cover, 1.0)
            return full._replace(value=full.value / self._scale(path, kept), cover=cover, sent=sent)

        parts = {path: back(path, part) for path, part in update.parts.items()}
        return Update(parts, update.weight), mine

    def _scale(self, path, kept) -> float:
        return scale(self.axes, path, kept) if self.rescale else 1

    def _check(self):
        if self.aggregation not in AGGREGATIONS:
            raise UserError(
                f"aggregation must be one of {', '.join(AGGREGATIONS)}, not {self.aggregation!r}"
            )


def width_names(axes) -> list[str]:
    """The names of a model's droppable widths, from its `UnitAxes`."""
    return sorted({axis.width for of in axes.table.values() for axis in of if axis})
