"""FedDropoutAvg: a random part of each client's parameters enters the average.

Gunesli et al. 2021 (arXiv 2111.13230; papers.md 6.7). Every element is kept with probability
1 - rate, drawn anew for each client and round, and averaged over the clients for which it was kept
(rule B of papers.md 1.4). Clients start from the same broadcast, so averaging parameters and
averaging updates are the same.

The original drops on the server, after full uploads. FedOBD's comparison drops on the client, so
that the upload shrinks; the mask is drawn from a seed that the server knows, so that no index is
sent.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fedlite.errors import UserError
from fedlite.methods.algebra import Method, Sums
from fedlite.methods.registry import register


@register("feddropoutavg")
@dataclasses.dataclass(frozen=True)
class FedDropoutAvg(Method):
    """Averages a random part of every upload.

    Attributes:
      rate: probability with which an element is dropped.
      side: "client" sends what is kept alone, "server" sends everything.
      empty: what becomes of an element that no client kept: "keep" leaves it as it is, "zero"
        sets it to 0 (with a server step of 1), as the code of FedOBD's authors does; the server
        then remembers its parameters once more.
    """

    rate: float = 0.3
    side: str = "client"
    empty: str = "keep"

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise UserError(f"feddropoutavg.rate must be at least 0 and below 1, not {self.rate}")
        if self.side not in ("client", "server"):
            raise UserError(f"feddropoutavg.side must be client or server, not {self.side!r}")
        if self.empty not in ("keep", "zero"):
            raise UserError(f"feddropoutavg.empty must be keep or zero, not {self.empty!r}")

    def init(self, key, view):
        """The parameters, where an empty element is to be set to zero."""
        if self.empty == "keep":
            return {}
        # Copies: the engine donates its state, and one buffer can be donated once.
        return {path: jnp.array(part.value) for path, part in view.trained.items()}

    def select(self, state, mine, keys, view):
        """Everything; the key is for the mask."""
        return view, (mine, jax.random.fold_in(keys.client, 0))

    def deselect(self, context, update, report):
        """The kept elements, which alone have a claim."""
        mine, key = context
        # Dropping nothing is no mask at all, so that it is bit-equal to FedAvg.
        if not self.rate:
            return update, mine
        parts = {}
        for index, (path, part) in enumerate(sorted(update.parts.items())):
            shape = part.value.shape
            kept = jax.random.bernoulli(jax.random.fold_in(key, index), 1 - self.rate, shape)
            parts[path] = part._replace(
                value=jnp.where(kept, part.value, 0),
                cover=jnp.where(kept, part.cover, 0.0),
                sent=jnp.where(kept, part.sent, 0) if self.side == "client" else part.sent,
            )
        return update._replace(parts=parts), mine

    def combine(self, state, key, sums, report):
        """With `empty` "zero", an element without a claim moves by minus itself."""
        total, claim = dict(sums.total), dict(sums.claim)
        for path, value in state.items():
            empty = claim[path] <= 0
            total[path] = jnp.where(empty, -value, total[path])
            claim[path] = jnp.where(empty, 1.0, claim[path])
        return Sums(total, claim)

    def revise(self, state, key, params, aggregate, report):
        """The parameters of the next round."""
        return {path: params[path] for path in state}
