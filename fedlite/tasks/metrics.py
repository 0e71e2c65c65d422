"""How a task is judged: its headline metric, and how a number is spread over clients."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclasses.dataclass(frozen=True)
class Metric:
    """The number by which models of a task are compared.

    Attributes:
      name: its key among a task's metrics.
      plural: of the name.
      higher: whether more is better.
    """

    name: str
    plural: str
    higher: bool

    def better(self, new: float, old: float) -> bool:
        """Whether `new` beats `old`; a tie does not."""
        return new > old if self.higher else new < old


class Evaluation(NamedTuple):
    """What a task says of a split.

    Attributes:
      metrics: by name, the task's headline metric and "loss" among them; JSON values.
      clients: counts by client, from which runs are compared client by client; None where the
        task keeps none.
    """

    metrics: dict[str, Any]
    clients: Mapping[str, Mapping[str, int]] | None = None


def across_clients(values: np.ndarray, higher: bool = True) -> dict[str, float]:
    """How a number is spread over clients.

    Args:
      values: one a client, such as accuracies.
      higher: whether more is better.

    Returns:
      "mean", "worst_decile" (the mean over the tenth of the clients, rounded up, with the worst
      values), and the quantiles "q00" to "q100", which rise.
    """
    if not len(values):
        return {"mean": 0.0, "worst_decile": 0.0}
    ordered = np.sort(values)
    quantiles = {f"q{round(100 * q):02d}": float(np.quantile(ordered, q)) for q in QUANTILES}
    tenth = -(-len(ordered) // 10)
    worst = ordered[:tenth] if higher else ordered[-tenth:]
    return {"mean": float(ordered.mean()), "worst_decile": float(worst.mean()), **quantiles}
