"""Convolution and max pooling that stay fast in loops and over per-client kernels.

A round trains clients one after another inside loops, each with kernels of its own. On a CPU
XLA's convolution is some 25 times slower inside a loop (jax #12868), and `vmap` over kernels
makes of it a grouped convolution, slow on a GPU too (jax #13800). Written as matrix products
a convolution has neither trouble. Three implementations, equal up to rounding:

* "xla": `lax.conv_general_dilated`. The reference, and what a client's cost is compiled with.
* "patches": every window as a row of a matrix, times the kernel (im2col).
* "winograd": F(4x4, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural
  Networks" (arXiv:1509.09308, section 4): 3x3 windows with stride 1 for a quarter of the
  multiplications, and tiles of a quarter of the patches' size. Its transforms are matrix
  products, too. A convolution that it doesn't fit falls back to patches.

Rounding, EMNIST CNN's second layer in float32, largest error over the result's deviation
(value, input gradient, kernel gradient): patches 4e-6, 1e-6, 2e-6; XLA on a CPU 4e-6, 5e-6,
2e-5; winograd 3e-5, 2e-5, 5e-5.

SGD steps a second, EMNIST CNN, batch of 20, jax 0.10.2, two otherwise idle cores (440 GFLOP/s
in large matrix products); in parentheses at half the widths. Clients and steps in nested
scans: winograd 219 (548), patches 101 (380). Steps unrolled and dispatched by client: XLA 89
(273), and 50 where its pooling is `lax.reduce_window`, too. On a CPU, map clients one after
another: `vmap` over two of them makes winograd two to three times slower a step.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedlite.errors import UserError

IMPLEMENTATIONS = ("auto", "xla", "patches", "winograd")

_FEW_CHANNELS = 4  # Up to here Winograd's transforms cost more than they save.

# Of F(4x4, 3x3), for the interpolation points 0, 1, -1, 2, -2 and infinity.
_INPUT_TRANSFORM = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_KERNEL_TRANSFORM = (
    np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
)
_OUTPUT_TRANSFORM = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)
_TILE = 4  # Outputs a tile has along each axis.


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "VALID",
    implementation: str = "auto",
) -> jax.Array:
    """Two-dimensional cross-correlation, as `lax.conv_general_dilated` has it.

    "auto" is "winograd" on a CPU, "patches" on a GPU, where kernels batched over clients make
    it one batched matrix product, and "xla" elsewhere. All but "xla" are for reverse-mode
    differentiation only.

    Args:
      x: [n, h, w, c].
      kernel: [kh, kw, c, d], of x's type.
      strides: step of the window along h and w.
      padding: "SAME" or "VALID".
      implementation: one of `IMPLEMENTATIONS`.

    Returns:
      [n, oh, ow, d], of x's type.

    Raises:
      UserError: `padding` or `implementation` is unknown, or no window fits in x.
    """
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"convolution {implementation!r} is unknown; use one of {IMPLEMENTATIONS}")
    _check_window(x, kernel.shape[:2], padding)
    if implementation == "auto":
        backends = {"cpu": "winograd", "gpu": "patches"}
        implementation = backends.get(jax.default_backend(), "xla")
    if implementation == "xla":
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    if implementation == "winograd" and _suits_winograd(x, kernel, strides):
        return _winograd_conv(x, kernel, padding)
    if x.shape[-1] <= _FEW_CHANNELS and tuple(strides) == (1, 1):
        return _few_channels_conv(x, kernel, padding)
    patches = jnp.concatenate(_shifts(x, kernel.shape[:2], strides, padding), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _check_window(x: jax.Array, window: tuple[int, int], padding: str) -> None:
    """Refuses an unknown padding, and a window that is larger than the unpadded image."""
    if padding not in ("SAME", "VALID"):
        raise UserError(f"padding {padding!r} is unknown; use 'SAME' or 'VALID'")
    if padding == "VALID" and (x.shape[1] < window[0] or x.shape[2] < window[1]):
        raise UserError(
            f"a window of {window[0]} x {window[1]} does not fit in an image of "
            f"{x.shape[1]} x {x.shape[2]}; use larger images or padding 'SAME'"
        )


def _pads(size: int, window: int, stride: int, padding: str) -> tuple[int, int]:
    """How many elements XLA adds before and after an axis."""
    if padding == "VALID":
        return 0, 0
    total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _shifts(
    x: jax.Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: str,
    fill: float = 0,
) -> list[jax.Array]:
    """The slice [n, oh, ow, c] of `x` that each position of the window sees, row by row."""
    pads = [_pads(x.shape[i + 1], window[i], strides[i], padding) for i in (0, 1)]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    spans = [(x.shape[i + 1] - window[i]) // strides[i] * strides[i] + 1 for i in (0, 1)]
    return [
        x[:, i : i + spans[0] : strides[0], j : j + spans[1] : strides[1]]
        for i in range(window[0])
        for j in range(window[1])
    ]


def _contract_first(a: jax.Array, b: jax.Array) -> jax.Array:
    """a^T b, [k, o] and [k, p] to [o, p].

    With the first axis as the contracted one, XLA's CPU backend computes products of a few
    rows and very many columns several times faster than in the usual order.
    """
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())))


def _few_channels_conv(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    """`conv2d` with stride 1 by patches that lie as [kh * kw * c, n * oh * ow].

    Patches [n * oh * ow, kh * kw * c] of a few channels are copied value by value.
    """
    shifts = _shifts(x, kernel.shape[:2], (1, 1), padding)
    patches = jnp.concatenate([jnp.moveaxis(shift, -1, 0) for shift in shifts])
    y = _columns_times_kernel(
        patches.reshape(len(patches), -1), kernel.reshape(-1, kernel.shape[-1])
    )
    return y.reshape(*shifts[0].shape[:-1], -1)


@jax.custom_vjp
def _columns_times_kernel(patches: jax.Array, kernel: jax.Array) -> jax.Array:
    """patches^T kernel, [k, p] and [k, d] to [p, d]."""
    return _contract_first(patches, kernel)


def _columns_backward(residuals, dy):
    # Automatic differentiation has dy^T first, which costs transposes of dy and of patches.
    patches, kernel = residuals
    return lax.dot_general(kernel, dy, (((1,), (1,)), ((), ()))), patches @ dy


_columns_times_kernel.defvjp(lambda p, k: (_contract_first(p, k), (p, k)), _columns_backward)


def _suits_winograd(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> bool:
    """Whether Winograd's algorithm applies, is exact enough and can pay."""
    return (
        kernel.shape[:2] == (3, 3)
        and tuple(strides) == (1, 1)
        and x.dtype in (jnp.float32, jnp.float64)
        and min(kernel.shape[2:]) > _FEW_CHANNELS
        and min(x.shape[1:3]) > _TILE
    )


