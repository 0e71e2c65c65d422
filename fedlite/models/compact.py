"""Kernels without their pruned groups, and layers that compute with what is left of them.

The patterns of Lin et al. 2022 (arXiv 2209.06359), papers.md 3.2. A kernel is read as the matrix
W [lead, in, out]: `out` are the trailing axes that it shares with its bias (without a bias the
last axis), flattened; `in` is the last of the other axes, `lead` what is before it (the window of
a convolution). A group is

* column: one output unit, W[:, :, j]; its entry of the bias goes with it;
* row: one input unit, W[:, i];
* half_column, half_row: a column or a row cut in two at the middle of the other axis.

The halves of all columns (rows) on one side of the cut are one part of the kernel, and so is the
whole kernel where nothing is cut. What is left of a part is a dense matrix, and a compact kernel is
the parts' entries one after the other, in one flat array. Beside it lie the int32 indices of the
kept groups, a part each, by the name "PATTERN.PART:PATH". A dense layer or a convolution then
gathers its input (rows) or spreads its output (columns): its product is as small as its kernel.
A model's own code does not know about it.
"""

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedlite.errors import UserError
from fedlite.models import layers
from fedlite.models.convolution import conv2d, max_pool


class Form(NamedTuple):
    """How a pattern cuts W [lead, in, out].

    Attributes:
      axis: of the groups: 1 for rows, 2 for columns.
      parts: of the kernel, along the other one of these axes.
    """

    axis: int
    parts: int


PATTERNS = {
    "column": Form(2, 1),
    "row": Form(1, 1),
    "half_column": Form(2, 2),
    "half_row": Form(1, 2),
}
Matrix = tuple[int, int, int]


def matrix_shape(shape: Sequence[int], outputs: int) -> Matrix:
    """(lead, in, out) of a kernel whose last `outputs` axes are its output."""
    inputs = shape[: len(shape) - outputs]
    return math.prod(inputs[:-1]), inputs[-1], math.prod(shape[len(inputs) :])


