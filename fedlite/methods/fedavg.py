"""FedAvg: the whole model down, local epochs of SGD, the whole update up.

McMahan et al. 2017 (arXiv 1602.05629), algorithm 1. It is the identity of the algebra. With
another server optimiser it is FedAvgM, FedAdam, FedYogi or FedAdagrad (Reddi et al. 2021,
arXiv 2003.00295).
"""

import dataclasses

from fedlite.methods.algebra import Method
from fedlite.methods.registry import register


@register("fedavg")
@dataclasses.dataclass(frozen=True)
class FedAvg(Method):
    """The defaults of `Method`."""
