"""The groups that federated pruning removes whole: units of a width, or parts of a kernel.

Either kind names its groups ("names"), counts them (`totals`), scores them, and says which entries
of the parameters they are. Patterns are those of Lin et al. 2022 (arXiv 2209.06359), see
`fedlite.models.compact`.
"""

import dataclasses
import fractions
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedlite.errors import UserError
from fedlite.methods.patterns import check_rules, first_match
from fedlite.methods.pruning_scores import (
    adaptive_counts,
    group_scores,
    uniform_counts,
    unit_scores,
)
from fedlite.methods.submodel import width_names
from fedlite.models import compact
from fedlite.models.sizes import parameters

Rules = tuple[tuple[str, bool], ...]
PATTERNS = ("unit", *compact.PATTERNS, "unstructured")
# Layers that give the model's output, and depthwise filters, which have neither rows nor columns.
_WHOLE_LAYERS = (["logits"], ["out_projection"], ["depthwise"])


@dataclasses.dataclass(frozen=True)
class UnitGroups:
    """Units of droppable widths; a name is that of a width.

    Attributes:
      axes: the model's `UnitAxes`.
      shapes: shapes of the parameters by path.
      prunable: rules on widths; see `FederatedPruning`.
    """

    axes: Any
    shapes: Mapping[str, tuple[int, ...]]
    prunable: Rules

    def check(self):
        """Refuses rules that fit no width, or that leave none."""
        check_rules(self.prunable, width_names(self.axes), "federated_pruning.prunable", bool)
        if not self.totals:
            raise UserError("federated_pruning.prunable leaves no width to prune: allow one")

    @property
    def totals(self) -> dict[str, int]:
        """Prunable units by width."""
        totals = self.axes.widths(self.shapes)
        return {w: totals[w] for w in sorted(totals) if first_match(self.prunable, w, False)}

    def target(self, sparsity: float) -> int:
        """What `size` may be, at most, when a share of the prunable parameters is gone.

        The arrays that have a prunable width are prunable.
        """
        sizes = {path: math.prod(shape) for path, shape in self.shapes.items()}
        widths = self.totals
        prunable = [p for p in sizes if any(a and a.width in widths for a in self.axes.of(p))]
        return sum(sizes.values()) - _share(sparsity, sum(sizes[path] for path in prunable))

    def size(self, kept: Mapping[str, int]) -> int:
        """Parameters of the whole sub-model that keeps so many units."""
        return parameters(self.axes, self.shapes, kept)

    def pruned(self, counts: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
        """Those of the kept counts that a mask must hold."""
        totals = self.totals
        return tuple((width, n) for width, n in counts.items() if n < totals[width])

    def scores(self, kind: str, params, average=None) -> dict[str, Any]:
        """float32 [units] by width, see `unit_scores`."""
        return unit_scores(kind, self.axes, self.totals, params, average)

    def ranks(self, scores: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing: units are few, and sorted where they are selected."""
        return {}

    def hit(self, path: str, flags: Mapping[str, Any]):
        """Which entries of a parameter are kept: bool, broadcasts against it.

        Args:
          path: of the parameter.
          flags: which groups are kept, bool by name; names that are left out are kept whole.
        """
        axes = self.axes.of(path)
        hit = jnp.ones((1,) * len(axes), bool)
        for dimension, axis in enumerate(axes):
            if axis and axis.width in flags:
                entries = jnp.repeat(flags[axis.width], axis.size)
                hit &= entries.reshape([-1 if d == dimension else 1 for d in range(len(axes))])
        return hit


@dataclasses.dataclass(frozen=True)
class KernelGroups:
    """Groups inside each prunable kernel by itself; a name is "PATH#PART".

    Attributes:
      pattern: "column", "row", "half_column", "half_row", or "unstructured": every entry by itself.
      shapes: shapes of the parameters by path.
      prunable: rules on the paths of kernels; see `FederatedPruning`.
    """

    pattern: str
    shapes: Mapping[str, tuple[int, ...]]
    prunable: Rules

    def check(self):
        """Refuses rules that fit no kernel, or that leave none."""
        check_rules(self.prunable, self._kernels(), "federated_pruning.prunable", bool)
        if not self.matrices:
            raise UserError("federated_pruning.prunable leaves no kernel to prune: allow one")

    def _kernels(self) -> list[str]:
        return [
            path
            for path, shape in sorted(self.shapes.items())
            if path.split("/")[-1] == "kernel"
            and len(shape) > 1
            and path.split("/")[-2:-1] not in _WHOLE_LAYERS
        ]

    @functools.cached_property
    def matrices(self) -> dict[str, compact.Matrix]:
        """(lead, in, out) of the prunable kernels by path."""
        matrices = {}
        for path in self._kernels():
            if first_match(self.prunable, path, False):
                outputs = len(self.shapes.get(_bias(path), (1,)))
                matrices[path] = compact.matrix_shape(self.shapes[path], outputs)
        return matrices

    @functools.cached_property
    def _parts(self) -> dict[str, dict[str, tuple[compact.Matrix, int]]]:
        """(lead, in, out) and groups of each part by name, by the path of the kernel."""
        found = {}
        for path, matrix in self.matrices.items():
            if self.pattern == "unstructured":
                found[path] = {f"{path}#0": (matrix, math.prod(matrix))}
                continue
            axis, found[path] = compact.PATTERNS[self.pattern].axis, {}
            for number, (begin, end) in enumerate(compact.spans(self.pattern, matrix)):
                sides = {axis: matrix[axis], 3 - axis: end - begin}
                part = (matrix[0], sides[1], sides[2])
                found[path][f"{path}#{number}"] = part, matrix[axis]
        return found

    @functools.cached_property
    def totals(self) -> dict[str, int]:
        """Groups by name."""
        parts = self._parts.values()
        return {name: groups for own in parts for name, (_, groups) in own.items()}

    @functools.cached_property
    def _entries(self) -> dict[str, int]:
        """Entries of a group by name."""
        parts = self._parts.values()
        return {n: math.prod(part) // groups for own in parts for n, (part, groups) in own.items()}

    def target(self, sparsity: float) -> int:
        """What `size` may be, at most, when a share of the prunable kernels' entries is gone."""
        entries = sum(math.prod(matrix) for matrix in self.matrices.values())
        return entries - _share(sparsity, entries)

    def size(self, kept: Mapping[str, int]) -> int:
        """Entries of prunable kernels that are left where so many groups are kept."""
        return sum(entries * kept[name] for name, entries in self._entries.items())

    def pruned(self, counts: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
        """Those of the kept counts that a mask must hold: of every part of a kernel that loses."""
        found = []
        for parts in self._parts.values():
            if any(counts[name] < groups for name, (_, groups) in parts.items()):
                found += [(name, counts[name]) for name in parts]
        return tuple(found)

    def scores(self, kind: str, params, average=None) -> dict[str, Any]:
        """float32 [groups] by name; the formulas are those of `unit_scores`."""
        scores = {}
        for path in self.matrices:
            values = self._by_group(path, params[path])
            changes = self._by_group(path, average[path]) if average else {}
            for name, value in values.items():
                scores[name] = group_scores(kind, value, changes.get(name))
        return scores

    def ranks(self, scores: Mapping[str, Any]) -> dict[str, Any]:
        """Of single entries, int32 by name: 0 for the best; equal scores in their order."""
        if self.pattern != "unstructured":
            return {}
        order = {name: jnp.argsort(-score, stable=True) for name, score in scores.items()}
        return {name: jnp.argsort(own).astype(jnp.int32) for name, own in order.items()}

    def _by_group(self, path: str, value) -> dict[str, Any]:
        """The entries of a kernel's groups, [groups, entries], by name."""
        if self.pattern == "unstructured":
            return {f"{path}#0": value.reshape(-1, 1)}
        axis, matrix = compact.PATTERNS[self.pattern].axis, self.matrices[path]
        spans = compact.spans(self.pattern, matrix)
        value, found = value.reshape(matrix), {}
        for name, (begin, end) in zip(self._parts[path], spans, strict=True):
            part = jax.lax.slice_in_dim(value, begin, end, axis=3 - axis)
            found[name] = jnp.moveaxis(part, axis, 0).reshape(matrix[axis], -1)
        return found

    def hit(self, path: str, flags: Mapping[str, Any]):
        """As `UnitGroups.hit`; of the column's bias, too, which goes with it."""
        shape = self.shapes[path]
        whole = jnp.ones((1,) * len(shape), bool)
        if path in self.matrices and f"{path}#0" in flags:
            if self.pattern == "unstructured":
                return flags[f"{path}#0"].reshape(shape)
            axis = compact.PATTERNS[self.pattern].axis
            pieces = [
                jnp.broadcast_to(flags[name].reshape([1, -1, 1] if axis == 1 else [1, 1, -1]), part)
                for name, (part, _) in self._parts[path].items()
            ]
            return jnp.concatenate(pieces, axis=3 - axis).reshape(shape)
        kernel = self.owner(path)
        return flags[f"{kernel}#0"].reshape(shape) if f"{kernel}#0" in flags else whole

    def owner(self, path: str) -> str:
        """The kernel whose columns take the entries of the bias at `path` along; "" for none."""
        kernel = f"{path.removesuffix('bias')}kernel"
        own = self.pattern == "column" and path.split("/")[-1] == "bias"
        return kernel if own and kernel in self.matrices else ""


Groups = UnitGroups | KernelGroups


def make_groups(pattern: str, axes, shapes, prunable: Rules) -> Groups:
    """The groups of one of `PATTERNS`."""
    if pattern == "unit":
        return UnitGroups(axes, shapes, prunable)
    return KernelGroups(pattern, shapes, prunable)


def kept_counts(
    groups: Groups,
    sparsity: float,
    allocation: str,
    least_share: float,
    scores: Mapping[str, Any],
) -> dict[str, int]:
    """Kept groups by name, on the host.

    Args:
      groups: that may be pruned.
      sparsity: share of what is prunable that goes; see `target` of the groups.
      allocation: "uniform" does not look at the scores, "adaptive" does.
      least_share: of the groups of a name that "adaptive" leaves in any case.
      scores: [groups] by name.

    Raises:
      UserError: so sparse a model would lose all groups of a name.
    """
    totals, target = groups.totals, groups.target(sparsity)
    if allocation == "uniform":
        return uniform_counts(totals, groups.size, target)
    least = {name: max(1, math.ceil(least_share * n)) for name, n in totals.items()}
    return adaptive_counts(scores, least, groups.size, target)


def _bias(path: str) -> str:
    return f"{path.removesuffix('kernel')}bias"


def _share(sparsity: float, size: int) -> int:
    # Exact in decimals.
    return math.ceil(fractions.Fraction(str(sparsity)) * size)
