"""Layers that several models share.

Every layer computes in `dtype` ("float32" or "bfloat16") and keeps its parameters in
float32.
"""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fedlite.errors import UserError
from fedlite.models import convolution

DTYPES = ("float32", "bfloat16")


def contract(
    x: jax.Array, kernel: jax.Array, dimension_numbers, precision=None, **unused
) -> jax.Array:
    """The `dot_general` of dense layers: its kernel's gradient is laid out as the kernel is.

    `lax.dot_general` computes that gradient transposed, so a client's every step would read
    it across its rows, slowly on a CPU.

    Args:
      x: [..., *inputs].
      kernel: [*inputs, *features].
      dimension_numbers: contracts the last axes of x with the first of the kernel.
      precision: as of `lax.dot_general`.

    Returns:
      [..., *features].
    """
    (axes, kernel_axes), _ = dimension_numbers
    count = len(axes)
    if tuple(a % x.ndim for a in axes) != tuple(range(x.ndim - count, x.ndim)) or tuple(
        kernel_axes
    ) != tuple(range(count)):
        raise ValueError(f"a dense layer contracts the last axes, not {dimension_numbers}")
    batch, features = x.shape[: x.ndim - count], kernel.shape[count:]
    inputs = math.prod(kernel.shape[:count])
    y = _matmul(x.reshape(-1, inputs), kernel.reshape(inputs, -1), precision)
    return y.reshape(*batch, *features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x, kernel, precision):
    return lax.dot(x, kernel, precision=precision)


def _matmul_backward(precision, residuals, dy):
    x, kernel = residuals
    dx = lax.dot_general(dy, kernel, (((1,), (1,)), ((), ())), precision=precision)
    return dx, lax.dot_general(x, dy, (((0,), (0,)), ((), ())), precision=precision)


_matmul.defvjp(
    lambda x, kernel, precision: (_matmul(x, kernel, precision), (x, kernel)), _matmul_backward
)


def check_choice(option: str, value: object, choices: Sequence[object]) -> None:
    """Raises UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(
            f"model option {option!r} is {value!r}; use one of {', '.join(map(repr, choices))}"
        )


def check_images(x: jax.Array, model: str, smallest: int = 1) -> None:
    """Raises UserError unless `x` is [batch, h, w, c] with sides of at least `smallest`."""
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(
            f"{model} reads float images [batch, height, width, channels], got {x.dtype} "
            f"{list(x.shape)}; choose an image data set or another model"
        )
    if min(x.shape[1:3]) < smallest:
        raise UserError(
            f"{model} needs images of at least {smallest}x{smallest}, got "
            f"{x.shape[1]}x{x.shape[2]}; choose another data set or model"
        )


def check_tokens(x: jax.Array, model: str) -> None:
    """Raises UserError unless `x` is [batch, length] of integers."""
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
        raise UserError(
            f"{model} reads integer tokens [batch, length], got {x.dtype} {list(x.shape)}; "
            "choose a text data set or another model"
        )


class Conv(nn.Module):
    """Two-dimensional convolution by `convolution.conv2d`, and the maximum over squares of it.

    Parameters: kernel [kh, kw, in, features] and, with `use_bias`, bias [features].

    Attributes:
      features: channels of the output.
      kernel_size: height and width of the window.
      strides: step of the window along height and width.
      padding: "SAME" or "VALID".
      use_bias: whether a bias is added.
      kernel_init: initialiser of the kernel; the bias starts at zero.
      implementation: one of `convolution.IMPLEMENTATIONS`.
      dtype: of the computation and the output.
      pool: side of the squares over which the maximum is taken, 1 for none; strides are 1 then.
        The bias is added to the maximum: that is the maximum with bias, over fewer values.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: str = "SAME"
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()
    implementation: str = "auto"
    dtype: str = "float32"
    pool: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, pooled: bool = True) -> jax.Array:
        """Maps [batch, h, w, in] to [batch, oh // pool, ow // pool, features].

        Without `pooled` to [batch, oh, ow, features]: for who adds to the convolution and applies
        `convolution.max_pool` afterwards.
        """
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        options = {"padding": self.padding, "implementation": self.implementation}
        x = x.astype(self.dtype)
        if self.pool != 1 and tuple(self.strides) != (1, 1):
            raise ValueError(f"pooling wants strides of 1, not {self.strides}")
        if self.pool != 1 and pooled:
            y = convolution.conv2d_max_pool(x, kernel, window=self.pool, **options)
        else:
            y = convolution.conv2d(x, kernel, strides=self.strides, **options)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype)
        return y


class Dropout(nn.Module):
    """Zeroes each entry with probability `rate` in training and scales the rest by 1 / (1 - rate).

    Draws 8 random bits an entry where they meet the rate exactly (0.25, 0.5), and otherwise 16,
    which meet it to 2^-17; `nn.Dropout` draws 32. Drawing is most of what dropout costs on a CPU.

    Attributes:
      rate: probability, in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps an array to its shape; draws from the rng "dropout" if `train`."""
        if not train or self.rate == 0:
            return x
        bits = 8 if (self.rate * 2**8).is_integer() else 16
        words = jax.random.bits(self.make_rng("dropout"), (-(-x.size * bits // 32),), jnp.uint32)
        # Cut by shifts: as arrays of 8 or 16 bits XLA would draw 32 for each.
        parts = [(words >> shift) & (2**bits - 1) for shift in range(0, 32, bits)]
        draws = jnp.concatenate(parts)[: x.size].reshape(x.shape)
        return jnp.where(draws >= round(self.rate * 2**bits), x / (1 - self.rate), 0)


def group_norm(group_size: int, *, name: str, dtype: str) -> nn.GroupNorm:
    """Group normalisation (arXiv 1803.08494) over consecutive `group_size` channels.

    The channels per group are fixed, not the number of groups: a group keeps its channels, and
    so its statistics, when others are dropped. A width that carries the layer counts groups.
    """
    return nn.GroupNorm(
        num_groups=None, group_size=group_size, epsilon=1e-5, dtype=dtype, name=name
    )
