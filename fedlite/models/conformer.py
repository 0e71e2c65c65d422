"""The Conformer encoder with an output layer for CTC.

Gulati et al. 2020 (arXiv 2005.08100): convolutional subsampling, then blocks of two half-step
feed-forward modules (swish) around self-attention with relative positions and a convolution module.
As in federated dropout for speech recognition (Guliani et al. 2022, arXiv 2110.03634) the
convolution module has group normalisation in place of batch normalisation; its groups have a fixed
number of channels. Droppable in each block: the hidden units of both feed-forward modules, the
attention heads, and the groups of the convolution module; and the channels of both convolutions of
the subsampling.

What lies beyond an utterance's frames changes nothing within them: convolutions read zeros there,
attention doesn't see it, and the statistics of a group leave it out.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from fedlite.errors import UserError
from fedlite.models import layers as layers_lib
from fedlite.models import relative_attention
from fedlite.models.conformer_modules import (
    ConvolutionModule,
    FeedForward,
    Subsampling,
    dense,
    real_frames,
)
from fedlite.models.relative_attention import RelativeAttention

# Options of `conformer` by size. S, M and L are those of the paper's table 1, whose filters have 32
# entries; "bundled" is the one that two cores can train.
_PAPER = {"kernel": 32, "group_size": 16, "attention": "transformer_xl", "dropout": 0.1}
SIZES = {
    "bundled": {},
    "S": {"blocks": 16, "d_model": 144, "heads": 4, "ffn": 576, "subsampling": 144, **_PAPER},
    "M": {"blocks": 16, "d_model": 256, "heads": 4, "ffn": 1024, "subsampling": 256, **_PAPER},
    "L": {"blocks": 17, "d_model": 512, "heads": 8, "ffn": 2048, "subsampling": 512, **_PAPER},
}


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward (section 2.4).

    Attributes:
      ffn1, ffn2: hidden units of the feed-forward modules.
      attention: arguments of `RelativeAttention`.
      convolution: arguments of `ConvolutionModule`.
      dropout: rate.
      dtype: of the computation.
    """

    ffn1: int
    ffn2: int
    attention: FrozenDict
    convolution: FrozenDict
    dropout: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array | None, *, train: bool) -> jax.Array:
        """Maps [batch, length, features] to the same shape; `real` as of `RelativeAttention`."""
        norm = functools.partial(nn.LayerNorm, dtype=self.dtype)
        x = x + 0.5 * FeedForward(self.ffn1, self.dropout, self.dtype, name="ffn1")(x, train=train)
        y = norm(name="attention_norm")(x)
        y = RelativeAttention(dtype=self.dtype, name="attention", **self.attention)(y, real)
        x = x + layers_lib.Dropout(self.dropout)(y, train=train)
        module = ConvolutionModule(
            dropout=self.dropout, dtype=self.dtype, name="conv", **self.convolution
        )
        x = x + module(x, real, train=train)
        x = x + 0.5 * FeedForward(self.ffn2, self.dropout, self.dtype, name="ffn2")(x, train=train)
        return norm(name="norm")(x)


