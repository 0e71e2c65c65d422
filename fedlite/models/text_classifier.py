"""A Transformer that classifies texts: the IMDB model of FedOBD (arXiv 2208.05174).

Two encoder layers with layer normalisation after each residual sum, then the mean over the
positions. Droppable in each layer: attention heads and feed-forward units.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from fedlite.errors import UserError
from fedlite.models import layers as layers_lib
from fedlite.models.transformer import TransformerLayer, sinusoidal_positions

_INIT = nn.initializers.normal(1.0)


class TransformerClassifier(nn.Module):
    """See `transformer_classifier`."""

    normalization = "layer"

    num_classes: int
    widths: FrozenDict[str, int]
    vocabulary_size: int
    embed: int
    head_size: int
    dropout: float
    padding_mask: bool
    single_logit: bool
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps tokens [batch, length], 0 for padding, to float32 logits [batch, num_classes]."""
        layers_lib.check_tokens(x, "a Transformer")
        mask = (x != 0)[:, None, None] if self.padding_mask else None
        y = nn.Embed(
            self.vocabulary_size,
            self.embed,
            embedding_init=_INIT,
            dtype=self.dtype,
            name="embed",
        )(x)
        y = y + sinusoidal_positions(x.shape[1], self.embed).astype(self.dtype)
        y = layers_lib.Dropout(self.dropout)(y, train=train)
        for i in range(1, len(self.widths) // 2 + 1):
            y = TransformerLayer(
                self.widths[f"layer{i}/heads"],
                self.head_size,
                self.widths[f"layer{i}/ffn"],
                self.dropout,
                self.dtype,
                name=f"layer{i}",
            )(y, mask, train=train)
        real = (x != 0)[..., None] if self.padding_mask else jnp.ones((*x.shape, 1), bool)
        total = jnp.sum(y.astype("float32"), axis=1, where=real)
        y = total / jnp.maximum(jnp.sum(real, axis=1), 1)
        y = nn.Dense(
            1 if self.single_logit else self.num_classes,
            dtype=self.dtype,
            name="logits",
            dot_general=layers_lib.contract,
        )(y)
        if self.single_logit:
            y = jnp.concatenate([jnp.zeros_like(y), y], axis=-1)
        return y.astype("float32")


def transformer_classifier(
    *,
    num_classes: int,
    vocabulary_size: int = 20_004,
    layers: int = 2,
    embed: int = 100,
    heads: int = 5,
    ffn: int = 2048,
    dropout: float = 0.1,
    padding_mask: bool = True,
    single_logit: bool = True,
    dtype: str = "float32",
) -> TransformerClassifier:
    """FedOBD's IMDB model: 905,197 parameters and 100 for each word of the vocabulary.

    The embedding is not scaled before the sinusoidal positions are added, as in the authors'
    code. Dropout acts on the embedding and after attention and feed-forward; PyTorch's encoder
    layer, which they use, has it also on attention weights and hidden units.

    Args:
      num_classes: labels.
      vocabulary_size: token ids, padding and other special ones included.
      layers: encoder layers; layer i has the widths layer{i}/heads and layer{i}/ffn.
      embed: size of the embedding and residual width.
      heads: attention heads of each layer, of embed / heads features each.
      ffn: feed-forward units of each layer.
      dropout: rate.
      padding_mask: whether attention and the mean leave padding out. The authors' code does not.
      single_logit: whether the head has one output z and the logits of two classes are (0, z),
        as in binary cross-entropy; else an output for each class.
      dtype: of the computation, "float32" or "bfloat16".
    """
    if embed % heads:
        raise UserError(f"model option 'embed' ({embed}) is no multiple of 'heads' ({heads})")
    if not 0 <= dropout < 1:
        raise UserError(f"model option 'dropout' is a rate; {dropout} is not in [0, 1)")
    if single_logit and num_classes != 2:
        raise UserError(
            f"model option 'single_logit' is for two classes, not {num_classes}; set it to False"
        )
    widths = {}
    for i in range(1, layers + 1):
        widths |= {f"layer{i}/heads": heads, f"layer{i}/ffn": ffn}
    return TransformerClassifier(
        num_classes,
        FrozenDict(widths),
        vocabulary_size,
        embed,
        embed // heads,
        dropout,
        padding_mask,
        single_logit,
        dtype,
    )
