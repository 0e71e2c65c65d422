"""Normalisation layers by name, and running statistics as parameters that no gradient moves.

A model's option `norm` is one of `NORMS`. Running statistics lie beside the scale and the bias of
their layer, so they are frozen, sent, averaged or kept by a client under the same rules on paths as
every parameter. In training the "gradient" of a statistic is `RATE` times what it exceeds that of
the batch by; `fedlite.federated.statistics` makes optimisers take it as it is.
"""

from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedlite.errors import UserError
from fedlite.models import layers

NORMS = ("group", "batch", "running", "fixed")
# Share of a batch's statistics in the running ones.
RATE = 0.1

_STATISTICS = ("running_mean", "running_var")
_KINDS = {
    "batch": "batch, by the statistics of the batch at hand",
    "running": "batch, with running statistics",
    "fixed": "batch, by running statistics that training leaves alone",
}


def is_statistic(name: str) -> bool:
    """Whether a path, or a "tag:path", is that of running statistics."""
    return name.rpartition("/")[2] in _STATISTICS


def refuse_trained(paths: Iterable[str], method: str) -> None:
    """Raises a UserError where running statistics are among the paths that clients train."""
    for path in paths:
        if is_statistic(path):
            raise UserError(
                f"{method} would make running statistics of norms wrong, and clients train "
                f"{path!r}: set model.norm to 'group' or 'batch', or freeze them by "
                "partial_training"
            )


def kind(norm: str) -> str:
    """What the summary says of a norm."""
    return _KINDS.get(norm, norm)


class BatchNorm(nn.Module):
    """Batch normalisation (arXiv 1502.03167).

    Parameters: scale and bias [channels]; unless `norm` is "batch" also running_mean and
    running_var [channels], 0 and 1 at first.

    Attributes:
      norm: "batch", by the batch at hand in training and at test, as in FedOBD's code: nothing but
        scale and bias is to be aggregated, but what an example gives depends on the batch it is in;
        "running", by the batch at hand in training and by running statistics at test; "fixed", by
        running statistics in both, which no step changes (but they travel, unless
        `partial_training` freezes them).
      dtype: of the output; statistics are float32.
    """

    norm: str = "batch"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Normalises each channel over the other axes, with the biased variance.

        Args:
          x: [batch, h, w, channels].
          mask: [batch], 0 for examples that the statistics leave out; None for none.
          train: whether it is training.

        Returns:
          As x.
        """
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        x, running = x.astype("float32"), None
        if self.norm != "batch":
            running = (
                self.param("running_mean", nn.initializers.zeros, shape),
                self.param("running_var", nn.initializers.ones, shape),
            )
        if self.norm == "batch" or (self.norm == "running" and train):
            mean, variance = _moments(x, mask)
            if running:
                x = _followed(x, running, (mean, variance))
        else:
            # A coarse code on the way may take it below 0.
            mean, variance = jax.lax.stop_gradient((running[0], jnp.maximum(running[1], 0)))
        y = (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias
        return y.astype(self.dtype)


def normalize(
    module: nn.Module,
    x: jax.Array,
    name: str,
    mask: jax.Array | None = None,
    train: bool = False,
) -> jax.Array:
    """A layer of a module with the fields `norm`, `group_size` and `dtype`; see `BatchNorm`."""
    if module.norm == "group":
        return layers.group_norm(module.group_size, name=name, dtype=module.dtype)(x)
    return BatchNorm(module.norm, module.dtype, name=name)(x, mask, train)


def _moments(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    counted = None
    if mask is not None:
        counted = (mask > 0)[:, None, None, None]
        # The mean over no example would be NaN, and so would its gradient.
        counted |= ~jnp.any(counted)
    mean = jnp.mean(x, (0, 1, 2), where=counted)
    return mean, jnp.mean(jnp.square(x - mean), (0, 1, 2), where=counted)


@jax.custom_vjp
def _followed(x, running, batch):
    """x; the gradient of `running` is RATE * (running - batch), whatever the loss."""
    return x


def _forward(x, running, batch):
    return x, jax.tree.map(lambda old, new: RATE * (old - new), running, batch)


def _backward(excess, gradient):
    return gradient, excess, jax.tree.map(jnp.zeros_like, excess)


_followed.defvjp(_forward, _backward)
