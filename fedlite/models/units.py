"""Which array axes belong to which droppable width, derived from shapes alone.

A model takes its widths as data (`model.widths`: name -> number of units). Parameter shapes
are traced once, and once more with larger widths: the axes that grew belong to a width, and how
much they grew says to which. Nothing is annotated, so a new model or adapter needs no table of its
own.

Parameters are flat dicts from path ("conv1/kernel") to array throughout fedlite.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict

from fedlite.models import compact

Shape = tuple[int, ...]


class UnitAxis(NamedTuple):
    """An axis that holds the units of a width.

    Attributes:
      width: name of the width.
      size: consecutive entries that one unit occupies.
    """

    width: str
    size: int


@dataclasses.dataclass(frozen=True)
class UnitAxes:
    """The unit axes of every parameter of a model.

    Attributes:
      table: path -> for each axis the width whose units it holds, or None.
    """

    table: FrozenDict[str, tuple[UnitAxis | None, ...]]

    def of(self, name: str) -> tuple[UnitAxis | None, ...]:
        """The axes of a parameter, or of a "tag:path" array that is shaped as one.

        Raises:
          KeyError: the model has no such parameter.
        """
        path = name.rpartition(":")[2]
        if path not in self.table:
            raise KeyError(f"{name!r} is no parameter; the model has {', '.join(self.table)}")
        return self.table[path]

    def widths(self, shapes: Mapping[str, Shape]) -> dict[str, int]:
        """The number of units of every width that the arrays of a (sub-)model carry.

        Args:
          shapes: shapes by path or "tag:path".

        Raises:
          KeyError: an array is no parameter of the model.
          ValueError: an axis has no whole number of units, or two arrays disagree.
        """
        found = {}
        for name, shape in shapes.items():
            axes = self.of(name)
            if len(shape) != len(axes):
                raise ValueError(f"{name!r} has {len(shape)} axes where the model has {len(axes)}")
            for axis, length in zip(axes, shape):
                if axis is None:
                    continue
                units, rest = divmod(length, axis.size)
                if rest:
                    raise ValueError(
                        f"{name!r}: {length} entries are no whole units of {axis.size}"
                    )
                if found.setdefault(axis.width, units) != units:
                    raise ValueError(
                        f"{name!r} has {units} units of {axis.width!r}, other arrays "
                        f"{found[axis.width]}"
                    )
        return found

    def input_axes(self, name: str) -> tuple[int, ...]:
        """The axes along which a kernel reads droppable units.

        A sub-model that rescales for dropped units (by 1 / (1 - rate)) multiplies these
        kernels, once for each such axis; zeroing their entries silences a unit. The
        trailing axes that a kernel shares with the bias beside it (without a bias: the last
        axis) are its outputs, all others its inputs. Arrays of another name than "kernel" read
        no units.

        Raises:
          KeyError: the model has no such parameter.
        """
        axes = self.of(name)
        prefix, _, leaf = name.rpartition(":")[2].rpartition("/")
        if leaf != "kernel":
            return ()
        bias = self.table.get(f"{prefix}/bias" if prefix else "bias", (None,))
        inputs = axes[: len(axes) - len(bias)]
        return tuple(i for i, axis in enumerate(inputs) if axis is not None)


def param_shapes(model: nn.Module, example: jax.Array | jax.ShapeDtypeStruct) -> dict[str, Shape]:
    """Shapes of the model's parameters by path, without computing anything.

    Args:
      model: a module with `widths`.
      example: a batch as the model reads it, or its shape and type.

    Raises:
      ValueError: the model has state besides its parameters.
    """
    return dict(_param_shapes(model, jax.ShapeDtypeStruct(example.shape, example.dtype)))


# Models are equal by value, and traces of deep ones take seconds.
@functools.lru_cache(maxsize=32)
def _param_shapes(model: nn.Module, example: jax.ShapeDtypeStruct) -> dict[str, Shape]:
    variables = jax.eval_shape(model.init, jax.random.key(0), example)
    if set(variables) != {"params"}:
        raise ValueError(f"a model must have parameters alone, got {', '.join(variables)}")
    return {k: v.shape for k, v in flatten_dict(variables["params"], sep="/").items()}


def init_params(
    model: nn.Module, key: jax.Array, example: jax.Array | jax.ShapeDtypeStruct
) -> dict[str, jax.Array]:
    """Fresh parameters by path; the same key gives the same bits on the same backend.

    Each array is drawn from the key and its own path, so another array more or less in the
    model changes no other.
    """
    shape, dtype = example.shape, example.dtype
    variables = jax.jit(lambda key: model.init(key, jnp.zeros(shape, dtype)))(key)
    return flatten_dict(variables["params"], sep="/")


def apply(model: nn.Module, params: Mapping[str, jax.Array], x: jax.Array, **kwargs) -> jax.Array:
    """The model's output on a batch.

    Args:
      model: a module with the widths of `params`.
      params: arrays by path, and the indices of compact kernels (`fedlite.models.compact`).
      x: a batch.
      **kwargs: `train` and, where the model draws at random, `rngs={"dropout": key}`.
    """
    params, indices = compact.split(params)
    with compact.compact_layers(indices):
        return model.apply({"params": unflatten_dict(params, sep="/")}, x, **kwargs)


def unit_axes(model: nn.Module, example: jax.Array | jax.ShapeDtypeStruct) -> UnitAxes:
    """Derives the unit axes of a model.

    Shapes cannot tell in which order the entries of a flattened axis lie, so a model must not
    flatten space and channels into one: `nn.DenseGeneral` contracts them as axes of their own.

    Args:
      model: a module whose field `widths` names its droppable widths.
      example: a batch as the model reads it, or its shape and type.

    Raises:
      ValueError: a width changes no axis, changes which parameters there are, shares an axis
        with another width, or owns an axis whose length is not units x size. Such a width cannot
        be dropped by taking entries along axes.
    """
    return _unit_axes(model, jax.ShapeDtypeStruct(example.shape, example.dtype))


@functools.lru_cache(maxsize=32)
def _unit_axes(model: nn.Module, example: jax.ShapeDtypeStruct) -> UnitAxes:
    shapes = param_shapes(model, example)
    table = _all_widths_at_once(model, example, shapes)
    if table is None:
        table = _one_width_at_a_time(model, example, shapes)
    return UnitAxes(FrozenDict(table))


def _all_widths_at_once(
    model: nn.Module, example: jax.ShapeDtypeStruct, shapes: Mapping[str, Shape]
) -> dict[str, tuple[UnitAxis | None, ...]] | None:
    """The table of `UnitAxes` from two traces, however many widths there are.

    The k-th width has 1 + k times its units in one trace and 1 + k^2 times in the other, and so
    has an axis that holds its units. Axes that depend on several widths do not grow like that: for
    a sum of widths k is a mean, and the mean of squares exceeds the square of the mean; for a
    product it is the other way, as (1 + a^2)(1 + b^2) < 1 + (a + b + ab)^2.

    Returns:
      None where an axis holds not whole units of one width, or a width has no axis.
    """
    numbered = dict(enumerate(model.widths, 1))
    first, second = (
        param_shapes(
            _resized(model, {w: model.widths[w] * (1 + k**power) for k, w in numbered.items()}),
            example,
        )
        for power in (1, 2)
    )
    if not _ranks(shapes) == _ranks(first) == _ranks(second):
        return None
    table = {}
    for path, shape in shapes.items():
        axes = []
        for length, *grown in zip(shape, first[path], second[path]):
            k = grown[0] // max(length, 1) - 1
            if grown != [length * (1 + k), length * (1 + k * k)]:
                return None
            width = numbered.get(k)
            if k and (width is None or length % model.widths[width]):
                return None
            axes.append(UnitAxis(width, length // model.widths[width]) if k else None)
        table[path] = tuple(axes)
    found = {axis.width for axes in table.values() for axis in axes if axis}
    return table if found == set(model.widths) else None


def _one_width_at_a_time(
    model: nn.Module, example: jax.ShapeDtypeStruct, shapes: Mapping[str, Shape]
) -> dict[str, tuple[UnitAxis | None, ...]]:
    """The table of `UnitAxes` from a trace a width with one unit more; says what is wrong.

    Raises:
      ValueError: see `unit_axes`.
    """
    table = {path: [None] * len(shape) for path, shape in shapes.items()}
    for width, units in model.widths.items():
        grown = param_shapes(_resized(model, {width: units + 1}), example)
        if _ranks(grown) != _ranks(shapes):
            raise ValueError(f"width {width!r} changes which parameters or axes there are")
        if grown == shapes:
            raise ValueError(f"width {width!r} changes no parameter")
        for path, shape in shapes.items():
            for i, (length, new) in enumerate(zip(shape, grown[path])):
                if new == length:
                    continue
                if table[path][i] is not None:
                    raise ValueError(
                        f"axis {i} of {path!r} depends on two widths, {table[path][i].width!r} "
                        f"and {width!r}"
                    )
                if length != units * (new - length):
                    raise ValueError(
                        f"axis {i} of {path!r} has {length} entries, which are not the "
                        f"{units} units of {width!r} with {new - length} each"
                    )
                table[path][i] = UnitAxis(width, new - length)
    return {path: tuple(axes) for path, axes in table.items()}


def _resized(model: nn.Module, widths: Mapping[str, int]) -> nn.Module:
    return model.clone(widths=FrozenDict({**model.widths, **widths}))


def _ranks(shapes: Mapping[str, Shape]) -> dict[str, int]:
    return {path: len(shape) for path, shape in shapes.items()}
