"""How much a group matters, and how many groups are kept where: the scores of federated pruning.

Scores by weight and adaptive sparsity: Lin et al. 2022 (arXiv 2209.06359). Which formulas they use
is not known; these are papers.md 3.2. The group G of a unit is every kernel entry that leaves the
model with it: its column of the layer that makes it and its rows of the layers that read it.
Vectors (norms, most biases) go with their unit and do not count in its score; a bias of several
axes, such as an attention's [heads, head_size], does.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedlite.models.sizes import solve
from fedlite.models.units import UnitAxes

SCORES = ("weight_l1", "weight_l2", "update", "taylor", "movement", "random")
# Those that need the server's aggregate.
BY_UPDATE = ("update", "taylor", "movement")


def unit_scores(
    kind: str, axes: UnitAxes, widths: Mapping[str, int], params, average=None
) -> dict[str, Any]:
    """The score of every unit; greater is more important.

    With w the parameters and u the average aggregate, both of the group G,

        weight_l1  |w|_1 / sqrt(|G|)            taylor    |sum w u| / sqrt(|G|)
        weight_l2  |w|_2 / sqrt(|G|)            movement  sum w u / sqrt(|G|)
        update     |u|_2 / sqrt(|G|)

    An aggregate is a change, the negative of a gradient: movement is great where training makes
    weights greater.

    Args:
      kind: one of `SCORES` but "random".
      axes: the model's.
      widths: units by width.
      params: arrays by path.
      average: arrays by path, like `params`; for the kinds in `BY_UPDATE`.

    Returns:
      float32 [units] by width.
    """
    scores = {}
    for width, units in widths.items():
        total, size = jnp.zeros(units), 0
        for path, value in params.items():
            for dimension, axis in enumerate(axes.of(path) if jnp.ndim(value) > 1 else ()):
                if axis and axis.width == width:
                    entries = _entries(kind, value, average[path] if average else None)
                    total += jnp.moveaxis(entries, dimension, 0).reshape(units, -1).sum(1)
                    size += value.size // units
        scores[width] = _score(kind, total, size)
    return scores


def group_scores(kind: str, value, average=None):
    """The scores of groups that lie side by side, as those of `unit_scores`.

    Args:
      kind: as of `unit_scores`.
      value: the parameters, [groups, entries].
      average: like `value`.

    Returns:
      float32 [groups].
    """
    return _score(kind, _entries(kind, value, average).sum(1), value.shape[1])


def _score(kind: str, total, size: int):
    if kind in ("weight_l2", "update"):
        total = jnp.sqrt(total)
    elif kind == "taylor":
        total = jnp.abs(total)
    return total / max(size, 1) ** 0.5


def random_scores(key, totals: Mapping[str, int]) -> dict[str, Any]:
    """Uniform draws from [0, 1): float32 [groups] by name."""
    keys = jax.random.split(key, len(totals))
    return {name: jax.random.uniform(own, (n,)) for (name, n), own in zip(totals.items(), keys)}


def _entries(kind: str, value, average):
    """What is summed over a group, entry by entry."""
    return {
        "weight_l1": lambda: jnp.abs(value),
        "weight_l2": lambda: jnp.square(value),
        "update": lambda: jnp.square(average),
        "taylor": lambda: value * average,
        "movement": lambda: value * average,
    }[kind]()


def uniform_counts(
    totals: Mapping[str, int], size: Callable[[Mapping[str, int]], int], target: int
) -> dict[str, int]:
    """Kept groups where every name loses the same share of its own.

    Args:
      totals: groups by name: units by width, or columns (rows, ...) by part of a kernel.
      size: parameters that are left where so many groups are kept.
      target: what the size may be; it is less than one group's fewer.

    Raises:
      UserError: the target is too small.
    """

    def counts(share: float) -> dict[str, int]:
        return {name: max(1, round(groups * (1 - share))) for name, groups in totals.items()}

    return solve(counts, size, target, (0.0, 1.0))


def adaptive_counts(
    scores: Mapping[str, np.ndarray],
    least: Mapping[str, int],
    size: Callable[[Mapping[str, int]], int],
    target: int,
) -> dict[str, int]:
    """Kept groups where one threshold on score / mean score of the name parts all groups.

    Args:
      scores: at least 0, or -inf for a group that is gone for good, [groups] by name.
      least: groups that a name keeps whatever the threshold.
      size, target: as of `uniform_counts`.

    Raises:
      UserError: the target is too small.
    """
    # A group that is gone for good has the score -inf, and is not kept where there is room either.
    alive = {n: int(np.sum(np.asarray(s) > -np.inf)) for n, s in scores.items()}
    scores = {n: np.maximum(np.asarray(s, np.float64), 0) for n, s in scores.items()}
    relative = {n: s / max(float(np.mean(s)), 1e-30) for n, s in scores.items()}
    top = max(float(np.max(s)) for s in relative.values())

    def counts(threshold: float) -> dict[str, int]:
        above = {n: int(np.sum(s > threshold)) for n, s in relative.items()}
        return {n: min(alive[n], max(least[n], above[n])) for n in above}

    # From below 0, so that groups without any score are kept where there is room.
    return solve(counts, size, target, (-1.0, top))
