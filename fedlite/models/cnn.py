"""The two convolutional networks of TensorFlow Federated's EMNIST baselines.

`emnist_cnn` is its `conv_dropout` network, `emnist_fedavg_cnn` its `original_fedavg_cnn`, the
network of McMahan et al. 2017 (arXiv 1602.05629). Droppable: the filters of both convolutions
and the hidden units of the first dense layer.
"""

import flax.linen as nn
import jax
from flax.core import FrozenDict

from fedlite.errors import UserError
from fedlite.models import layers

_INIT = nn.initializers.glorot_uniform()


def _conv(model: nn.Module, width: str, size: int, padding: str, pool: int = 1) -> layers.Conv:
    return layers.Conv(
        model.widths[width],
        (size, size),
        padding=padding,
        pool=pool,
        implementation=model.convolution,
        dtype=model.dtype,
        name=width,
    )


def _head(model: nn.Module, x: jax.Array, rate: float, train: bool) -> jax.Array:
    """The two dense layers; contracts h, w and c as axes, so that c is seen as a width."""
    x = nn.DenseGeneral(
        model.widths["dense1"],
        axis=(-3, -2, -1),
        kernel_init=_INIT,
        dtype=model.dtype,
        name="dense1",
        dot_general=layers.contract,
    )(x)
    x = layers.Dropout(rate)(nn.relu(x), train=train)
    x = nn.Dense(
        model.num_classes,
        kernel_init=_INIT,
        dtype=model.dtype,
        name="logits",
        dot_general=layers.contract,
    )(x)
    return x.astype("float32")


class EmnistCnn(nn.Module):
    """Two 3x3 convolutions, one pooling, two dense layers; see `emnist_cnn`."""

    num_classes: int
    widths: FrozenDict[str, int]
    dropout: float = 1.0
    convolution: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images [batch, h, w, c] to float32 logits [batch, num_classes]."""
        layers.check_images(x, "emnist_cnn", smallest=6)
        x = nn.relu(_conv(self, "conv1", 3, "VALID")(x))
        # ReLU of the maximum is the maximum of ReLUs, bit for bit, over a quarter of the values.
        x = nn.relu(_conv(self, "conv2", 3, "VALID", pool=2)(x))
        x = layers.Dropout(0.25 * self.dropout)(x, train=train)
        return _head(self, x, 0.5 * self.dropout, train)


class EmnistFedAvgCnn(nn.Module):
    """Two 5x5 convolutions, each pooled, two dense layers; see `emnist_fedavg_cnn`."""

    num_classes: int
    widths: FrozenDict[str, int]
    convolution: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images [batch, h, w, c] to float32 logits [batch, num_classes]."""
        layers.check_images(x, "emnist_fedavg_cnn", smallest=4)
        for width in ("conv1", "conv2"):
            x = nn.relu(_conv(self, width, 5, "SAME", pool=2)(x))
        return _head(self, x, 0.0, train)


def emnist_cnn(
    *,
    num_classes: int,
    conv1: int = 32,
    conv2: int = 64,
    dense1: int = 128,
    dropout: float = 1.0,
    convolution: str = "auto",
    dtype: str = "float32",
) -> EmnistCnn:
    """TFF's `conv_dropout`: 1,206,590 parameters on 28x28x1 images with 62 classes.

    Args:
      num_classes: labels.
      conv1: filters of the first 3x3 convolution (no padding).
      conv2: filters of the second 3x3 convolution (no padding), which is pooled.
      dense1: hidden units of the dense layer.
      dropout: scales the dropout rates 0.25 (after pooling) and 0.5 (after dense1); 0 is off.
      convolution: implementation, one of `convolution.IMPLEMENTATIONS`.
      dtype: of the computation, "float32" or "bfloat16".
    """
    if not 0 <= dropout < 2:
        raise UserError(
            f"model option 'dropout' scales the rates 0.25 and 0.5; {dropout} is not in [0, 2)"
        )
    widths = FrozenDict(conv1=conv1, conv2=conv2, dense1=dense1)
    return EmnistCnn(num_classes, widths, dropout, convolution, dtype)


def emnist_fedavg_cnn(
    *,
    num_classes: int,
    conv1: int = 32,
    conv2: int = 64,
    dense1: int = 512,
    convolution: str = "auto",
    dtype: str = "float32",
) -> EmnistFedAvgCnn:
    """TFF's `original_fedavg_cnn`: 1,690,046 parameters on 28x28x1 images with 62 classes.

    Args:
      num_classes: labels.
      conv1: filters of the first 5x5 convolution (padded, then pooled).
      conv2: filters of the second 5x5 convolution (padded, then pooled).
      dense1: hidden units of the dense layer.
      convolution: implementation, one of `convolution.IMPLEMENTATIONS`.
      dtype: of the computation, "float32" or "bfloat16".
    """
    widths = FrozenDict(conv1=conv1, conv2=conv2, dense1=dense1)
    return EmnistFedAvgCnn(num_classes, widths, convolution, dtype)
