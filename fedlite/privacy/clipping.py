"""What bounds a client's influence: a clipped update, and a denominator that nobody can move."""

from collections.abc import Mapping

import jax.numpy as jnp

from fedlite.errors import UserError
from fedlite.models.normalization import refuse_trained
from fedlite.wire import Part


def clip_parts(parts: Mapping[str, Part], norm, method: str) -> tuple[dict[str, Part], object]:
    """Scales an update by min(1, norm / ||update||_2), over all its parts together.

    Args:
      parts: the decoded update, in the server's shapes.
      norm: greatest L2 norm, a number or a float32 scalar.
      method: who asks, for the error.

    Returns:
      The parts, and whether the norm was at most `norm` (a bool scalar). An update that is not
      finite becomes zero.

    Raises:
      UserError: a part's weight in the mean differs from client to client, so that the sum has no
        fixed denominator; or another method sends data along, which its server may combine with
        the sums before the noise is in them; or clients train running statistics, whose updates
        are no gradients of like size.
    """
    # The import takes seconds, so a run without privacy does without.
    from jax_privacy import clipping

    refuse_trained(parts, method)
    for path, part in parts.items():
        if ":" in path:
            raise UserError(
                f"{method} bounds and noises parameters alone, but another method sends {path!r} "
                "along: leave that method out"
            )
        if not isinstance(part.cover, (int, float)) or part.cover != 1:
            raise UserError(
                f"{method} needs every client to answer for every parameter, but for {path} the "
                "cohort's mean counts those clients alone that trained it: set aggregation = "
                "'zero' in the sub-model method"
            )
    values = {path: part.value for path, part in parts.items()}
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(value)) for value in values.values()]))
    clipped, length = clipping.clip_pytree(values, norm, return_zero=~finite)
    within = finite & (length <= norm)
    return {path: part._replace(value=clipped[path]) for path, part in parts.items()}, within


def fixed_claim(total: Mapping[str, object], denominator: int) -> dict[str, object]:
    """The same denominator for every entry, however many clients took part."""
    return {path: jnp.float32(denominator) for path in total}
