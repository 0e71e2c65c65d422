"""Pre-activation residual networks (v2, arXiv 1603.05027) with group normalisation.

`resnet18_gn` is TensorFlow Federated's `create_resnet18`. Its norms, as the 4,800 normalised
channels tell: one after the stem, none before the first convolution of the first block, two in
every other block, one on every projected shortcut, one before the head. Droppable: the
inner channels of each block, in whole normalisation groups.
"""

import functools

import flax.linen as nn
import jax
from flax.core import FrozenDict

from fedlite.errors import UserError
from fedlite.models import convolution, layers

STEMS = ("imagenet", "cifar")

_INIT = nn.initializers.he_normal()


class BasicBlock(nn.Module):
    """norm, ReLU, 3x3 convolution, twice, added to a shortcut.

    Attributes:
      channels: of the output (residual width).
      hidden: channels between the convolutions.
      group_size: channels of a normalisation group.
      stride: of the first convolution and of the shortcut.
      normalize_first: False where the input is already normalised.
      convolution: implementation, one of `convolution.IMPLEMENTATIONS`.
      dtype: of the computation.
    """

    channels: int
    hidden: int
    group_size: int
    stride: int = 1
    normalize_first: bool = True
    convolution: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, c] to [batch, ceil(h / stride), ceil(w / stride), channels]."""
        conv = _conv(self)
        norm = functools.partial(layers.group_norm, self.group_size, dtype=self.dtype)
        strides = (self.stride, self.stride)
        y = nn.relu(norm(name="norm1")(x)) if self.normalize_first else x
        y = conv(self.hidden, (3, 3), strides, name="conv1")(y)
        y = conv(self.channels, (3, 3), name="conv2")(nn.relu(norm(name="norm2")(y)))
        if x.shape != y.shape:
            x = conv(self.channels, (1, 1), strides, name="shortcut_conv")(x)
            x = norm(name="shortcut_norm")(x)
        return x + y


class ResNet(nn.Module):
    """Stages of basic blocks; see `resnet18_gn`."""

    num_classes: int
    widths: FrozenDict[str, int]
    stage_widths: tuple[int, ...]
    stage_blocks: tuple[int, ...]
    stage_strides: tuple[int, ...]
    group_size: int = 16
    stem: str = "imagenet"
    convolution: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images [batch, h, w, c] to float32 logits [batch, num_classes]."""
        layers.check_images(x, "resnet18_gn")
        norm = functools.partial(layers.group_norm, self.group_size, dtype=self.dtype)
        large = self.stem == "imagenet"
        size, strides = ((7, 7), (2, 2)) if large else ((3, 3), (1, 1))
        x = _conv(self)(self.stage_widths[0], size, strides, name="stem_conv")(x)
        x = nn.relu(norm(name="stem_norm")(x))
        if large:
            x = convolution.max_pool_general(x, (3, 3), (2, 2), "SAME")
        for name, channels, stride in _blocks(
            self.stage_widths, self.stage_blocks, self.stage_strides
        ):
            x = BasicBlock(
                channels,
                self.widths[f"{name}/conv1"] * self.group_size,
                self.group_size,
                stride,
                name != "stage1_block1",
                self.convolution,
                self.dtype,
                name=name,
            )(x)
        x = nn.relu(norm(name="final_norm")(x)).mean((1, 2))
        init = nn.initializers.normal(0.01)
        x = nn.Dense(
            self.num_classes,
            kernel_init=init,
            dtype=self.dtype,
            name="logits",
            dot_general=layers.contract,
        )(x)
        return x.astype("float32")


def _conv(module: BasicBlock | ResNet) -> functools.partial:
    return functools.partial(
        layers.Conv,
        use_bias=False,
        kernel_init=_INIT,
        implementation=module.convolution,
        dtype=module.dtype,
    )


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
      convolution: implementation, one of `convolution.IMPLEMENTATIONS`.
      dtype: of the computation, "float32" or "bfloat16".
    """
    layers.check_choice("stem", stem, STEMS)
    if not len(stage_widths) == len(stage_blocks) == len(stage_strides) > 0:
        raise UserError(
            "model options 'stage_widths', 'stage_blocks' and 'stage_strides' need one entry a "
            f"stage, got {stage_widths}, {stage_blocks} and {stage_strides}"
        )
    for channels in stage_widths:
        if channels % group_size:
            raise UserError(
                f"model option 'stage_widths' has {channels} channels, which are no whole "
                f"groups of 'group_size' {group_size}"
            )
    widths = {
        f"{name}/conv1": channels // group_size
        for name, channels, _ in _blocks(stage_widths, stage_blocks, stage_strides)
    }
    return ResNet(
        num_classes,
        FrozenDict(widths),
        stage_widths,
        stage_blocks,
        stage_strides,
        group_size,
        stem,
        convolution,
        dtype,
    )
