"""The decoder-only Transformer of the federated optimization field guide (arXiv 2107.06917).

Layer normalisation after each residual sum, sinusoidal positions, one embedding for input and
output (google-research/federated, `utils/models/transformer_models.py`). Droppable in each layer:
attention heads and feed-forward units.
"""

import flax.linen as nn
import jax
import numpy as np
from flax.core import FrozenDict

from fedlite.errors import UserError
from fedlite.models import layers

_INIT = nn.initializers.glorot_uniform()


def sinusoidal_positions(length: int, features: int) -> np.ndarray:
    """Position encodings of "Attention is all you need", 3.5 (arXiv 1706.03762).

    Args:
      length: positions, from 0.
      features: of the encoding.

    Returns:
      float32 [length, features]: sin(p / 10000^(2i / features)) at 2i, the cosine at 2i + 1.
    """
    even = np.arange(features) // 2 * 2
    angles = np.arange(length)[:, None] / 10000 ** (even / features)
    return np.where(np.arange(features) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def attention_mask(tokens: jax.Array) -> jax.Array:
    """Who may see whom: a position sees itself and the earlier tokens that are not padding.

    Args:
      tokens: int32 [batch, length]; 0 is padding.

    Returns:
      bool [batch, 1, length, length], True where the query (third axis) sees the key.
    """
    length = tokens.shape[1]
    causal = np.tri(length, dtype=bool)
    # Itself always: a softmax over no key at all would spread over the future.
    mask = (causal & (tokens != 0)[:, None]) | np.eye(length, dtype=bool)
    return mask[:, None]


class SelfAttention(nn.Module):
    """Multi-head self-attention with `heads` heads of `head_size`; biases everywhere.

    Parameters: query, key, value kernels [features, heads, head_size] and out [heads, head_size,
    features].
    """

    heads: int
    head_size: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps [batch, length, features] to the same shape; `mask` as of `attention_mask`."""
        query, key, value = (
            nn.DenseGeneral(
                (self.heads, self.head_size),
                kernel_init=_INIT,
                dtype=self.dtype,
                name=name,
                dot_general=layers.contract,
            )(x)
            for name in ("query", "key", "value")
        )
        y = jax.nn.dot_product_attention(query, key, value, mask=mask)
        return nn.DenseGeneral(
            x.shape[-1],
            axis=(-2, -1),
            kernel_init=_INIT,
            dtype=self.dtype,
            name="out",
            dot_general=layers.contract,
        )(y)


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each with dropout, residual sum and layer normalisation."""

    heads: int
    head_size: int
    ffn: int
    dropout: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
        """Maps [batch, length, features] to the same shape; `mask` as of `attention_mask`."""
        y = SelfAttention(self.heads, self.head_size, self.dtype, name="attention")(x, mask)
        y = layers.Dropout(self.dropout)(y, train=train)
        x = nn.LayerNorm(dtype=self.dtype, name="norm1")(x + y)
        y = nn.Dense(
            self.ffn, kernel_init=_INIT, dtype=self.dtype, name="ffn1", dot_general=layers.contract
        )(x)
        y = nn.Dense(
            x.shape[-1],
            kernel_init=_INIT,
            dtype=self.dtype,
            name="ffn2",
            dot_general=layers.contract,
        )(nn.relu(y))
        y = layers.Dropout(self.dropout)(y, train=train)
        return nn.LayerNorm(dtype=self.dtype, name="norm2")(x + y)


class TransformerLm(nn.Module):
    """A causal language model; see `word_transformer`."""

    normalization = "layer"

    num_classes: int
    widths: FrozenDict[str, int]
    embed: int
    d_model: int
    head_size: int
    dropout: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps tokens [batch, length] to float32 logits [batch, length, num_classes]."""
        layers.check_tokens(x, "a Transformer")
        mask = attention_mask(x)
        embed = nn.Embed(self.num_classes, self.embed, dtype=self.dtype, name="embed")
        y = embed(x) * self.embed**0.5
        y = y + sinusoidal_positions(x.shape[1], self.embed).astype(self.dtype)
        y = nn.Dense(
            self.d_model,
            kernel_init=_INIT,
            dtype=self.dtype,
            name="in_projection",
            dot_general=layers.contract,
        )(y)
        y = layers.Dropout(self.dropout)(y, train=train)
        for i in range(1, len(self.widths) // 2 + 1):
            y = TransformerLayer(
                self.widths[f"layer{i}/heads"],
                self.head_size,
                self.widths[f"layer{i}/ffn"],
                self.dropout,
                self.dtype,
                name=f"layer{i}",
            )(y, mask, train=train)
        y = nn.Dense(
            self.embed,
            kernel_init=_INIT,
            dtype=self.dtype,
            name="out_projection",
            dot_general=layers.contract,
        )(y)
        return embed.attend(y).astype("float32")


def word_transformer(
    *,
    num_classes: int,
    layers: int = 1,
    embed: int = 96,
    d_model: int = 512,
    heads: int = 8,
    ffn: int = 2048,
    dropout: float = 0.1,
    dtype: str = "float32",
) -> TransformerLm:
    """The field guide's Stack Overflow model: 4,211,680 parameters with a vocabulary of 10,004.

    Each further layer adds 3,152,384. Unlike there, attention also ignores padding, which
    changes nothing where padding trails.

    Args:
      num_classes: size of the vocabulary.
      layers: Transformer layers; layer i has the widths layer{i}/heads and layer{i}/ffn.
      embed: size of the embedding, which is also the output layer.
      d_model: residual width.
      heads: attention heads of each layer, of d_model / heads features each.
      ffn: feed-forward units of each layer.
      dropout: rate after the embedding, attention and feed-forward.
      dtype: of the computation, "float32" or "bfloat16".
    """
    if d_model % heads:
        raise UserError(f"model option 'd_model' ({d_model}) is no multiple of 'heads' ({heads})")
    if not 0 <= dropout < 1:
        raise UserError(f"model option 'dropout' is a rate; {dropout} is not in [0, 1)")
    widths = {}
    for i in range(1, layers + 1):
        widths |= {f"layer{i}/heads": heads, f"layer{i}/ffn": ffn}
    head_size = d_model // heads
    return TransformerLm(num_classes, FrozenDict(widths), embed, d_model, head_size, dropout, dtype)


def char_transformer(
    *,
    num_classes: int,
    layers: int = 2,
    embed: int = 32,
    d_model: int = 128,
    heads: int = 4,
    ffn: int = 512,
    dropout: float = 0.1,
    dtype: str = "float32",
) -> TransformerLm:
    """`word_transformer` at a size for Shakespeare's characters: 407,776 with a vocabulary of 90.

    Args:
      num_classes: size of the vocabulary.
      layers: Transformer layers; layer i has the widths layer{i}/heads and layer{i}/ffn.
      embed: size of the embedding, which is also the output layer.
      d_model: residual width.
      heads: attention heads of each layer, of d_model / heads features each.
      ffn: feed-forward units of each layer.
      dropout: rate after the embedding, attention and feed-forward.
      dtype: of the computation, "float32" or "bfloat16".
    """
    return word_transformer(
        num_classes=num_classes,
        layers=layers,
        embed=embed,
        d_model=d_model,
        heads=heads,
        ffn=ffn,
        dropout=dropout,
        dtype=dtype,
    )
