"""3x3 convolution by Winograd's algorithm, alone or with the maximum over squares of 2 by 2.

F(4x4, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks"
(arXiv:1509.09308, section 4): a tile of 4x4 outputs from 6x6 inputs for 36 products in place of
144. A tile's entries lie apart, as [entries, n, rows of tiles, columns of tiles, channels], so
that a transform is a product with one small matrix, and what is done to entries is done to long
contiguous arrays.

Why the pooling is in here: a square of 2 by 2 lies within one tile, so the maximum is one of four
whole arrays, and its gradient is born in the order that the backward pass reads. Laid out as
images first, the outputs would be written, pooled with strides of 2, and cut into tiles again: a
training step of the EMNIST CNN, at full and at half widths, would take 8 % longer.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TILE = 4  # Outputs a tile has along each axis.
_READ = TILE + 2  # Inputs that it reads.

# For the interpolation points 0, 1, -1, 2, -2 and infinity, along one axis.
_B = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_A = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
# Of a tile's rows and columns at once.
_INPUT, _KERNEL, _OUTPUT = (np.kron(m, m) for m in (_B, _G, _A))
# The outputs with the position in a square of 2 by 2 first, then the square, each row by row.
_SQUARES = _OUTPUT[np.arange(TILE * TILE).reshape(2, 2, 2, 2).transpose(1, 3, 0, 2).ravel()]


def conv(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    """`convolution.conv2d` of 3x3 windows with stride 1.

    Args:
      x: [n, h, w, c].
      kernel: [3, 3, c, d], of x's type.
      padding: "SAME" or "VALID".

    Returns:
      [n, oh, ow, d]. Reverse mode only.
    """
    x, (h, w) = _whole_tiles(x, padding)
    return _conv(x, kernel)[:, :h, :w]


def conv_max_pool(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    """The maximum over squares of 2 by 2 of `conv`; what fills no square is cut.

    Args:
      x: [n, h, w, c].
      kernel: [3, 3, c, d], of x's type.
      padding: "SAME" or "VALID".

    Returns:
      [n, oh // 2, ow // 2, d]. Of values that are equal as computed, the first, row by row, has
      the gradient. Reverse mode only.
    """
    x, (h, w) = _whole_tiles(x, padding)
    return _conv_max_pool(x, kernel)[:, : h // 2, : w // 2]


def _whole_tiles(x: jax.Array, padding: str) -> tuple[jax.Array, list[int]]:
    """Pads x to whole tiles, and one more whose first two lines the last one reads.

    Returns:
      [n, 4 * h + 4, 4 * w + 4, c], and the height and width of the convolution.
    """
    same = padding == "SAME"
    sizes = [size if same else size - 2 for size in x.shape[1:3]]
    padded = [(math.ceil(size / TILE) + 1) * TILE for size in sizes]
    pads = [(int(same), p - size - int(same)) for p, size in zip(padded, x.shape[1:3])]
    return jnp.pad(x, ((0, 0), *pads, (0, 0))), sizes


def tiles(x: jax.Array, size: int) -> jax.Array:
    """Cuts squares of a side of `size` that begin at every fourth row and column.

    Args:
      x: [n, 4 * h, 4 * w, c].
      size: 4, or 6 for squares that overlap; those have no square at the last h and w.

    Returns:
      [size * size, n, h or h - 1, w or w - 1, c].
    """
    n, h, w, c = x.shape
    overlap = size - TILE
    x = x.reshape(n, h // TILE, TILE, w // TILE, TILE, c)
    h, w = h // TILE - (overlap > 0), w // TILE - (overlap > 0)
    lines = []
    for i in range(size):
        line = x[:, i // TILE : i // TILE + h, i % TILE]
        line = jnp.concatenate([line[:, :, :w], line[:, :, -w:, :overlap]], axis=3)
        lines.append(line.transpose(3, 0, 1, 2, 4))
    # One transpose of all lines would read better, but compiles to a loop of scalar copies.
    return jnp.concatenate(lines)


def untiles(x: jax.Array, size: int) -> jax.Array:
    """The transpose of `tiles`: puts squares in their places, adding where they overlap."""
    x = x.reshape(size, size, *x.shape[1:])
    if size == TILE:
        # Where nothing is added, XLA fuses a transpose with what follows.
        _, _, n, h, w, c = x.shape
        return x.transpose(2, 3, 0, 4, 1, 5).reshape(n, h * TILE, w * TILE, c)
    x = _overlap([x[:, column] for column in range(size)], axis=3)
    return _overlap(list(x), axis=1)


def _overlap(lines: list[jax.Array], axis: int) -> jax.Array:
    """Lays tiles side by side along `axis`: line i of tile k at 4 * k + i, where two may fall."""
    places = [_pad(line, axis, 0, 1) for line in lines[:TILE]]
    for i, line in enumerate(lines[TILE:]):
        places[i] += _pad(line, axis, 1, 0)
    return _interleave(places, axis)


def _interleave(lines: list[jax.Array], axis: int) -> jax.Array:
    """`axis` as many times as long as there are lines, its entries from them by turns."""
    y = jnp.concatenate([jnp.expand_dims(line, axis + 1) for line in lines], axis + 1)
    return y.reshape(*y.shape[:axis], y.shape[axis] * len(lines), *y.shape[axis + 2 :])


def _pad(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    """Zeros before and after one axis."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (before, after)
    return jnp.pad(x, pads)


def _transform(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """Applies `matrix` [o, k] to the entries of x [k, ...].

    With the first axis as the contracted one, XLA's CPU backend computes products of a few rows
    and very many columns several times faster than in the usual order.
    """
    columns = x.reshape(len(x), -1)
    y = lax.dot_general(jnp.asarray(matrix.T, x.dtype), columns, (((0,), (0,)), ((), ())))
    return y.reshape(len(matrix), *x.shape[1:])


def _products(output: np.ndarray, x: jax.Array, kernel: jax.Array):
    """The outputs' entries [o, n, h, w, d], and what the backward pass needs."""
    u = _transform(_KERNEL, kernel.reshape(9, *kernel.shape[2:]))
    v = _transform(_INPUT, tiles(x, _READ))
    return _transform(output, jnp.einsum("kntsc,kcd->kntsd", v, u)), (u, v)


def _products_backward(output: np.ndarray, residuals, dy: jax.Array):
    """Gradients of x and of the kernel from that of the outputs' entries.

    By hand, because the transposes that automatic differentiation writes are slow.
    """
    u, v = residuals
    dm = _transform(output.T, dy)
    dx = untiles(_transform(_INPUT.T, jnp.einsum("kntsd,kcd->kntsc", dm, u)), _READ)
    # Over three axes at once XLA would first copy both into another order.
    du = jnp.einsum("kmc,kmd->kcd", *(a.reshape(len(a), -1, a.shape[-1]) for a in (v, dm)))
    return dx, _transform(_KERNEL.T, du).reshape(3, 3, *du.shape[1:])


@jax.custom_vjp
def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[n, 4 * h + 4, 4 * w + 4, c] and [3, 3, c, d] to [n, 4 * h, 4 * w, d]."""
    return _conv_forward(x, kernel)[0]


def _conv_forward(x, kernel):
    y, residuals = _products(_OUTPUT, x, kernel)
    return untiles(y, TILE), residuals


def _conv_backward(residuals, dy):
    return _products_backward(_OUTPUT, residuals, tiles(dy, TILE))


_conv.defvjp(_conv_forward, _conv_backward)


@jax.custom_vjp
def _conv_max_pool(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[n, 4 * h + 4, 4 * w + 4, c] and [3, 3, c, d] to [n, 2 * h, 2 * w, d]."""
    return _conv_max_pool_forward(x, kernel)[0]


def _conv_max_pool_forward(x, kernel):
    y, residuals = _products(_SQUARES, x, kernel)
    y = y.reshape(4, 4, *y.shape[1:])
    largest = functools.reduce(jnp.maximum, y)
    rows = [_interleave(list(largest[row : row + 2]), axis=2) for row in (0, 2)]
    return _interleave(rows, axis=1), (residuals, y)


def _conv_max_pool_backward(residuals, dy):
    residuals, y = residuals
    largest = functools.reduce(jnp.maximum, y)
    dy = jnp.stack([dy[:, row::2, column::2] for row in (0, 1) for column in (0, 1)])
    undecided = jnp.ones(largest.shape, bool)
    parts = []
    for value in y[:-1]:
        won = undecided & (value == largest)
        undecided &= ~won
        parts.append(jnp.where(won, dy, 0))
    parts.append(jnp.where(undecided, dy, 0))
    return _products_backward(_SQUARES, residuals, jnp.concatenate(parts))


_conv_max_pool.defvjp(_conv_max_pool_forward, _conv_max_pool_backward)
