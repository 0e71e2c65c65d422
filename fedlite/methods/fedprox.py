"""FedProx: a proximal term holds local training near the broadcast model.

Li et al. 2020 (arXiv 1812.06127), equation 2: clients minimise f_i(w) + mu/2 ||w - w_t||^2,
over the parameters that they train.
"""

import dataclasses

import optax

from fedlite.errors import UserError
from fedlite.methods.algebra import Method
from fedlite.methods.registry import register
from fedlite.models.normalization import is_statistic


@register("fedprox")
@dataclasses.dataclass(frozen=True)
class FedProx(Method):
    """Adds mu (w - w_t) to every gradient of a local step; mu = 0 is FedAvg."""

    mu: float = 0.01

    def __post_init__(self):
        if self.mu < 0:
            raise UserError(f"fedprox.mu must be at least 0, not {self.mu}")

    def client_optimizer(self, view, optimizer):
        """The term's gradient, before whatever the optimiser does."""
        if self.mu == 0:
            return optimizer
        anchor = {path: part.value for path, part in view.trained.items()}

        def pull(gradients, params):
            return {
                path: g if is_statistic(path) else g + self.mu * (params[path] - anchor[path])
                for path, g in gradients.items()
            }

        return optax.chain(optax.stateless(pull), optimizer)
