"""A multi-layer perceptron; with (200, 200) the "2NN" of McMahan et al. 2017 (arXiv 1602.05629).

Droppable: every hidden layer's units.
"""

import flax.linen as nn
import jax
from flax.core import FrozenDict

from fedlite.errors import UserError
from fedlite.models import layers


class Mlp(nn.Module):
    """Dense layers with ReLU between them; see `mlp`."""

    num_classes: int
    widths: FrozenDict[str, int]
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images [batch, h, w, c] to float32 logits [batch, num_classes]."""
        layers.check_images(x, "mlp")
        init = nn.initializers.glorot_uniform()
        axis = (-3, -2, -1)
        for i in range(1, len(self.widths) + 1):
            name = f"dense{i}"
            units = self.widths[name]
            x = nn.DenseGeneral(
                units,
                axis=axis,
                kernel_init=init,
                dtype=self.dtype,
                name=name,
                dot_general=layers.contract,
            )(x)
            x = nn.relu(x)
            axis = -1
        x = nn.Dense(
            self.num_classes,
            kernel_init=init,
            dtype=self.dtype,
            name="logits",
            dot_general=layers.contract,
        )(x)
        return x.astype("float32")


def mlp(*, num_classes: int, hidden: tuple[int, ...] = (200, 200), dtype: str = "float32") -> Mlp:
    """A perceptron for images of any size: 199,210 parameters on 28x28x1 with 10 classes.

    Args:
      num_classes: labels.
      hidden: units of each hidden layer; the widths are dense1, dense2, ...
      dtype: of the computation, "float32" or "bfloat16".
    """
    if not hidden:
        raise UserError("model option 'hidden' is empty; name the units of at least one layer")
    widths = FrozenDict({f"dense{i}": units for i, units in enumerate(hidden, 1)})
    return Mlp(num_classes, widths, dtype)