def _winograd_conv(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    """`conv2d` of 3x3 windows with stride 1."""
    same = padding == "SAME"
    sizes = [size if same else size - 2 for size in x.shape[1:3]]
    # Whole tiles, and one more beyond the last, whose first two lines the last tile reads.
    padded = [(math.ceil(size / _TILE) + 1) * _TILE for size in sizes]
    pads = [(int(same), p - size - int(same)) for p, size in zip(padded, x.shape[1:3])]
    y = _winograd(jnp.pad(x, ((0, 0), *pads, (0, 0))), kernel)
    return y[:, : sizes[0], : sizes[1]]


def _tiles(x: jax.Array, size: int) -> jax.Array:
    """Cuts squares of a side of `size` that begin at every fourth row and column.

    Args:
      x: [n, 4 * h, 4 * w, c].
      size: 4, or 6 for squares that overlap; those have no square at the last h and w.

    Returns:
      [size * size, n, h or h - 1, w or w - 1, c].
    """
    n, h, w, c = x.shape
    overlap = size - _TILE
    x = x.reshape(n, h // _TILE, _TILE, w // _TILE, _TILE, c)
    h, w = h // _TILE - (overlap > 0), w // _TILE - (overlap > 0)
    lines = []
    for i in range(size):
        line = x[:, i // _TILE : i // _TILE + h, i % _TILE]
        line = jnp.concatenate([line[:, :, :w], line[:, :, -w:, :overlap]], axis=3)
        lines.append(line.transpose(3, 0, 1, 2, 4))
    # One transpose of all lines would read better, but compiles to a loop of scalar copies.
    return jnp.concatenate(lines)


def _untiles(tiles: jax.Array, size: int) -> jax.Array:
    """The transpose of `_tiles`: puts squares in their places, adding where they overlap."""
    x = tiles.reshape(size, size, *tiles.shape[1:])
    if size > _TILE:
        rest = 2 * _TILE - size
        x = jnp.pad(x[:, :_TILE], ((0, 0),) * 4 + ((0, 1), (0, 0))) + jnp.pad(
            x[:, _TILE:], ((0, 0), (0, rest), (0, 0), (0, 0), (1, 0), (0, 0))
        )
        x = jnp.pad(x[:_TILE], ((0, 0),) * 3 + ((0, 1), (0, 0), (0, 0))) + jnp.pad(
            x[_TILE:], ((0, rest), (0, 0), (0, 0), (1, 0), (0, 0), (0, 0))
        )
    _, _, n, h, w, c = x.shape
    return x.transpose(2, 3, 0, 4, 1, 5).reshape(n, h * _TILE, w * _TILE, c)


def _transform(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """Applies `matrix` [o, k] to rows and to columns of x [k * k, ...], giving [o * o, ...]."""
    both = np.kron(matrix, matrix).T
    y = _contract_first(jnp.asarray(both, x.dtype), x.reshape(len(x), -1))
    return y.reshape(-1, *x.shape[1:])


@jax.custom_vjp
def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[n, 4 * h + 4, 4 * w + 4, c] and [3, 3, c, d] to [n, 4 * h, 4 * w, d]."""
    return _winograd_forward(x, kernel)[0]


def _winograd_forward(x, kernel):
    u = _transform(_KERNEL_TRANSFORM, kernel.reshape(9, *kernel.shape[2:]))
    v = _transform(_INPUT_TRANSFORM, _tiles(x, 6))
    y = _transform(_OUTPUT_TRANSFORM, jnp.einsum("kntsc,kcd->kntsd", v, u))
    return _untiles(y, 4), (u, v)


def _winograd_backward(residuals, dy):
    # By hand, because the transposes that automatic differentiation writes are slow.
    u, v = residuals
    dm = _transform(_OUTPUT_TRANSFORM.T, _tiles(dy, 4))
    dx = _untiles(_transform(_INPUT_TRANSFORM.T, jnp.einsum("kntsd,kcd->kntsc", dm, u)), 6)
    # Over three axes at once XLA would first copy both into another order.
    du = jnp.einsum("kmc,kmd->kcd", *(a.reshape(len(a), -1, a.shape[-1]) for a in (v, dm)))
    return dx, _transform(_KERNEL_TRANSFORM.T, du).reshape(3, 3, *du.shape[1:])


_winograd.defvjp(_winograd_forward, _winograd_backward)


def max_pool(x: jax.Array, window: int = 2) -> jax.Array:
    """Maximum over non-overlapping squares; rows and columns that fill no square are cut.

    Args:
      x: [n, h, w, c].
      window: side of the square.

    Returns:
      [n, h // window, w // window, c]. For ties see `max_pool_general`.
    """
    return max_pool_general(x, (window, window), (window, window), "VALID")


def max_pool_general(
    x: jax.Array,
    window: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (2, 2),
    padding: str = "SAME",
) -> jax.Array:
    """Maximum over windows that may overlap.

    Of tied values the first, row by row, gets the gradient: that of `lax.reduce_window`, whose
    own backward pass (select-and-scatter) takes 5 to 20 times as long on a CPU. Reverse mode
    only.

    Args:
      x: [n, h, w, c].
      window: height and width of the window.
      strides: step of the window along h and w.
      padding: "SAME" (with minus infinity) or "VALID".

    Returns:
      [n, oh, ow, c].

    Raises:
      UserError: `padding` is unknown, or no window fits in x.
    """
    _check_window(x, window, padding)
    return _first_max(_shifts(x, window, strides, padding, -jnp.inf))


@jax.custom_vjp
def _first_max(values: list[jax.Array]) -> jax.Array:
    """Elementwise maximum, whose gradient goes to the first of tied values."""
    return functools.reduce(jnp.maximum, values)


def _first_max_forward(values):
    largest = functools.reduce(jnp.maximum, values)
    undecided = jnp.ones(largest.shape, bool)
    wins = []
    for value in values[:-1]:
        wins.append(undecided & (value == largest))
        undecided &= ~wins[-1]
    return largest, (*wins, undecided)


def _first_max_backward(wins, dy):
    return ([jnp.where(win, dy, 0) for win in wins],)


_first_max.defvjp(_first_max_forward, _first_max_backward)
