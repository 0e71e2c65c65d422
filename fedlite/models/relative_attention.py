"""Self-attention that sees how far two positions lie apart, not where they lie.

Transformer-XL (Dai et al. 2019, arXiv 1901.02860, section 3.3), which the Conformer uses, and a
learned bias for each distance and head (Shaw et al. 2018, arXiv 1803.02155, in the scalar form of
Raffel et al. 2020, arXiv 1910.10683), which costs no matrix product.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fedlite.models import layers
from fedlite.models.transformer import sinusoidal_positions

KINDS = ("transformer_xl", "bias")

_INIT = nn.initializers.glorot_uniform()
# Less than any score, and still finite: where nothing is seen, a softmax over -inf is NaN.
_UNSEEN = -1e9


def relative_positions(length: int, features: int) -> np.ndarray:
    """Sinusoidal encodings of the distances i - j = length - 1 down to -(length - 1).

    Args:
      length: positions.
      features: of the encoding.

    Returns:
      float32 [2 length - 1, features]; see `sinusoidal_positions`.
    """
    ahead = sinusoidal_positions(length, features)
    # Sines, at the even places, are odd functions of the distance.
    behind = ahead * np.where(np.arange(features) % 2, 1, -1).astype(np.float32)
    return np.concatenate([ahead[:0:-1], behind])


def relative_shift(scores: jax.Array) -> jax.Array:
    """Scores by distance as scores by position (Dai et al., appendix B).

    Args:
      scores: [..., queries, 2 queries - 1]; the last axis is the distance i - j of query i and key
        j, from queries - 1 down to -(queries - 1).

    Returns:
      [..., queries, keys], as many keys as queries.
    """
    *batch, length, distances = scores.shape
    # A row of `distances` read in rows of one more moves by one place from row to row.
    padded = jnp.pad(scores, [(0, 0)] * (len(batch) + 1) + [(1, 0)])
    flat = padded.reshape(*batch, length * (distances + 1))[..., length:]
    return flat.reshape(*batch, length, distances)[..., :length]


class RelativeAttention(nn.Module):
    """Multi-head self-attention with relative positions.

    The score of query i and key j is, divided by sqrt(head_size),

        transformer_xl   (q_i + u) k_j + (q_i + v) W r_{i-j}
        bias             q_i k_j, to which b_{i-j} is added after the division

    with a bias u and v for each head and W without a bias, as in the paper; r is sinusoidal and b
    learned, from distance -max_distance to max_distance, beyond which all share the last one.

    Parameters: query, key, value kernels [features, heads, head_size] and out [heads, head_size,
    features] with biases; position_projection [features, heads, head_size], content_bias (u) and
    position_bias (v) [heads, head_size]; or relative_bias [2 max_distance + 1, heads].

    Attributes:
      heads: attention heads.
      head_size: features of each.
      kind: one of `KINDS`.
      max_distance: of "bias".
      dtype: of the computation; the softmax is float32.
    """

    heads: int
    head_size: int
    kind: str = "transformer_xl"
    max_distance: int = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """Maps [batch, length, features] to the same shape.

        Args:
          x: the sequence.
          real: bool [batch, length], False for padding, which nobody sees; None: all are real.
        """
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
        length, features = x.shape[1:]
        if self.kind == "bias":
            scores = jnp.einsum("bihe,bjhe->bhij", query, key) * self.head_size**-0.5
            scores = scores + self._bias(length).astype(self.dtype)
        else:
            scores = self._transformer_xl(query, key, features) * self.head_size**-0.5
        scores = scores.astype(jnp.float32)
        if real is not None:
            scores = jnp.where(real[:, None, None], scores, _UNSEEN)
        weights = nn.softmax(scores).astype(self.dtype)
        y = jnp.einsum("bhij,bjhe->bihe", weights, value)
        return nn.DenseGeneral(
            features,
            axis=(-2, -1),
            kernel_init=_INIT,
            dtype=self.dtype,
            name="out",
            dot_general=layers.contract,
        )(y)

    def _transformer_xl(self, query, key, features: int) -> jax.Array:
        """Scores [batch, heads, queries, keys]."""
        shape = (self.heads, self.head_size)
        u, v = (
            self.param(name, nn.initializers.zeros, shape).astype(self.dtype)
            for name in ("content_bias", "position_bias")
        )
        # No "kernel": a kernel's inputs would be all axes but the last.
        projection = self.param("position_projection", _projection_init, (features, *shape))
        r = relative_positions(query.shape[1], features).astype(self.dtype)
        r = jnp.einsum("rd,dhe->rhe", r, projection.astype(self.dtype))
        content = jnp.einsum("bihe,bjhe->bhij", query + u, key)
        return content + relative_shift(jnp.einsum("bihe,rhe->bhir", query + v, r))

    def _bias(self, length: int) -> jax.Array:
        """[heads, queries, keys]."""
        shape = (2 * self.max_distance + 1, self.heads)
        table = self.param("relative_bias", nn.initializers.zeros, shape).T
        missing = max(length - 1 - self.max_distance, 0)
        first = max(self.max_distance - (length - 1), 0)
        by_distance = jnp.pad(
            table[:, first : shape[0] - first], ((0, 0), (missing, missing)), mode="edge"
        )
        rows = jnp.broadcast_to(by_distance[:, None], (self.heads, length, 2 * length - 1))
        return relative_shift(rows)


def _projection_init(key, shape, dtype=jnp.float32) -> jax.Array:
    """Glorot's uniform as for the flat matrix [features, heads * head_size]."""
    flat = (shape[0], shape[1] * shape[2])
    return _INIT(key, flat, dtype).reshape(shape)
