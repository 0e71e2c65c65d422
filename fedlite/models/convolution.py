"""Convolution and max pooling that stay fast in loops and over per-client kernels.

XLA's own convolution is slow inside a loop on a CPU (jax #12868) and turns into a grouped
convolution under `vmap` over kernels (jax #13800); a federated round has both. A convolution
written as patches times a matrix (im2col) has neither trouble.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from fedlite.errors import UserError

IMPLEMENTATIONS = ("auto", "xla", "patches")


def _pads(size: int, window: int, stride: int, padding: str) -> tuple[int, int]:
    """How many elements to add before and after an axis, as XLA does."""
    if padding == "VALID":
        return 0, 0
    total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _shifts(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: str, fill: float
) -> list[jax.Array]:
    """For each window position, row by row, the strided slice [n, oh, ow, c] of `x` it sees."""
    pads = [_pads(x.shape[a + 1], window[a], strides[a], padding) for a in (0, 1)]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    spans = [(x.shape[a + 1] - window[a]) // strides[a] * strides[a] + 1 for a in (0, 1)]
    return [
        x[:, i : i + spans[0] : strides[0], j : j + spans[1] : strides[1]]
        for i in range(window[0])
        for j in range(window[1])
    ]


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "VALID",
    implementation: str = "auto",
) -> jax.Array:
    """Two-dimensional cross-correlation, as in `lax.conv_general_dilated`.

    Args:
      x: [n, h, w, c].
      kernel: [kh, kw, c, d].
      strides: step of the window along h and w.
      padding: "SAME" or "VALID".
      implementation: one of `IMPLEMENTATIONS`; "auto" picks the one that was measured fastest.

    Returns:
      [n, oh, ow, d], in x's type.

    Raises:
      UserError: `padding` or `implementation` is unknown.
    """
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"convolution {implementation!r} is unknown; use one of {IMPLEMENTATIONS}")
    if padding not in ("SAME", "VALID"):
        raise UserError(f"padding {padding!r} is unknown; use 'SAME' or 'VALID'")
    if implementation == "xla":
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    patches = jnp.concatenate(_shifts(x, kernel.shape[:2], strides, padding, 0), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def max_pool(x: jax.Array, window: int = 2) -> jax.Array:
    """Maximum over non-overlapping squares; rows and columns that fill no window are cut.

    The gradient of tied maxima is shared among them equally, where XLA's select-and-scatter
    (slow on a CPU) gives it to the first.

    Args:
      x: [n, h, w, c].
      window: side of the square.

    Returns:
      [n, h // window, w // window, c].
    """
    n, h, w, c = x.shape
    h, w = h // window, w // window
    x = x[:, : h * window, : w * window]
    return x.reshape(n, h, window, w, window, c).max((2, 4))


def max_pool_general(
    x: jax.Array,
    window: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (2, 2),
    padding: str = "SAME",
) -> jax.Array:
    """Maximum over windows that may overlap.

    Args:
      x: [n, h, w, c].
      window: height and width of the window.
      strides: step of the window along h and w.
      padding: "SAME" (with minus infinity) or "VALID".

    Returns:
      [n, oh, ow, c]. Each of two tied values gets half of the gradient.
    """
    result, *rest = _shifts(x, window, strides, padding, -jnp.inf)
    for shift in rest:
        result = jnp.maximum(result, shift)
    return result
