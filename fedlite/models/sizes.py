"""Sizes of sub-models: exact parameter counts by the units kept, and kept counts for a size."""

import math
from collections.abc import Callable, Mapping, Sequence

from fedlite.errors import UserError
from fedlite.models.units import Shape, UnitAxes

# Halvings of a float interval until it is as small as floats tell apart.
_HALVINGS = 100


def kept_units(total: int, rate: float) -> int:
    """round((1 - rate) total), at least 1: the units that federated dropout keeps of a width."""
    return max(1, round(total * (1 - rate)))


def parameters(axes: UnitAxes, shapes: Mapping[str, Shape], kept: Mapping[str, int]) -> int:
    """Parameters of the sub-model that keeps so many units.

    Args:
      axes: the model's.
      shapes: of the full model's parameters by path.
      kept: units by width; a width that is left out is kept whole.
    """
    total = 0
    for path, shape in shapes.items():
        lengths = [
            kept[axis.width] * axis.size if axis and axis.width in kept else length
            for axis, length in zip(axes.of(path), shape, strict=True)
        ]
        total += math.prod(lengths)
    return total


def solve(
    counts: Callable[[float], dict[str, int]],
    size: Callable[[Mapping[str, int]], int],
    target: int,
    bounds: tuple[float, float],
    order: Sequence[str] = (),
) -> dict[str, int]:
    """Kept counts along a path of shrinking sub-models: the largest that fits.

    The path is bisected; where several counts fall at the same point of it, they fall one unit at
    a time, width by width. So the size is at most the target, and misses it by less than one unit.

    Args:
      counts: units by width at a point of the path; none grows along it.
      size: parameters of the sub-model with such counts.
      target: parameters that it may have.
      bounds: first and last point of the path.
      order: widths in the order in which they fall; the others follow by name.

    Raises:
      UserError: even at the last point the sub-model is larger.
    """
    low, high = bounds
    large, small = counts(low), counts(high)
    if size(large) <= target:
        return large
    if size(small) > target:
        raise UserError(
            f"no sub-model has at most {target} parameters: the smallest has {size(small)}; ask "
            "for a lower rate or sparsity"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        at = counts(middle)
        if size(at) <= target:
            high, small = middle, at
        else:
            low, large = middle, at
    found = dict(large)
    for width in (*order, *sorted(set(found) - set(order))):
        while found[width] > small[width] and size(found) > target:
            found[width] -= 1
    return found
