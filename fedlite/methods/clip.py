"""Clips each client's update to an L2 norm over all the parameters that it trains.

After clipping every client weighs the same, as user-level bounds require.
"""

import dataclasses

import jax.numpy as jnp

from fedlite.errors import UserError
from fedlite.methods.algebra import Method, Update
from fedlite.methods.registry import register
from fedlite.models.normalization import refuse_trained


@register("clip")
@dataclasses.dataclass(frozen=True)
class Clip(Method):
    """Scales an update by min(1, norm / ||update||_2).

    Stands outside (left of) a stochastic quantiser, so that it acts on the decoded update: a
    rounding up would otherwise exceed the norm a little.
    """

    norm: float = 1.0

    def __post_init__(self):
        if not self.norm > 0:
            raise UserError(f"clip.norm must be above 0, not {self.norm}")

    def deselect(self, context, update, report):
        """The scaled update with weight 1."""
        if tagged := [path for path in update.parts if ":" in path]:
            raise UserError(
                f"clip would also scale {tagged[0]!r}, which is another method's: put clip to the "
                "right of that method"
            )
        refuse_trained(update.parts, "clip")
        squares = sum(jnp.sum(jnp.square(part.value)) for part in update.parts.values())
        factor = jnp.minimum(1.0, self.norm / jnp.maximum(jnp.sqrt(squares), 1e-30))
        parts = {k: part._replace(value=part.value * factor) for k, part in update.parts.items()}
        return Update(parts, jnp.ones_like(update.weight)), context
