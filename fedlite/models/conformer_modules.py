"""The modules of a Conformer block, and the subsampling before the first.

Gulati et al. 2020 (arXiv 2005.08100), section 2. Padding is marked by `real`, bool [batch, length],
False beyond an utterance's frames; None says that all frames are real.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedlite.models import layers
from fedlite.models.depthwise import DepthwiseConv

_INIT = nn.initializers.glorot_uniform()
_EPSILON = 1e-5


def dense(features: int | tuple[int, ...], name: str, dtype: str) -> nn.DenseGeneral:
    """A dense layer over the last axis, with bias."""
    return nn.DenseGeneral(
        features, kernel_init=_INIT, dtype=dtype, name=name, dot_general=layers.contract
    )


def _masked(x: jax.Array, real: jax.Array | None) -> jax.Array:
    """`x` [batch, length, ...] with zeros where `real` [batch, length] is False."""
    if real is None:
        return x
    return jnp.where(real.reshape(*real.shape, *[1] * (x.ndim - 2)), x, 0)


class FeedForward(nn.Module):
    """Normalise, widen to `ffn` units, swish, narrow (figure 4 of the paper)."""

    ffn: int
    dropout: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [batch, length, features] to the same shape."""
        y = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        y = nn.swish(dense(self.ffn, "in", self.dtype)(y))
        y = layers.Dropout(self.dropout)(y, train=train)
        y = dense(x.shape[-1], "out", self.dtype)(y)
        return layers.Dropout(self.dropout)(y, train=train)


class FramesGroupNorm(nn.Module):
    """Group normalisation of sequences over an utterance's real frames.

    Parameters: scale and bias [channels].

    Attributes:
      group_size: consecutive channels of a group.
      dtype: of the output; the statistics are float32.
    """

    group_size: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """Maps [batch, length, channels] to the same shape."""
        channels = x.shape[-1]
        y = x.astype(jnp.float32).reshape(*x.shape[:2], -1, self.group_size)
        # At least one frame: of none there is no mean.
        count = y.shape[1] if real is None else jnp.maximum(jnp.sum(real, 1), 1)
        count = jnp.reshape(count * self.group_size, (-1, 1, 1, 1))

        def mean(y):
            return jnp.sum(_masked(y, real), axis=(1, 3), keepdims=True) / count

        center = mean(y)
        variance = mean(jnp.square(y - center))
        y = ((y - center) * jax.lax.rsqrt(variance + _EPSILON)).reshape(x.shape)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return (y * scale + bias).astype(self.dtype)


class ConvolutionModule(nn.Module):
    """Pointwise convolution, GLU, depthwise convolution, norm, swish, pointwise (figure 2).

    Attributes:
      groups: of `group_size` channels each, between the pointwise convolutions.
      group_size: see `FramesGroupNorm`.
      kernel: entries of a depthwise filter.
      dropout: rate of the output.
      convolution: implementation of the depthwise convolution.
      dtype: of the computation.
    """

    groups: int
    group_size: int
    kernel: int
    dropout: float
    convolution: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array | None, *, train: bool) -> jax.Array:
        """Maps [batch, length, features] to the same shape."""
        y = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        # Values and gates on an axis of their own, so that a unit's entries lie side by side.
        y = dense((2, self.groups * self.group_size), "in", self.dtype)(y)
        y = _masked(y[..., 0, :] * nn.sigmoid(y[..., 1, :]), real)
        y = DepthwiseConv(self.kernel, self.convolution, self.dtype, name="depthwise")(y)
        y = FramesGroupNorm(self.group_size, self.dtype, name="group_norm")(y, real)
        y = dense(x.shape[-1], "out", self.dtype)(nn.swish(y))
        return layers.Dropout(self.dropout)(y, train=train)


class Subsampling(nn.Module):
    """Two 3x3 convolutions of stride 2 over time and frequency, then a dense layer.

    Windows begin at the even frames whatever the length, so longer padding moves none.

    Attributes:
      conv1, conv2: channels of the convolutions.
      features: of the output.
      convolution: implementation.
      dtype: of the computation.
    """

    conv1: int
    conv2: int
    features: int
    convolution: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, frames: jax.Array | None) -> jax.Array:
        """Maps [batch, length, mels] to [batch, ceil(length / 4), features]."""
        y = _masked(x, real_frames(frames, x.shape[1]))[..., None]
        for name, channels in (("conv1", self.conv1), ("conv2", self.conv2)):
            ends = [(0, 1 + side % 2) for side in y.shape[1:3]]
            y = layers.Conv(
                channels,
                (3, 3),
                strides=(2, 2),
                padding="VALID",
                kernel_init=nn.initializers.he_normal(),
                implementation=self.convolution,
                dtype=self.dtype,
                name=name,
            )(jnp.pad(y, ((0, 0), *ends, (0, 0))))
            frames = None if frames is None else (frames + 1) // 2
            y = _masked(nn.relu(y), real_frames(frames, y.shape[1]))
        return nn.DenseGeneral(
            self.features,
            axis=(-2, -1),
            kernel_init=_INIT,
            dtype=self.dtype,
            name="out",
            dot_general=layers.contract,
        )(y)


def real_frames(frames: jax.Array | None, length: int) -> jax.Array | None:
    """`real` of sequences with so many frames, int32 [batch]; None for None."""
    return None if frames is None else jnp.arange(length) < frames[:, None]
