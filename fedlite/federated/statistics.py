"""Running statistics of batch normalisation among the parameters that clients train.

They follow the batches, see `fedlite.models.normalization`, and the server averages them; neither a
learning rate nor momentum, weight decay, clipped gradients or an adaptive server has a say in that.
"""

import optax

from fedlite.methods import View
from fedlite.models.normalization import is_statistic
from fedlite.wire.message import on_wire


def apart(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser for all but statistics, which move by minus their gradient.

    Args:
      optimizer: of mappings by path.
    """

    def rest(tree):
        return {k: v for k, v in tree.items() if not is_statistic(k)}

    def init(params):
        return optimizer.init(rest(params))

    def update(gradients, state, params=None):
        updates, state = optimizer.update(
            rest(gradients), state, None if params is None else rest(params)
        )
        return {**{k: -g for k, g in gradients.items() if is_statistic(k)}, **updates}, state

    return optax.GradientTransformation(init, update)


def travel(view: View) -> str:
    """What becomes of the statistics in the view that a client receives, for the summary."""
    trained = [on_wire(part) for path, part in view.trained.items() if is_statistic(path)]
    read = [path for path in view.read if is_statistic(path) and ":" not in path]
    known = {"sent": any(trained), "kept by each client": not all(trained), "frozen": bool(read)}
    return " or ".join(what for what, holds in known.items() if holds)
