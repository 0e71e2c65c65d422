"""Residual networks with group normalisation, or batch normalisation where asked for.

`resnet18_gn` is TensorFlow Federated's `create_resnet18`, pre-activated (v2, arXiv 1603.05027).
Its norms, as the 4,800 normalised channels tell: one after the stem, none before the first
convolution of the first block, two in every other block, one on every projected shortcut, one
before the head. `resnet26` is the backbone of the residual adapters (Rebuffi et al. 2018, arXiv
1803.10082): every convolution is followed by its norm, and shortcuts have no parameters.
Droppable: the inner channels of each block, in whole groups where norms have groups.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from fedlite.errors import UserError
from fedlite.models import convolution, layers, normalization

STEMS = ("imagenet", "cifar")

_INIT = nn.initializers.he_normal()


class BasicBlock(nn.Module):
    """norm, ReLU, 3x3 convolution, twice, added to a shortcut.

    Attributes:
      channels: of the output (residual width).
      hidden: channels between the convolutions.
      group_size: channels of a normalisation group.
      norm: one of `normalization.NORMS`.
      stride: of the first convolution and of the shortcut.
      normalize_first: False where the input is already normalised.
      convolution: implementation, one of `convolution.IMPLEMENTATIONS`.
      dtype: of the computation.
    """

    channels: int
    hidden: int
    group_size: int
    norm: str = "group"
    stride: int = 1
    normalize_first: bool = True
    convolution: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, ceil(h / stride), ceil(w / stride), channels]."""
        conv, norm = _conv(self), _norm(self, mask, train)
        strides = (self.stride, self.stride)
        y = nn.relu(norm(x, "norm1")) if self.normalize_first else x
        y = conv(self.hidden, (3, 3), strides, name="conv1")(y)
        y = conv(self.channels, (3, 3), name="conv2")(nn.relu(norm(y, "norm2")))
        if x.shape != y.shape:
            x = norm(conv(self.channels, (1, 1), strides, name="shortcut_conv")(x), "shortcut_norm")
        return x + y


class PlainShortcutBlock(nn.Module):
    """3x3 convolution, norm, ReLU, 3x3 convolution, norm, added to a shortcut, ReLU.

    The shortcut is the input, averaged over strides and filled up with channels of zeros.

    Attributes:
      channels: of the output (residual width), at least those of the input.
      hidden: channels between the convolutions.
      group_size: channels of a normalisation group.
      norm: one of `normalization.NORMS`.
      stride: of the first convolution and of the shortcut.
      convolution: implementation, one of `convolution.IMPLEMENTATIONS`.
      dtype: of the computation.
    """

    channels: int
    hidden: int
    group_size: int
    norm: str = "group"
    stride: int = 1
    convolution: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, ceil(h / stride), ceil(w / stride), channels]."""
        conv, norm = _conv(self), _norm(self, mask, train)
        y = conv(self.hidden, (3, 3), (self.stride, self.stride), name="conv1")(x)
        y = nn.relu(norm(y, "norm1"))
        y = norm(conv(self.channels, (3, 3), name="conv2")(y), "norm2")
        x = _average(x, self.stride)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.channels - x.shape[-1])))
        return nn.relu(x + y)


class _Normalized(nn.Module):
    """What the networks say of their norms, see `fedlite.models`."""

    @property
    def normalization(self) -> str:
        """The kind."""
        return normalization.kind(self.norm)

    @property
    def reads_mask(self) -> bool:
        """Whether padded examples would count."""
        return self.norm != "group"


class ResNet26(_Normalized):
    """Stages of blocks whose shortcuts have no parameters; see `resnet26`."""

    num_classes: int
    widths: FrozenDict[str, int]
    stem_width: int
    stage_widths: tuple[int, ...]
    stage_blocks: tuple[int, ...]
    stage_strides: tuple[int, ...]
    group_size: int = 16
    norm: str = "group"
    convolution: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps images [batch, h, w, c] to float32 logits [batch, num_classes].

        `mask` [batch] is 0 for examples that the statistics of a batch leave out.
        """
        layers.check_images(x, "resnet26")
        norm = _norm(self, mask, train)
        x = norm(_conv(self)(self.stem_width, (3, 3), name="stem_conv")(x), "stem_norm")
        for name, channels, stride in _blocks(
            self.stage_widths, self.stage_blocks, self.stage_strides
        ):
            x = PlainShortcutBlock(
                channels,
                self.widths[f"{name}/conv1"] * _unit(self.norm, self.group_size),
                self.group_size,
                self.norm,
                stride,
                self.convolution,
                self.dtype,
                name=name,
            )(x, mask, train)
        return _head(self, x, norm)


