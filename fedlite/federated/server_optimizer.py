"""The server's optimiser over the aggregate, as a gradient -sum p_i delta_i.

FedAvg, FedAvgM, FedAdagrad, FedAdam and FedYogi: Reddi et al. 2021 (arXiv 2003.00295),
algorithm 2. optax's Adam and Yogi correct the bias of their moments, as Keras does; the
paper's do not.
"""

import optax

from fedlite.errors import UserError
from fedlite.federated import statistics

NAMES = ("sgd", "momentum", "adagrad", "adam", "yogi")


def server_optimizer(
    name: str = "sgd",
    *,
    learning_rate: float = 1.0,
    momentum: float = 0.9,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-3,
) -> optax.GradientTransformation:
    """An optax optimiser by name; running statistics of norms are averaged, whatever it is.

    Args:
      name: "sgd" (FedAvg), "momentum" (FedAvgM), "adagrad", "adam" or "yogi".
      learning_rate: the server's.
      momentum: of "momentum".
      b1, b2: decay of the moments of "adam" and "yogi".
      eps: the adaptivity tau of "adagrad", "adam" and "yogi".
    """
    if not learning_rate > 0:
        raise UserError(f"server_optimizer.learning_rate must be above 0, not {learning_rate}")
    makers = {
        "sgd": lambda: optax.sgd(learning_rate),
        "momentum": lambda: optax.sgd(learning_rate, momentum),
        "adagrad": lambda: optax.adagrad(learning_rate, initial_accumulator_value=0.0, eps=eps),
        "adam": lambda: optax.adam(learning_rate, b1, b2, eps),
        "yogi": lambda: optax.yogi(learning_rate, b1, b2, eps),
    }
    if name not in makers:
        raise UserError(f"server_optimizer.name must be one of {', '.join(NAMES)}, not {name!r}")
    return statistics.apart(makers[name]())
