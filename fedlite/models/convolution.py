"""Convolution and max pooling that stay fast in loops and over per-client kernels.

A round trains clients one after another inside loops, each with kernels of its own. On a CPU
XLA's convolution is some 25 times slower inside a loop (jax #12868), and `vmap` over kernels
makes of it a grouped convolution, slow on a GPU too (jax #13800). Written as matrix products
a convolution has neither trouble. Three implementations, equal up to rounding:

* "xla": `lax.conv_general_dilated`. The reference, and what a client's cost is compiled with.
* "patches": every window as a row of a matrix, times the kernel (im2col).
* "winograd": 3x3 windows with stride 1 by `fedlite.models.winograd`, few input channels as a
  sum of scaled images, and anything else by patches. For CPUs.

Rounding, EMNIST CNN's second layer in float32, largest error over the result's deviation
(value, input gradient, kernel gradient): patches 4e-6, 1e-6, 2e-6; XLA on a CPU 4e-6, 5e-6,
2e-5; winograd 3e-5, 2e-5, 5e-5.

How fast each is: `experiments.benchmark`, with results under benchmarks/. On a CPU, map clients
one after another: `vmap` over 10 or 50 of them makes winograd 2.4 to 3.2 times slower.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from fedlite.errors import UserError
from fedlite.models import winograd

IMPLEMENTATIONS = ("auto", "xla", "patches", "winograd")

_FEW_CHANNELS = 4  # Up to here Winograd's transforms cost more than they save.
_FEW_ROWS = 18  # Up to here a sum of outer products is faster on a CPU than a matrix product.


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
    implementation = _implementation(implementation)
    _check_window(x, kernel.shape[:2], padding)
    if implementation == "xla":
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    if implementation == "winograd" and _suits_winograd(x, kernel, strides):
        return winograd.conv(x, kernel, padding)
    if x.shape[-1] <= _FEW_CHANNELS and tuple(strides) == (1, 1):
        return _few_channels_conv(x, kernel, padding, sums=implementation == "winograd")
    patches = jnp.concatenate(_shifts(x, kernel.shape[:2], strides, padding), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def conv2d_max_pool(
    x: jax.Array,
    kernel: jax.Array,
    *,
    window: int = 2,
    padding: str = "VALID",
    implementation: str = "auto",
) -> jax.Array:
    """`max_pool(conv2d(x, kernel), window)` with strides of 1, as one where it is Winograd's.

    That is for windows of 2. Of tied values as they are computed, the first, row by row, gets the
    gradient. All implementations but "xla" are for reverse-mode differentiation only.

    Args:
      x: [n, h, w, c].
      kernel: [kh, kw, c, d], of x's type.
      window: side of the pooled squares.
      padding: of the convolution.
      implementation: one of `IMPLEMENTATIONS`.

    Returns:
      [n, oh // window, ow // window, d], of x's type.

    Raises:
      UserError: as of `conv2d` and `max_pool`.
    """
    fused = _implementation(implementation) == "winograd" and window == 2
    _check_window(x, kernel.shape[:2], padding)
    if fused and _suits_winograd(x, kernel, (1, 1)):
        return winograd.conv_max_pool(x, kernel, padding)
    return max_pool(conv2d(x, kernel, padding=padding, implementation=implementation), window)


def _implementation(name: str) -> str:
    """Resolves "auto"; raises UserError for an unknown name."""
    if name not in IMPLEMENTATIONS:
        raise UserError(f"convolution {name!r} is unknown; use one of {IMPLEMENTATIONS}")
    if name == "auto":
        return {"cpu": "winograd", "gpu": "patches"}.get(jax.default_backend(), "xla")
    return name


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


def _few_channels_conv(x: jax.Array, kernel: jax.Array, padding: str, sums: bool) -> jax.Array:
    """`conv2d` with stride 1 by patches that lie as [kh * kw * c, n * oh * ow].

    Patches [n * oh * ow, kh * kw * c] of a few channels are copied value by value.

    Args:
      x: [n, h, w, c].
      kernel: [kh, kw, c, d].
      padding: "SAME" or "VALID".
      sums: whether a product with few rows is written as a sum of outer ones, which a CPU fuses
        with what follows.
    """
    shifts = _shifts(x, kernel.shape[:2], (1, 1), padding)
    patches = jnp.concatenate([jnp.moveaxis(shift, -1, 0) for shift in shifts])
    patches = patches.reshape(len(patches), -1)
    sums = sums and len(patches) <= _FEW_ROWS and x.dtype in (jnp.float32, jnp.float64)
    y = _columns_times_kernel(patches, kernel.reshape(-1, kernel.shape[-1]), sums)
    return y.reshape(*shifts[0].shape[:-1], kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _columns_times_kernel(patches: jax.Array, kernel: jax.Array, sums: bool) -> jax.Array:
    """patches^T kernel, [k, p] and [k, d] to [p, d]."""
    if sums:
        return sum(row[:, None] * weights for row, weights in zip(patches, kernel, strict=True))
    return lax.dot_general(patches, kernel, (((0,), (0,)), ((), ())))


def _columns_backward(sums, residuals, dy):
    # Automatic differentiation has dy^T first, which costs transposes of dy and of patches.
    patches, kernel = residuals
    return lax.dot_general(kernel, dy, (((1,), (1,)), ((), ()))), patches @ dy


_columns_times_kernel.defvjp(
    lambda p, k, sums: (_columns_times_kernel(p, k, sums), (p, k)), _columns_backward
)


def _suits_winograd(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> bool:
    """Whether Winograd's algorithm applies, is exact enough and can pay."""
    return (
        kernel.shape[:2] == (3, 3)
        and tuple(strides) == (1, 1)
        and x.dtype in (jnp.float32, jnp.float64)
        and min(kernel.shape[2:]) > _FEW_CHANNELS
        and min(x.shape[1:3]) > winograd.TILE
    )


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
