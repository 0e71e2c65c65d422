"""SCAFFOLD: control variates take the drift of each client out of its local steps.

Karimireddy et al. 2020 (arXiv 1910.06378), algorithm 1 with option II. Server and clients hold
variates c and c_i, zero at first. A client steps w <- w - lr (g - c_i + c), and after K steps

    c_i+ = c_i - c + (w_t - w_i) / (K lr)

Server: w += server optimiser's step on the mean of w_i - w_t, c += 1/N sum over the cohort of
(c_i+ - c_i), N being the population. Twice FedAvg's payload each way.
"""

import dataclasses

import jax.numpy as jnp
import optax

from fedlite.errors import UserError
from fedlite.methods.algebra import Method, Update
from fedlite.methods.registry import register
from fedlite.models.normalization import is_statistic
from fedlite.wire import Part


@register("scaffold")
@dataclasses.dataclass(frozen=True)
class Scaffold(Method):
    """Control variates for the parameters that are trained.

    Stands to the right of partial training, and to the left of codecs and of methods that shrink
    shapes. A variate's step comes from the update as the server decodes it, so that both ends
    agree; it travels in the update's own code, of which it is an affine function. Entries that a
    client did not send keep their variates. Option II reads the mean gradient off plain SGD steps:
    with local momentum or weight decay it is an approximation.

    Attributes:
      population: number of clients, N.
      local_validation: of the clients; must be 0, since the steps that made the update are then
        not those that are counted.
    """

    population: int
    local_validation: float

    def __post_init__(self):
        if self.local_validation:
            raise UserError(
                "scaffold needs every local step in the update: set local_validation = 0"
            )

    def init(self, key, view):
        """c = 0, by path; what follows no gradient has none."""
        return {
            path: jnp.zeros_like(part.value)
            for path, part in view.trained.items()
            if not is_statistic(path)
        }

    def init_client(self, key, view):
        """c_i = 0, by path."""
        return self.init(key, view)

    def select(self, state, mine, keys, view):
        """Sends c; the client subtracts the c_i that it kept."""
        correct = {f"correct:{path}": Part(c - mine[path]) for path, c in state.items()}
        return view._replace(read={**view.read, **correct}), (state, mine)

    def client_optimizer(self, view, optimizer):
        """Adds c - c_i to the gradient, before whatever the optimiser does."""

        def correct(gradients, params):
            return {
                path: g if is_statistic(path) else g + view.read[f"correct:{path}"].value
                for path, g in gradients.items()
            }

        return optax.chain(optax.stateless(correct), optimizer)

    def deselect(self, context, update, report):
        """Adds the steps of the variates, each client counting the same in their sum."""
        state, mine = context
        steps = {}
        for path, part in update.parts.items():
            if path in state:
                step = -state[path] - part.value / jnp.maximum(report.lr_sum, 1e-30)
                steps[path] = jnp.where(jnp.asarray(part.sent) > 0, step, 0)
        each = 1 / jnp.maximum(update.weight, 1e-30)
        control = {
            # What the update's header tells is told once.
            f"control:{path}": update.parts[path]._replace(
                value=step, cover=each, header=(), told=True
            )
            for path, step in steps.items()
        }
        new = {path: mine[path] + steps.get(path, 0) for path in mine}
        return Update({**update.parts, **control}, update.weight), new

    def combine(self, state, key, sums, report):
        """Divides the sum of the variates' steps by the population instead of the cohort."""
        claim = {
            path: jnp.full_like(value, self.population) if path.startswith("control:") else value
            for path, value in sums.claim.items()
        }
        return sums._replace(claim=claim)

    def revise(self, state, key, params, aggregate, report):
        """c += the aggregated step, so that c stays the mean of all clients' c_i."""
        return {path: c + aggregate.get(f"control:{path}", 0) for path, c in state.items()}