class Conformer(nn.Module):
    """See `conformer`."""

    normalization = "layer, and group in convolution modules"

    num_classes: int
    widths: FrozenDict[str, int]
    d_model: int
    head_size: int
    group_size: int
    kernel: int
    attention: str
    max_distance: int
    dropout: float
    convolution: str = "auto"
    dtype: str = "float32"

    @property
    def blocks(self) -> int:
        """Conformer blocks, of four widths each beside the two of the subsampling."""
        return (len(self.widths) - 2) // 4

    def output_frames(self, frames):
        """Frames of the logits for so many frames of the input, integers of any kind."""
        return ((frames + 1) // 2 + 1) // 2

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, frames: jax.Array | None = None
    ) -> jax.Array:
        """Logits of an utterance's frames.

        Args:
          x: features [batch, frames, mels]; normalised log-mel.
          train: whether dropout is on.
          frames: int32 [batch], the real frames of each; those behind are padding. None: all.

        Returns:
          float32 [batch, output_frames(frames), num_classes]; class 0 is the blank.

        Raises:
          UserError: x is of another form.
        """
        if x.ndim != 3 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise UserError(
                f"a Conformer reads features [batch, frames, mels], got {x.dtype} "
                f"{list(x.shape)}; choose a speech data set or another model"
            )
        subsampling = Subsampling(
            self.widths["subsampling/conv1"],
            self.widths["subsampling/conv2"],
            self.d_model,
            self.convolution,
            self.dtype,
            name="subsampling",
        )
        # Scaled as a Transformer's embeddings are (arXiv 1706.03762, section 3.4). Unscaled, the
        # first blocks drown it, and the model says nothing but blanks for about twice as long.
        y = subsampling(x.astype(self.dtype), frames) * self.d_model**0.5
        y = layers_lib.Dropout(self.dropout)(y, train=train)
        real = None if frames is None else real_frames(self.output_frames(frames), y.shape[1])
        for i in range(1, self.blocks + 1):
            attention = {
                "heads": self.widths[f"block{i}/heads"],
                "head_size": self.head_size,
                "kind": self.attention,
                "max_distance": self.max_distance,
            }
            convolution = {
                "groups": self.widths[f"block{i}/conv"],
                "group_size": self.group_size,
                "kernel": self.kernel,
                "convolution": "xla" if self.convolution == "xla" else "auto",
            }
            y = ConformerBlock(
                self.widths[f"block{i}/ffn1"],
                self.widths[f"block{i}/ffn2"],
                FrozenDict(attention),
                FrozenDict(convolution),
                self.dropout,
                self.dtype,
                name=f"block{i}",
            )(y, real, train=train)
        return dense(self.num_classes, "logits", self.dtype)(y).astype("float32")


def conformer(
    *,
    num_classes: int,
    blocks: int = 2,
    d_model: int = 64,
    heads: int = 4,
    ffn: int = 256,
    kernel: int = 9,
    group_size: int = 8,
    subsampling: int = 32,
    attention: str = "bias",
    max_distance: int = 64,
    dropout: float = 0.0,
    convolution: str = "auto",
    dtype: str = "float32",
) -> Conformer:
    """A Conformer for CTC; by default the one that two cores can train.

    The paper's sizes are in `SIZES`. Conformer-L's blocks have 17 x 6,324,224 = 107,511,808
    parameters.

    Args:
      num_classes: size of the vocabulary with the blank, which is class 0.
      blocks: block i has the widths block{i}/ffn1, block{i}/heads, block{i}/conv (groups) and
        block{i}/ffn2.
      d_model: residual width, and channels of the convolution modules.
      heads: attention heads of each block, of d_model / heads features each.
      ffn: hidden units of each feed-forward module.
      kernel: entries of a depthwise filter.
      group_size: channels of a normalisation group; a divisor of d_model.
      subsampling: channels of the two convolutions that leave every fourth frame, the widths
        subsampling/conv1 and subsampling/conv2.
      attention: one of `relative_attention.KINDS`.
      max_distance: of "bias", in frames of the output.
      dropout: rate after the subsampling and each module and inside feed-forwards.
      convolution: implementation, one of `convolution.IMPLEMENTATIONS`.
      dtype: of the computation, "float32" or "bfloat16".
    """
    for option, value in (("heads", heads), ("group_size", group_size)):
        if d_model % value:
            raise UserError(
                f"model option 'd_model' ({d_model}) is no multiple of {option!r} ({value})"
            )
    if not 0 <= dropout < 1:
        raise UserError(f"model option 'dropout' is a rate; {dropout} is not in [0, 1)")
    layers_lib.check_choice("attention", attention, relative_attention.KINDS)
    widths = {"subsampling/conv1": subsampling, "subsampling/conv2": subsampling}
    for i in range(1, blocks + 1):
        widths |= {
            f"block{i}/ffn1": ffn,
            f"block{i}/heads": heads,
            f"block{i}/conv": d_model // group_size,
            f"block{i}/ffn2": ffn,
        }
    return Conformer(
        num_classes,
        FrozenDict(widths),
        d_model,
        d_model // heads,
        group_size,
        kernel,
        attention,
        max_distance,
        dropout,
        convolution,
        dtype,
    )
