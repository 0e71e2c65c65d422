"""SMAFD: the server learns by the training loss which parameter tensors to train.

Single-model adaptive federated dropout (Bouacida et al. 2020, arXiv 2011.04050) as the authors of
FedOBD implement it for their comparison (papers.md 6.7): the unit of choice is a whole tensor,
where the original drops activations or filters. As long as the cohort's training loss falls, the
chosen set A stays, and its tensors are scored by the relative fall; when it does not, another A is
drawn by the scores.
"""

import dataclasses
import fractions
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedlite.errors import UserError
from fedlite.methods.algebra import Method, Update
from fedlite.methods.registry import register
from fedlite.wire.message import first_on_wire


@register("smafd")
@dataclasses.dataclass(frozen=True)
class SMAFD(Method):
    """Sends a chosen set of tensors.

    Clients train all tensors and upload those of the set. The others stay as they are on the
    server. The set travels as a bit a tensor, in whole bytes, with the broadcast.

    Attributes:
      rate: the set is drawn until it has 1 - rate of the values; it may have more by a part of its
        last tensor.
      stale: whether clients receive the set alone and go on from their own values elsewhere, which
        a store keeps; before its first round a client has its own random initialisation: the
        server's, the entries of each tensor shuffled. False: they receive, and are charged, the
        whole model.
    """

    rate: float = 0.3
    stale: bool = True

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise UserError(f"smafd.rate must be at least 0 and below 1, not {self.rate}")

    def init(self, key, view):
        """Scores by path and the last loss, all 0, and the first set, drawn without scores."""
        scores = {path: jnp.float32(0) for path in sorted(view.trained)}
        sizes = {path: part.value.size for path, part in view.trained.items()}
        return {
            "scores": scores,
            "loss": jnp.float32(0),
            "chosen": self._draw(key, scores, sizes),
        }

    def init_client(self, key, view):
        """The client's own values."""
        if not self.stale or not self.rate:
            return {}
        return {
            path: jax.random.permutation(
                jax.random.fold_in(key, index), view.trained[path].value.ravel()
            ).reshape(view.trained[path].value.shape)
            for index, path in enumerate(sorted(view.trained))
        }

    def select(self, state, mine, keys, view):
        """The chosen tensors, and the client's own elsewhere."""
        if not self.rate:
            return view, (mine, None, None)
        trained = dict(view.trained)
        chosen = state["chosen"]
        if self.stale:
            for path, on in chosen.items():
                part = trained[path]
                trained[path] = part._replace(
                    value=jnp.where(on, part.value, mine[path]), sent=part.sent * on.astype(int)
                )
        first = first_on_wire(trained)
        flags = jnp.stack([chosen[path] for path in sorted(chosen)])
        trained[first] = trained[first].with_flags(flags)
        started = {path: trained[path].value for path in mine}
        return view._replace(trained=trained), (mine, chosen, started)

    def deselect(self, context, update, report):
        """The chosen tensors; the client keeps what it trained of all."""
        mine, chosen, started = context
        if chosen is None:
            return update, mine
        parts = dict(update.parts)
        for path, on in chosen.items():
            part = parts[path]
            parts[path] = part._replace(
                value=jnp.where(on, part.value, 0),
                cover=part.cover * on.astype(jnp.float32),
                sent=part.sent * on.astype(int),
            )
        trained = {path: started[path] + update.parts[path].value for path in mine}
        return Update(parts, update.weight), trained

    def revise(self, state, key, params, aggregate, report):
        """Scores the set and keeps it if the loss fell (never in round 1), or draws another."""
        if not self.rate:
            return state
        before, chosen = state["loss"], state["chosen"]
        better = (report.loss < before) & (report.examples > 0)
        fall = (before - report.loss) / jnp.where(before > 0, before, 1)
        scores = {
            path: jnp.where(better & chosen[path], fall, score)
            for path, score in state["scores"].items()
        }
        another = self._draw(key, scores, {path: params[path].size for path in scores})
        return {
            "scores": scores,
            "loss": jnp.where(report.examples > 0, report.loss, before),
            "chosen": {path: jnp.where(better, chosen[path], another[path]) for path in chosen},
        }

    def _draw(self, key, scores, sizes):
        paths = sorted(scores)
        sizes = [sizes[path] for path in paths]
        # Exact in decimals.
        target = math.ceil((1 - fractions.Fraction(str(self.rate))) * sum(sizes))
        chosen = draw(key, jnp.stack([scores[path] for path in paths]), sizes, target)
        return dict(zip(paths, chosen))


def draw(key, scores, sizes: Sequence[int], target: int):
    """Draws tensors until they have `target` values.

    In sweeps over all tensors, each is added with its probability, as long as values are missing:
    first those with a score, with probability score / sum of scores, and when all of these are in,
    the others with probability 1 / number of tensors. The sweep that first hits a tensor is
    geometric, so ordering by it is the same draw without the sweeps.

    Args:
      key: of the draw.
      scores: float32 [tensors], at least 0.
      sizes: values of each tensor.
      target: values wanted, at most all.

    Returns:
      bool [tensors].
    """
    sizes = jnp.array(sizes, jnp.int32)
    scored = scores > 0
    uniform = 1 / len(sizes)
    chance = jnp.where(scored, scores / jnp.maximum(jnp.sum(scores), 1e-30), uniform)
    draws = jax.random.uniform(key, scores.shape, minval=jnp.finfo(jnp.float32).tiny)
    sweep = jnp.floor(jnp.log(draws) / jnp.log1p(-chance))
    # Within a sweep, in the order of the tensors: the sort is stable.
    order = jnp.lexsort((sweep, ~scored))
    before = jnp.cumsum(sizes[order]) - sizes[order]
    return jnp.zeros(len(sizes), bool).at[order].set(before < target)
