"""Evaluation of the server's model: over all examples, and client by client."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedlite.data.federated import Split
from fedlite.tasks import Evaluation, Task


class Evaluator:
    """Scores a split in batches; compiled once."""

    def __init__(self, task: Task, split: Split, batch_size: int = 0):
        """`batch_size` 0 is the task's `evaluation_batch`."""
        self._task = task
        self._split = split
        self._batch = min(batch_size or task.evaluation_batch, split.num_examples)
        self._score = jax.jit(functools.partial(_score, task))

    def __call__(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The metrics of `evaluate`."""
        return self.evaluate(params).metrics

    def evaluate(self, params: Mapping[str, Any], last: bool = False) -> Evaluation:
        """What the task reports of the model with `params`; see `Task.report`."""
        pieces = []
        for begin in range(0, self._split.num_examples, self._batch):
            batch = {k: a[begin : begin + self._batch] for k, a in self._split.arrays.items()}
            missing = self._batch - len(batch["x"])
            if missing:
                # Padding keeps one compiled shape; its outputs are cut off again.
                batch = {
                    k: np.concatenate([a, np.repeat(a[:1], missing, 0)]) for k, a in batch.items()
                }
            real = self._batch - missing
            mask = (np.arange(self._batch) < real).astype(np.float32)
            outputs = self._score(params, {k: np.asarray(a) for k, a in batch.items()}, mask)
            pieces.append(jax.tree.map(lambda a, real=real: np.asarray(a)[:real], outputs))
        whole = jax.tree.map(lambda *arrays: np.concatenate(arrays), *pieces)
        return self._task.report(whole, self._split, last)


def _score(task: Task, params, batch, mask):
    return task.predict(params, batch, mask)
