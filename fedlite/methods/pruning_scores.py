"""How much a unit matters, and how many units each width keeps: the scores of federated pruning.

Scores by weight and adaptive sparsity: Lin et al. 2022 (arXiv 2209.06359). Which formulas they use
is not known; these are papers.md 3.2. The group G of a unit is every kernel entry that leaves the
model with it: its column of the layer that makes it and its rows of the layers that read it. Biases
and norms go with their unit and do not count in its score.
"""

import fractions
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedlite.models.sizes import parameters, solve
from fedlite.models.units import Shape, UnitAxes

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
        if kind in ("weight_l2", "update"):
            total = jnp.sqrt(total)
        elif kind == "taylor":
            total = jnp.abs(total)
        scores[width] = total / max(size, 1) ** 0.5
    return scores


def random_scores(key, widths: Mapping[str, int]) -> dict[str, Any]:
    """Uniform draws from [0, 1): float32 [units] by width."""
    keys = jax.random.split(key, len(widths))
    return {w: jax.random.uniform(own, (n,)) for (w, n), own in zip(widths.items(), keys)}


def _entries(kind: str, value, average):
    """What is summed over a group, entry by entry."""
    return {
        "weight_l1": lambda: jnp.abs(value),
        "weight_l2": lambda: jnp.square(value),
        "update": lambda: jnp.square(average),
        "taylor": lambda: value * average,
        "movement": lambda: value * average,
    }[kind]()


def pruned_size(
    axes: UnitAxes, shapes: Mapping[str, Shape], widths: Collection[str], sparsity: float
) -> int:
    """Parameters that are left, at most, when a share of the prunable ones is gone.

    Args:
      axes: the model's.
      shapes: of its parameters by path.
      widths: that may be pruned; the arrays that have one of them are prunable.
      sparsity: the share.
    """
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    prunable = [p for p in sizes if any(a and a.width in widths for a in axes.of(p))]
    # Exact in decimals.
    gone = fractions.Fraction(str(sparsity)) * sum(sizes[path] for path in prunable)
    return sum(sizes.values()) - math.ceil(gone)


def uniform_counts(
    axes: UnitAxes,
    shapes: Mapping[str, Shape],
    widths: Mapping[str, int],
    target: int,
) -> dict[str, int]:
    """Kept units where every width loses the same share of its units.

    Args:
      axes: the model's.
      shapes: of its parameters by path.
      widths: prunable units by width.
      target: parameters of the whole sub-model; it has at most so many, and less than one unit's
        fewer.

    Raises:
      UserError: the target is too small.
    """

    def counts(share: float) -> dict[str, int]:
        return {w: max(1, round(units * (1 - share))) for w, units in widths.items()}

    return solve(counts, lambda kept: parameters(axes, shapes, kept), target, (0.0, 1.0))


def adaptive_counts(
    axes: UnitAxes,
    shapes: Mapping[str, Shape],
    scores: Mapping[str, np.ndarray],
    least: Mapping[str, int],
    target: int,
) -> dict[str, int]:
    """Kept units where one threshold on score / mean score of the width parts all units.

    Args:
      axes: the model's.
      shapes: of its parameters by path.
      scores: at least 0, [units] by prunable width.
      least: units that a width keeps whatever the threshold.
      target: as `uniform_counts`.

    Raises:
      UserError: the target is too small.
    """
    # A unit that is gone for good has the score -inf.
    scores = {w: np.maximum(np.asarray(s, np.float64), 0) for w, s in scores.items()}
    relative = {w: s / max(float(np.mean(s)), 1e-30) for w, s in scores.items()}
    top = max(float(np.max(s)) for s in relative.values())

    def counts(threshold: float) -> dict[str, int]:
        return {w: max(least[w], int(np.sum(s > threshold))) for w, s in relative.items()}

    # From below 0, so that units without any score are kept where there is room.
    return solve(counts, lambda kept: parameters(axes, shapes, kept), target, (-1.0, top))
