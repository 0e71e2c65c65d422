"""FedNova: normalised averaging, for clients that take different numbers of local steps.

Wang et al. 2020 (arXiv 2007.07481), equation 8. With Delta_i the update of client i, p_i its weight
and a_i how much each of its gradients counts in Delta_i,

    Delta = (sum_i p_i ||a_i||_1) sum_i p_i Delta_i / ||a_i||_1

so that a client with many steps pulls no harder. For plain SGD ||a||_1 is the number of steps
tau; for SGD with momentum rho (section 4.1) it is

    (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho)
"""

import dataclasses

import jax.numpy as jnp

from fedlite.errors import UserError
from fedlite.methods.algebra import Method, Update
from fedlite.methods.registry import register
from fedlite.models.normalization import is_statistic
from fedlite.wire import Part


@register("fednova")
@dataclasses.dataclass(frozen=True)
class FedNova(Method):
    """Divides each update by its client's steps, and the mean multiplies by the mean of those.

    Stands to the left of whatever needs the update itself (clipping, codecs, SCAFFOLD). The server
    knows a client's number of steps as it knows its number of examples, so nothing more is sent.

    Attributes:
      client_momentum: of the clients' optimiser; 0 for plain SGD.
      local_validation: of the clients; must be 0, since the steps that made the update are then
        not those that are counted.
    """

    client_momentum: float
    local_validation: float

    def __post_init__(self):
        if self.local_validation:
            raise UserError(
                "fednova needs every local step in the update: set local_validation = 0"
            )

    def norm(self, steps):
        """||a||_1 after so many local steps."""
        if self.client_momentum == 0:
            return steps
        rho = self.client_momentum
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)

    def deselect(self, context, update, report):
        """The normalised update, and beside it the norm for the server's mean."""
        norm = self.norm(jnp.maximum(report.steps, 1).astype(jnp.float32))
        parts = {
            path: part._replace(value=part.value / norm) if _stepped(path) else part
            for path, part in update.parts.items()
        }
        # As large as a parameter, so that methods further out can reshape it like one.
        smallest = min(
            (path for path in parts if ":" not in path),
            key=lambda path: (parts[path].value.size, path),
        )
        norms = jnp.full_like(parts[smallest].value, norm)
        # The ones tell how much of the norms methods further out left in the sum.
        beside = {
            f"norm:{smallest}": Part(norms, bits=0),
            f"one:{smallest}": Part(jnp.ones_like(norms), bits=0),
        }
        return Update({**parts, **beside}, update.weight), context

    def combine(self, state, key, sums, report):
        """Multiplies the sums by the weighted mean of the norms."""
        norms, ones = (
            jnp.sum(next(sums.total[path] for path in sums.total if path.startswith(tag)))
            for tag in ("norm:", "one:")
        )
        # Where no client sent that array, the mean number of steps must do.
        mean = jnp.where(ones > 0, norms / jnp.maximum(ones, 1e-30), self.norm(report.steps))
        totals = {
            path: value * mean if _stepped(path) else value for path, value in sums.total.items()
        }
        return sums._replace(total=totals)


def _stepped(path: str) -> bool:
    """Whether an update is a sum over steps of gradients."""
    return ":" not in path and not is_statistic(path)
