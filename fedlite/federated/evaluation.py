"""Evaluation of the server's model: over all examples, and client by client."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedlite.data.federated import Split
from fedlite.tasks import Task

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class Evaluator:
    """Scores a split in batches; compiled once."""

    def __init__(self, task: Task, split: Split, batch_size: int = 250):
        self._task = task
        self._split = split
        self._batch = min(batch_size, split.num_examples)
        self._score = jax.jit(functools.partial(_score, task))

    def __call__(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics of the model with `params`.

        Returns:
          "loss" and "accuracy" over all examples (over tokens for a language model),
          "examples", and where the split has several clients "client_accuracy": the mean and
          quantiles of the accuracies of its clients.
        """
        pieces = []
        for begin in range(0, self._split.num_examples, self._batch):
            batch = {k: a[begin : begin + self._batch] for k, a in self._split.arrays.items()}
            missing = self._batch - len(batch["x"])
            if missing:
                # Padding keeps one compiled shape; its scores are cut off again.
                batch = {
                    k: np.concatenate([a, np.repeat(a[:1], missing, 0)]) for k, a in batch.items()
                }
            mask = (np.arange(self._batch) < self._batch - missing).astype(np.float32)
            scores = self._score(params, {k: np.asarray(a) for k, a in batch.items()}, mask)
            pieces.append(np.asarray(scores)[:, : self._batch - missing])
        loss, loss_weight, correct, correct_weight = np.concatenate(pieces, axis=1).astype(float)
        metrics = {
            "loss": float(loss.sum() / max(loss_weight.sum(), 1)),
            "accuracy": float(correct.sum() / max(correct_weight.sum(), 1)),
            "examples": self._split.num_examples,
        }
        if self._split.num_clients > 1:
            metrics["client_accuracy"] = self._by_client(correct, correct_weight)
        return metrics

    def _by_client(self, correct, weight) -> dict[str, float]:
        offsets = self._split.offsets
        sums = [np.concatenate([[0.0], np.cumsum(a)]) for a in (correct, weight)]
        right, counted = (total[offsets[1:]] - total[offsets[:-1]] for total in sums)
        return across_clients(right[counted > 0] / counted[counted > 0])


def across_clients(values: np.ndarray) -> dict[str, float]:
    """How a number is spread over clients.

    Args:
      values: one a client, such as accuracies.

    Returns:
      "mean", "worst_decile" (the mean over the tenth of the clients, rounded up, with the least
      values), and the quantiles "q00" to "q100".
    """
    if not len(values):
        return {"mean": 0.0, "worst_decile": 0.0}
    ordered = np.sort(values)
    quantiles = {f"q{round(100 * q):02d}": float(np.quantile(ordered, q)) for q in QUANTILES}
    worst = ordered[: -(-len(ordered) // 10)]
    return {"mean": float(ordered.mean()), "worst_decile": float(worst.mean()), **quantiles}


def _score(task: Task, params, batch, mask):
    return jnp.stack(task.evaluate(params, batch, mask))
