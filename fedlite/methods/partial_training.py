"""FedPT: most parameters are frozen at their random initialisation.

Sidahmed et al. 2021 (arXiv 2110.03450). The server's parameters w = (y, z) are split by name;
only y is sent, trained and returned. z is made from the seed on the device, so it costs the 8
bytes of a seed once in a client's life. Gradients, optimiser state and upload exist for y
alone. With `origin="sent"` z is a backbone that the client receives once (adapters).
"""

import dataclasses
from collections.abc import Mapping

from fedlite.errors import UserError
from fedlite.methods.algebra import Method, View
from fedlite.methods.patterns import check_rules, first_match
from fedlite.methods.registry import register

SEED_BYTES = 8


@register("partial_training")
@dataclasses.dataclass(frozen=True)
class PartialTraining(Method):
    """Freezes parameters by rules on their paths.

    Attributes:
      shapes: shapes of the server's parameters by path.
      freeze: pairs (pattern, frozen): the first pattern that matches a path as a whole says
        whether it is frozen; a path that none matches is trained.
      origin: "seed", the client makes the frozen part itself, or "sent", it receives it once.
      scale: what the frozen kernels' initialisation is multiplied by (not of biases or norms).
    """

    freezes = True

    shapes: Mapping[str, tuple[int, ...]]
    freeze: tuple[tuple[str, bool], ...] = ()
    origin: str = "seed"
    scale: float = 1.0

    def __post_init__(self):
        check_rules(self.freeze, self.shapes, "partial_training.freeze", bool)
        if self.origin not in ("seed", "sent"):
            raise UserError(f"partial_training.origin must be seed or sent, not {self.origin!r}")
        if not self.scale > 0:
            raise UserError(f"partial_training.scale must be above 0, not {self.scale}")
        if all(self.frozen(path) for path in self.shapes):
            raise UserError("partial_training.freeze leaves nothing to train: freeze less")

    def frozen(self, path: str) -> bool:
        """Whether the parameter at `path` is frozen."""
        return bool(first_match(self.freeze, path, False))

    def made_from_seed(self, path: str) -> bool:
        """What is frozen, unless it was sent."""
        return self.origin == "seed" and self.frozen(path)

    def start(self, params):
        """The frozen kernels at the scale that was chosen."""
        if self.scale == 1:
            return params
        return {
            path: value * self.scale if self.frozen(path) and value.ndim > 1 else value
            for path, value in params.items()
        }

    def select(self, state, mine, keys, view: View):
        """Moves the frozen parameters from what is trained to what is read."""
        frozen = [path for path in sorted(view.trained) if self.frozen(path)]
        trained = {path: part for path, part in view.trained.items() if path not in frozen}
        read = dict(view.read)
        for index, path in enumerate(frozen):
            part = view.trained[path]
            if self.origin == "sent":
                once = 4 * part.value.size
            else:
                # One seed makes all frozen parameters: it is charged with the first.
                once = SEED_BYTES if index == 0 else 0
            read[path] = part._replace(bits=0, once=part.once + once)
        return View(trained, read), mine