def spans(pattern: str, shape: Matrix) -> list[tuple[int, int]]:
    """Begin and end of each part along the axis that is cut; of an odd length the first is longer.

    Where that axis has one entry, there is one part.
    """
    form = PATTERNS[pattern]
    length = shape[3 - form.axis]
    cuts = [0, -(-length // 2), length] if min(form.parts, length) == 2 else [0, length]
    return list(itertools.pairwise(cuts))


def index_name(pattern: str, part: int, path: str) -> str:
    """The name of the indices of a part's kept groups."""
    return f"{pattern}.{part}:{path}"


def is_index(name: str) -> bool:
    """Whether an array of this name is the indices of a compact kernel."""
    tag, colon, _ = name.rpartition(":")
    return bool(colon) and tag.partition(".")[0] in PATTERNS


def take(pattern: str, kernel: jax.Array, kept: Sequence[Any]) -> jax.Array:
    """The compact kernel.

    Args:
      pattern: one of `PATTERNS`.
      kernel: [lead, in, out].
      kept: sorted indices of the kept groups, a part each.

    Returns:
      A flat array.
    """
    axis = PATTERNS[pattern].axis
    blocks = []
    for indices, (begin, end) in zip(kept, spans(pattern, kernel.shape), strict=True):
        part = jax.lax.slice_in_dim(kernel, begin, end, axis=3 - axis)
        blocks.append(jnp.take(part, indices, axis=axis, mode="clip").ravel())
    return jnp.concatenate(blocks)


def put(pattern: str, flat: jax.Array, kept: Sequence[Any], shape: Matrix) -> jax.Array:
    """The inverse of `take`: [lead, in, out], with zeros where no group was kept."""
    axis = PATTERNS[pattern].axis
    blocks = _blocks(pattern, flat, [len(indices) for indices in kept], shape)
    parts = [_spread(block, own, shape[axis], axis) for block, own in zip(blocks, kept)]
    return jnp.concatenate(parts, axis=3 - axis)


def split(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's parameters by path, and the indices of compact kernels by name."""
    indices = {name: value for name, value in params.items() if is_index(name)}
    return {path: value for path, value in params.items() if path not in indices}, indices


@contextlib.contextmanager
def compact_layers(indices: Mapping[str, Any]):
    """Within, a model's layers compute with compact kernels where there are indices for them.

    Args:
      indices: by name, see `index_name`; with none a model's layers stay as they are.

    Raises:
      UserError: a kernel does not belong to a dense layer or a convolution.
    """
    if not indices:
        yield
        return
    compact = _CompactLayers(indices)
    token = _ACTIVE.set(compact)
    try:
        with nn.intercept_methods(compact.outside):
            yield
    finally:
        _ACTIVE.reset(token)
    compact.check()


@contextlib.contextmanager
def within_interceptors():
    """Within, compact kernels are computed inside of what intercepts a layer's call by now.

    The interceptor that flax was given last stands next to the layer, so one that came after
    `compact_layers` would not see the layers that are replaced.
    """
    if (compact := _ACTIVE.get()) is None or compact.moved:
        yield
        return
    compact.moved = True
    try:
        with nn.intercept_methods(compact.intercept):
            yield
    finally:
        compact.moved = False


class _CompactLayers:
    """Replaces the calls of layers with compact kernels."""

    def __init__(self, indices: Mapping[str, Any]):
        self._found: dict[str, tuple[str, list]] = {}
        for name, value in sorted(indices.items()):
            tag, _, path = name.rpartition(":")
            self._found.setdefault(path, (tag.partition(".")[0], []))[1].append(value)
        self._seen: set[str] = set()
        self.moved = False

    def outside(self, call, args, kwargs, context):
        """`intercept`, unless it is done further inside."""
        if self.moved:
            return call(*args, **kwargs)
        return self.intercept(call, args, kwargs, context)

    def intercept(self, call, args, kwargs, context):
        """A submodule's call, or the layer's output from the compact kernel."""
        path = "/".join((*context.module.path, "kernel"))
        if context.method_name != "__call__" or path not in self._found:
            return call(*args, **kwargs)
        self._seen.add(path)
        if not isinstance(context.module, layers.Conv | nn.Dense | nn.DenseGeneral):
            raise _unfit(path)
        return _call(context.module, path, *self._found[path], *args, **kwargs)

    def check(self):
        """Refuses kernels that no layer has called for."""
        if missing := sorted(set(self._found) - self._seen):
            raise _unfit(missing[0])


_ACTIVE: contextvars.ContextVar[_CompactLayers | None] = contextvars.ContextVar(
    "compact layers", default=None
)


def _call(
    module: nn.Module, path: str, pattern: str, kept: Sequence[Any], x, *, pooled: bool = True
) -> jax.Array:
    """The layer's output from the compact kernel that it has in place of its own."""
    values = module.variables["params"]
    flat, bias = values["kernel"], values.get("bias")
    pool = 1
    if isinstance(module, layers.Conv):
        pool = module.pool if pooled else 1
        features = (module.features,)
        shape = (math.prod(module.kernel_size), x.shape[-1], module.features)

        def product(x, block):
            return conv2d(
                x,
                block.reshape(*module.kernel_size, *block.shape[1:]),
                strides=module.strides,
                padding=module.padding,
                implementation=module.implementation,
            )

    else:
        features = _tuple(module.features)
        inputs = len(_tuple(getattr(module, "axis", -1)))
        lead = x.shape[x.ndim - inputs : -1]
        shape = (math.prod(lead), x.shape[-1], math.prod(features))
        x = x.reshape(*x.shape[: x.ndim - inputs], *shape[:2])

        def product(x, block):
            axes = (x.ndim - 2, x.ndim - 1), (0, 1)
            return layers.contract(x, block, (axes, ((), ())))

    axis, counts = PATTERNS[pattern].axis, [len(indices) for indices in kept]
    sizes = [
        shape[0] * count * (end - begin)
        for count, (begin, end) in zip(counts, spans(pattern, shape), strict=True)
    ]
    if flat.size != sum(sizes):
        # The layer has another matrix than its kernel's shape tells, as without a bias.
        raise _unfit(path)
    dtype = module.dtype or jnp.result_type(x, flat)
    x, flat = x.astype(dtype), flat.astype(dtype)
    bias = None if bias is None else bias.astype(dtype).ravel()
    pieces = []
    blocks = _blocks(pattern, flat, counts, shape)
    for block, own, (begin, end) in zip(blocks, kept, spans(pattern, shape)):
        if axis == 2:
            piece = product(x[..., begin:end], block)
            if bias is not None and pattern == "column":
                piece = piece + bias
            pieces.append(_spread_output(piece, own, shape[2]))
        else:
            pieces.append(product(_gather_input(x, own, shape[1]), block))
    y = sum(pieces[1:], pieces[0]) if axis == 2 else jnp.concatenate(pieces, axis=-1)
    if bias is not None and pattern != "column":
        y = y + bias
    if pool > 1:
        y = max_pool(y, pool)
    return y.reshape(*y.shape[:-1], *features)


def _blocks(pattern: str, flat, counts: Sequence[int], shape: Matrix) -> list[jax.Array]:
    """What is left of each part: [lead, rows, columns]."""
    axis, blocks, position = PATTERNS[pattern].axis, [], 0
    for count, (begin, end) in zip(counts, spans(pattern, shape), strict=True):
        own = (shape[0], end - begin, count) if axis == 2 else (shape[0], count, end - begin)
        size = math.prod(own)
        blocks.append(flat[position : position + size].reshape(own))
        position += size
    return blocks


def _spread(x, indices, total: int, axis: int):
    # Gathers of the inverse index, not a scatter; see `fedlite.methods.submodel.put`.
    inverse = jnp.zeros(total, jnp.int32).at[indices].set(jnp.arange(len(indices)))
    hit = jnp.zeros(total, bool).at[indices].set(True)
    hit = hit.reshape([-1 if d == axis % x.ndim else 1 for d in range(x.ndim)])
    x = jnp.take(x, inverse, axis=axis, mode="clip")
    return jnp.where(hit, x, jnp.zeros((), x.dtype))


# Each is the other's transpose, so that neither direction scatters.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gather_input(x, indices, total: int):
    return jnp.take(x, indices, axis=-1, mode="clip")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _spread_output(x, indices, total: int):
    return _spread(x, indices, total, -1)


_gather_input.defvjp(
    lambda x, indices, total: (_gather_input(x, indices, total), indices),
    lambda total, indices, dy: (_spread(dy, indices, total, -1), None),
)
_spread_output.defvjp(
    lambda x, indices, total: (_spread_output(x, indices, total), indices),
    lambda total, indices, dy: (jnp.take(dy, indices, axis=-1, mode="clip"), None),
)


def _unfit(path: str) -> UserError:
    return UserError(
        f"federated_pruning.pattern: {path!r} is not the kernel of a dense layer or a convolution "
        "that can leave rows or columns out: keep it whole by federated_pruning.prunable = "
        f"(({path!r}, False), ('.*', True))"
    )


def _tuple(value) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
