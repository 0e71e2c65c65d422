"""Depthwise convolution along time that stays fast in loops and over per-client kernels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

IMPLEMENTATIONS = ("auto", "xla", "shifts")


def depthwise_conv(x: jax.Array, kernel: jax.Array, implementation: str = "auto") -> jax.Array:
    """Each channel with a filter of its own: y_t = sum_k w_k x_{t + k - (kernel - 1) // 2}.

    "xla" is a grouped convolution, slow in a loop on a CPU and, batched over clients' kernels, on a
    GPU (see `fedlite.models.convolution`); "shifts" adds up shifted products, which XLA fuses into
    one pass. "auto" is "shifts" on both and "xla" elsewhere. They are equal up to rounding.

    Args:
      x: [batch, length, channels]; zero beyond its ends.
      kernel: [size, channels], of x's type.
      implementation: one of `IMPLEMENTATIONS`.

    Returns:
      [batch, length, channels].
    """
    size, channels = kernel.shape
    before = (size - 1) // 2
    pads = (before, size - 1 - before)
    if implementation == "auto":
        implementation = "shifts" if jax.default_backend() in ("cpu", "gpu") else "xla"
    if implementation == "xla":
        return lax.conv_general_dilated(
            x,
            kernel[:, None],
            (1,),
            (pads,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=channels,
        )
    length = x.shape[1]
    x = jnp.pad(x, ((0, 0), pads, (0, 0)))
    return sum(x[:, k : k + length] * kernel[k] for k in range(size))


class DepthwiseConv(nn.Module):
    """`depthwise_conv` with a bias. Parameters: kernel [size, channels], bias [channels].

    Attributes:
      size: of the filters.
      implementation: one of `IMPLEMENTATIONS`.
      dtype: of the computation.
    """

    size: int
    implementation: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, length, channels] to the same shape."""
        channels = x.shape[-1]
        kernel = self.param("kernel", _init, (self.size, channels)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,)).astype(self.dtype)
        return depthwise_conv(x.astype(self.dtype), kernel, self.implementation) + bias


def _init(key, shape, dtype=jnp.float32) -> jax.Array:
    """Uniform within sqrt(3 / size): a filter reads one channel, so its fan-in is its size."""
    limit = (3 / shape[0]) ** 0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)
