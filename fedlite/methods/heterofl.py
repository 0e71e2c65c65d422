"""HeteroFL: each client trains the first units of every width, as many as its level allows.

Diao et al. 2021 (arXiv 2010.01264). The sub-model of a smaller level lies inside that of a larger
one, so that every client that holds an entry averages it (rule B of papers.md 1.4).

A cohort mixes sizes, and one program serves it, so a client trains the full shapes with zeros
where it holds nothing: bytes on the wire are exact, client FLOPs and memory are those of the
full model, above what a client of a smaller level would need. (Federated dropout at one rate is
the method whose sub-models are physically smaller.) A unit of zeros gives zero where its
activation maps 0 to 0 and a normalisation takes whole groups of units; over a width with a
normalisation of all its units together (layer norm), the result is not that of the smaller model.
Of the paper, the scaler and the masked cross-entropy are not here; group norm, or `model.norm` =
"batch", stands in for its static batch norm.
"""

import dataclasses
import fractions
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedlite.errors import UserError
from fedlite.methods.algebra import Method, Update, View
from fedlite.methods.registry import register
from fedlite.methods.submodel import AGGREGATIONS
from fedlite.models.normalization import refuse_trained
from fedlite.wire import Part

_TAG = "heterofl"


@register("heterofl")
@dataclasses.dataclass(frozen=True)
class HeteroFL(Method):
    """Nested prefixes of each width.

    At level r a width of n units keeps the first ceil(r n). Which level a client has follows from
    a seed that the server knows, so that it costs nothing on the wire.

    Attributes:
      axes: the model's `UnitAxes`.
      levels: shares of a width, drawn with equal chances.
      assignment: "fixed", a client keeps its level for life, or "dynamic", it is drawn anew for
        each client and round; the paper has both.
      aggregation: "count" divides an entry's sum by the clients that hold it, "zero" by the cohort.
    """

    axes: Any
    levels: tuple[float, ...] = (1.0, 0.5, 0.25)
    assignment: str = "fixed"
    aggregation: str = "count"

    def __post_init__(self):
        if not self.levels or not all(0 < level <= 1 for level in self.levels):
            raise UserError(
                f"heterofl.levels must be shares above 0 and at most 1, not {self.levels}"
            )
        if self.assignment not in ("fixed", "dynamic"):
            raise UserError(
                f"heterofl.assignment must be fixed or dynamic, not {self.assignment!r}"
            )
        if self.aggregation not in AGGREGATIONS:
            raise UserError(
                f"heterofl.aggregation must be one of {', '.join(AGGREGATIONS)}, not "
                f"{self.aggregation!r}"
            )

    @property
    def _whole(self) -> bool:
        # Everyone at level 1 is no mask at all, so that it is bit-equal to FedAvg.
        return set(self.levels) == {1}

    def init_client(self, key, view):
        """The client's level, an index, where it is fixed."""
        if self._whole or self.assignment == "dynamic":
            return ()
        return self._level(key)

    def _level(self, key):
        return jax.random.randint(key, (), 0, len(self.levels))

    def select(self, state, mine, keys, view):
        """Every part within the client's prefixes; the masks are read, and made from the level."""
        if self._whole:
            return view, (mine, None)
        refuse_trained(view.trained, "heterofl")
        dynamic = self.assignment == "dynamic"
        level = self._level(jax.random.fold_in(keys.client, 0)) if dynamic else mine

        def cut(path, part):
            held = self.held(path, part.value.shape, level)
            if held is None:
                return part
            return part._replace(
                value=jnp.where(held, part.value, 0), sent=jnp.where(held, part.sent, 0)
            )

        trained, read = ({path: cut(path, part) for path, part in side.items()} for side in view)
        for path, part in trained.items():
            held = self.held(path, part.value.shape, level)
            if held is not None:
                # Shaped as the parameter, so that a method further in can cut it.
                mask = jnp.broadcast_to(held, part.value.shape)
                read[f"{_TAG}:{path}"] = Part(mask, bits=0)
        return View(trained, read), (mine, level)

    def client_optimizer(self, view, optimizer):
        """Keeps at zero what the client does not hold, whatever its gradient."""
        masks = {
            path: view.read[f"{_TAG}:{path}"].value
            for path in view.trained
            if f"{_TAG}:{path}" in view.read
        }

        def masked(gradients, params=None):
            return {
                path: jnp.where(masks[path], gradient, 0) if path in masks else gradient
                for path, gradient in gradients.items()
            }

        return optax.chain(optax.stateless(masked), optimizer) if masks else optimizer

    def deselect(self, context, update, report):
        """What the client holds; the rest claims nothing, or a change of 0."""
        mine, level = context
        if level is None:
            return update, mine
        parts = {}
        for path, part in update.parts.items():
            held = self.held(path, part.value.shape, level)
            if held is not None:
                cover = part.cover
                if self.aggregation == "count":
                    cover = jnp.where(held, cover, 0.0)
                elif jnp.ndim(cover):
                    cover = jnp.where(held, cover, 1.0)
                part = part._replace(
                    value=jnp.where(held, part.value, 0),
                    cover=cover,
                    sent=jnp.where(held, part.sent, 0),
                )
            parts[path] = part
        return Update(parts, update.weight), mine

    def held(self, path: str, shape: tuple[int, ...], level):
        """Where a client holds an array: bool, broadcast against `shape`; None: everywhere.

        Args:
          path: of the parameter, or "tag:path".
          shape: of the array, whose axes hold all units that there are.
          level: an index into `levels`, traced.
        """
        held = None
        for dimension, axis in enumerate(self.axes.of(path)):
            if not axis:
                continue
            units = shape[dimension] // axis.size
            kept = jnp.array([kept_units(units, share) for share in self.levels])[level]
            inside = jnp.arange(shape[dimension]) < kept * axis.size
            inside = inside.reshape([-1 if d == dimension else 1 for d in range(len(shape))])
            held = inside if held is None else held & inside
        return held


def kept_units(total: int, share: float) -> int:
    """ceil(share * total), exact in decimals."""
    return math.ceil(fractions.Fraction(str(share)) * total)