def _head(module: nn.Module, x: jax.Array, norm: Callable) -> jax.Array:
    """A norm, ReLU, the mean over places, a dense layer."""
    x = nn.relu(norm(x, "final_norm")).mean((1, 2))
    x = nn.Dense(
        module.num_classes,
        kernel_init=nn.initializers.normal(0.01),
        dtype=module.dtype,
        name="logits",
        dot_general=layers.contract,
    )(x)
    return x.astype("float32")


def _average(x: jax.Array, stride: int) -> jax.Array:
    """Means of squares of `stride` pixels; of what there is of a square at the far edges."""
    n, h, w, c = x.shape
    if stride == 1:
        return x
    rows, columns = -(-h // stride), -(-w // stride)
    x = jnp.pad(x, ((0, 0), (0, rows * stride - h), (0, columns * stride - w), (0, 0)))
    x = x.reshape(n, rows, stride, columns, stride, c).sum((2, 4))
    counts = [
        np.minimum(stride, size - stride * np.arange(count))
        for size, count in ((h, rows), (w, columns))
    ]
    return x / np.outer(*counts)[:, :, None].astype(x.dtype)


class ResNet(_Normalized):
    """Stages of basic blocks; see `resnet18_gn`."""

    num_classes: int
    widths: FrozenDict[str, int]
    stage_widths: tuple[int, ...]
    stage_blocks: tuple[int, ...]
    stage_strides: tuple[int, ...]
    group_size: int = 16
    norm: str = "group"
    stem: str = "imagenet"
    convolution: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps images [batch, h, w, c] to float32 logits [batch, num_classes].

        `mask` [batch] is 0 for examples that the statistics of a batch leave out.
        """
        layers.check_images(x, "resnet18_gn")
        norm = _norm(self, mask, train)
        large = self.stem == "imagenet"
        size, strides = ((7, 7), (2, 2)) if large else ((3, 3), (1, 1))
        x = _conv(self)(self.stage_widths[0], size, strides, name="stem_conv")(x)
        x = nn.relu(norm(x, "stem_norm"))
        if large:
            x = convolution.max_pool_general(x, (3, 3), (2, 2), "SAME")
        for name, channels, stride in _blocks(
            self.stage_widths, self.stage_blocks, self.stage_strides
        ):
            x = BasicBlock(
                channels,
                self.widths[f"{name}/conv1"] * _unit(self.norm, self.group_size),
                self.group_size,
                self.norm,
                stride,
                name != "stage1_block1",
                self.convolution,
                self.dtype,
                name=name,
            )(x, mask, train)
        return _head(self, x, norm)


def _conv(module: nn.Module) -> functools.partial:
    return functools.partial(
        layers.Conv,
        use_bias=False,
        kernel_init=_INIT,
        implementation=module.convolution,
        dtype=module.dtype,
    )


def _norm(module: nn.Module, mask: jax.Array | None, train: bool) -> Callable:
    """Maps an array and the name of a layer."""
    return functools.partial(normalization.normalize, module, mask=mask, train=train)


def _unit(norm: str, group_size: int) -> int:
    """Channels that are dropped together."""
    return group_size if norm == "group" else 1


def _blocks(
    widths: tuple[int, ...], blocks: tuple[int, ...], strides: tuple[int, ...]
) -> list[tuple[str, int, int]]:
    """Name, channels and stride of each block; a stage's stride is its first block's."""
    return [
        (f"stage{i}_block{j}", channels, stride if j == 1 else 1)
        for i, (channels, count, stride) in enumerate(zip(widths, blocks, strides, strict=True), 1)
        for j in range(1, count + 1)
    ]


def resnet18_gn(
    *,
    num_classes: int,
    stem: str = "imagenet",
    stage_widths: tuple[int, ...] = (64, 128, 256, 512),
    stage_blocks: tuple[int, ...] = (2, 2, 2, 2),
    stage_strides: tuple[int, ...] = (1, 1, 1, 1),
    group_size: int = 16,
    norm: str = "group",
    convolution: str = "auto",
    dtype: str = "float32",
) -> ResNet:
    """TFF's `create_resnet18` with group normalisation: 11,181,642 parameters with 10 classes.

    TFF's stages keep the resolution that the stem leaves, hence the default strides; with the
    cifar stem use (1, 2, 2, 2). TFF normalises in two groups whatever the width. Here a group has
    `group_size` channels, because a fixed number of groups would mean something else in
    every sub-model; the number of parameters is the same.

    Args:
      num_classes: labels.
      stem: "imagenet" (7x7 convolution of stride 2, 3x3 max-pooling of stride 2) or "cifar"
        (3x3 convolution).
      stage_widths: channels of each stage, whole groups; also the default inner channels.
      stage_blocks: blocks of each stage.
      stage_strides: stride of each stage's first block.
      group_size: channels of a normalisation group, which is one unit of a width
        "stage1_block1/conv1".
      norm: "group"; or batch normalisation as of `normalization.BatchNorm`, where a unit is one
        channel: "batch" by the batch at hand, "running" or "fixed" with running statistics, which
        count as parameters.
      convolution: implementation, one of `convolution.IMPLEMENTATIONS`.
      dtype: of the computation, "float32" or "bfloat16".
    """
    layers.check_choice("stem", stem, STEMS)
    return ResNet(
        num_classes,
        _widths(stage_widths, stage_blocks, stage_strides, norm, group_size),
        stage_widths,
        stage_blocks,
        stage_strides,
        group_size,
        norm,
        stem,
        convolution,
        dtype,
    )


def resnet26(
    *,
    num_classes: int,
    stem_width: int = 32,
    stage_widths: tuple[int, ...] = (64, 128, 256),
    stage_blocks: tuple[int, ...] = (4, 4, 4),
    stage_strides: tuple[int, ...] = (2, 2, 2),
    group_size: int = 16,
    norm: str = "group",
    convolution: str = "auto",
    dtype: str = "float32",
) -> ResNet26:
    """The ResNet-26 of Rebuffi et al. 2018: 5,817,258 parameters with 10 classes.

    5,806,944 of them are 3x3 kernels. Group normalisation has as many parameters as the paper's
    batch normalisation, and no statistics that would have to be sent or kept; with "running", the
    paper's, they are 7,744 more.

    Args:
      num_classes: labels.
      stem_width: channels after the first convolution, whole groups.
      stage_widths: channels of each stage, whole groups, at least those of the one before;
        also the default inner channels.
      stage_blocks: blocks of each stage.
      stage_strides: stride of each stage's first block.
      group_size: channels of a normalisation group, which is one unit of a width
        "stage1_block1/conv1".
      norm: "group"; or batch normalisation as of `normalization.BatchNorm`, where a unit is one
        channel: "batch" by the batch at hand, "running" or "fixed" with running statistics, which
        count as parameters.
      convolution: implementation, one of `convolution.IMPLEMENTATIONS`.
      dtype: of the computation, "float32" or "bfloat16".
    """
    widths = _widths(stage_widths, stage_blocks, stage_strides, norm, group_size)
    _check_groups("stem_width", stem_width, _unit(norm, group_size))
    if list(stage_widths) != sorted(stage_widths) or stem_width > stage_widths[0]:
        raise UserError(
            f"model options 'stem_width' ({stem_width}) and 'stage_widths' {stage_widths} shrink; "
            "shortcuts of zeros only widen"
        )
    return ResNet26(
        num_classes,
        widths,
        stem_width,
        stage_widths,
        stage_blocks,
        stage_strides,
        group_size,
        norm,
        convolution,
        dtype,
    )


def _widths(
    stage_widths: tuple[int, ...],
    stage_blocks: tuple[int, ...],
    stage_strides: tuple[int, ...],
    norm: str,
    group_size: int,
) -> FrozenDict[str, int]:
    """The droppable widths in units, of checked options."""
    layers.check_choice("norm", norm, normalization.NORMS)
    unit = _unit(norm, group_size)
    if not len(stage_widths) == len(stage_blocks) == len(stage_strides) > 0:
        raise UserError(
            "model options 'stage_widths', 'stage_blocks' and 'stage_strides' need one entry a "
            f"stage, got {stage_widths}, {stage_blocks} and {stage_strides}"
        )
    for channels in stage_widths:
        _check_groups("stage_widths", channels, unit)
    blocks = _blocks(stage_widths, stage_blocks, stage_strides)
    return FrozenDict({f"{name}/conv1": channels // unit for name, channels, _ in blocks})


def _check_groups(option: str, channels: int, group_size: int):
    if channels % group_size:
        raise UserError(
            f"model option {option!r} has {channels} channels, which are no whole groups of "
            f"'group_size' {group_size}"
        )
