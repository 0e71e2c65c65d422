"""Densely connected networks with bottlenecks and compression, DenseNet-BC (arXiv 1608.06993).

FedOBD (arXiv 2208.05174) trains the one of 40 layers and growth 12 on CIFAR. Droppable: the inner
channels of each bottleneck layer. What a layer adds to the concatenation is read by all layers
after it, so these channels are tied and stay.
"""

import math
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from fedlite.errors import UserError
from fedlite.models import layers, normalization

_BOTTLENECK = 4  # Inner channels of a layer for each channel that it adds.
_INIT = nn.initializers.he_normal()


class DenseLayer(nn.Module):
    """norm, ReLU, 1x1 convolution; norm, ReLU, 3x3 convolution; appended to the input.

    Attributes:
      hidden: channels between the convolutions.
      growth: channels that are appended.
      norm: one of `normalization.NORMS`.
      group_size: channels of a normalisation group.
      convolution: implementation, one of `convolution.IMPLEMENTATIONS`.
      dtype: of the computation.
    """

    hidden: int
    growth: int
    norm: str
    group_size: int
    convolution: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h, w, c + growth]; the rest as of `BatchNorm`."""
        y = _conv(self, self.hidden, 1, "conv1")(_activate(self, x, "norm1", mask, train))
        y = _conv(self, self.growth, 3, "conv2")(_activate(self, y, "norm2", mask, train))
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """norm, ReLU, 1x1 convolution to half the channels, 2x2 average pooling.

    Attributes: as of `DenseLayer`.
    """

    norm: str
    group_size: int
    convolution: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, h // 2, w // 2, c // 2]; the rest as of `BatchNorm`."""
        x = _conv(self, x.shape[-1] // 2, 1, "conv")(_activate(self, x, "norm", mask, train))
        n, h, w, c = x.shape
        x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
        return x.mean((2, 4))


class DenseNet(nn.Module):
    """Blocks of dense layers with transitions between them; see `densenet`."""

    reads_mask = True

    @property
    def normalization(self) -> str:
        """The kind, see `fedlite.models`."""
        return normalization.kind(self.norm)

    num_classes: int
    widths: FrozenDict[str, int]
    growth: int
    block_layers: tuple[int, ...]
    norm: str
    group_size: int
    convolution: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps images [batch, h, w, c] to float32 logits [batch, num_classes].

        Args:
          x: the images.
          train: whether it is training, where there are running statistics.
          mask: [batch], 0 for padding, which batch normalisation then leaves out. Without it
            padded examples count, as copies of real ones.
        """
        layers.check_images(x, "densenet", smallest=2 ** (len(self.block_layers) - 1))
        shared = (self.norm, self.group_size, self.convolution, self.dtype)
        size = self.group_size if self.norm == "group" else 1
        x = _conv(self, 2 * self.growth, 3, "stem")(x)
        for i, count in enumerate(self.block_layers, 1):
            if i > 1:
                x = Transition(*shared, name=f"transition{i - 1}")(x, mask, train)
            for name in _names(i, count):
                hidden = self.widths[f"{name}/conv1"] * size
                x = DenseLayer(hidden, self.growth, *shared, name=name)(x, mask, train)
        x = _activate(self, x, "final_norm", mask, train).mean((1, 2))
        x = nn.Dense(
            self.num_classes, dtype=self.dtype, name="logits", dot_general=layers.contract
        )(x)
        return x.astype("float32")


def _names(block: int, count: int) -> Iterator[str]:
    return (f"block{block}_layer{j}" for j in range(1, count + 1))


def _conv(module: nn.Module, features: int, size: int, name: str) -> layers.Conv:
    return layers.Conv(
        features,
        (size, size),
        use_bias=False,
        kernel_init=_INIT,
        implementation=module.convolution,
        dtype=module.dtype,
        name=name,
    )


def _activate(module: nn.Module, x, name: str, mask, train: bool) -> jax.Array:
    return nn.relu(normalization.normalize(module, x, name, mask, train))


def densenet(
    *,
    num_classes: int,
    growth: int = 12,
    block_layers: tuple[int, ...] = (6, 6, 6),
    norm: str = "batch",
    group_size: int = 12,
    convolution: str = "auto",
    dtype: str = "float32",
) -> DenseNet:
    """DenseNet-40 (BC): 176,122 parameters with 10 classes on colour images, 188,092 with 100.

    A 3x3 convolution to 2 * growth channels, three blocks of six bottleneck layers with
    4 * growth inner channels, a transition that halves the channels and the image between
    blocks, global pooling, a dense layer; reduction 0.5, no dropout.

    Args:
      num_classes: labels.
      growth: channels that a layer adds.
      block_layers: layers of each block.
      norm: "batch" for batch normalisation by the batch at hand, in training and at test, as
        FedOBD's authors do; "group" for group normalisation, which depends on the example alone and
        has as many parameters; "running" or "fixed" for batch normalisation with running
        statistics (see `normalization.BatchNorm`).
      group_size: channels of a normalisation group, which then is one unit of a width
        "block1_layer1/conv1"; with batch normalisation a unit is one channel.
      convolution: implementation, one of `convolution.IMPLEMENTATIONS`.
      dtype: of the computation, "float32" or "bfloat16".
    """
    layers.check_choice("norm", norm, normalization.NORMS)
    if not block_layers:
        raise UserError("model option 'block_layers' is empty; give the layers of a block")
    size = 1
    if norm == "group":
        size = group_size
        _check_groups(growth, block_layers, group_size)
    widths = {
        f"{name}/conv1": _BOTTLENECK * growth // size
        for i, count in enumerate(block_layers, 1)
        for name in _names(i, count)
    }
    return DenseNet(
        num_classes,
        FrozenDict(widths),
        growth,
        tuple(block_layers),
        norm,
        group_size,
        convolution,
        dtype,
    )


def _check_groups(growth: int, block_layers: tuple[int, ...], group_size: int) -> None:
    """Refuses groups that some normalised number of channels isn't made of."""
    normalised = {_BOTTLENECK * growth}
    channels = 2 * growth
    for count in block_layers:
        normalised |= {channels + j * growth for j in range(count + 1)}
        channels = (channels + count * growth) // 2
    if math.gcd(*normalised) % group_size:
        raise UserError(
            f"model option 'group_size' is {group_size}, but norms have "
            f"{', '.join(map(str, sorted(normalised)))} channels, which are not all whole groups; "
            f"use a divisor of {math.gcd(*normalised)}"
        )
