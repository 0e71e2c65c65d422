"""Federated pruning: the server removes what matters least; clients train what is left.

Lin et al. 2022 (arXiv 2209.06359). The server keeps the full model, ranks groups of parameters and
sends the best of them, as a physically smaller dense model. By the number of the round a run has
phases: prune (masks at rising sparsity), refine (new masks at the final sparsity, in which groups
may come back) and fine-tune (the last mask stays).

The paper's patterns are the whole and the half column and row of a kernel, see
`fedlite.models.compact`. "unit" takes a column together with the rows that read it, at the widths
that no residual sum ties, "unstructured" single entries. Formulas and schedules: papers.md 3.2.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedlite.errors import UserError
from fedlite.methods import pruning_scores
from fedlite.methods.algebra import Method
from fedlite.methods.pruning_groups import PATTERNS, Groups, kept_counts, make_groups
from fedlite.methods.pruning_mask import Compact, Masked
from fedlite.methods.pruning_schedule import SCHEDULES, Turn, mask_turns
from fedlite.methods.pruning_sparse import Sparse
from fedlite.methods.registry import register

ALLOCATIONS = ("uniform", "adaptive")
PRUNED = ("keep", "zero")
_MASKS = {"unit": Masked, "unstructured": Sparse}


@register("federated_pruning")
@dataclasses.dataclass(frozen=True)
class FederatedPruning(Method):
    """Server-made masks over groups; before the first mask, FedAvg.

    A mask is announced, even one that changed nothing, with the broadcast of the first round that
    it holds for: a bit a group, in whole bytes; clients that come later are not charged for it. All
    share it, so what is kept is averaged over the cohort, and what is pruned keeps its bits on the
    server. By themselves biases, norms, embeddings and output layers are not pruned.

    Attributes:
      axes: the model's `UnitAxes`.
      shapes: shapes of the server's parameters by path.
      rounds: of the run; no mask is made for later ones.
      pattern: of a group, one of `pruning_groups.PATTERNS`.
      sparsity: s, the share that the final mask removes of the parameters of arrays with a prunable
        width ("unit"), or of the entries of prunable kernels; 0 prunes nothing.
      prunable: pairs (regular expression, whether): the first that matches the whole name of a
        width ("unit") or path of a kernel wins; what none matches is kept whole.
      score: one of `pruning_scores.SCORES`; "random" is drawn once.
      decay: of the moving average of the server's aggregate that some scores use.
      allocation: how widths, or (halves of) kernels, share the sparsity: "uniform", the same share
        of the groups of each, or "adaptive", by a threshold on score / their mean score.
      least_share: of the groups of each that "adaptive" leaves in any case.
      schedule: sparsity of prune mask i = 1 ... n: "constant", s; "step", s i / n; "cubic",
        s (1 - (1 - i / n)^3).
      prune_from: round of the first mask.
      steps: n, masks of the prune phase.
      every: rounds from one prune mask to the next.
      refine_every: rounds from the last prune mask to the first refined one, and on; 0: none.
      refine_until: the round at which fine-tuning begins: masks are refined before it.
      pruned: "keep", a pruned group may come back with its values, or "zero", they count as 0 from
        then on: it never does. On the server it keeps its bits; `deployed` leaves it out.
    """

    shrinks_later = True

    axes: Any
    shapes: Mapping[str, tuple[int, ...]]
    rounds: int
    pattern: str = "unit"
    sparsity: float = 0.5
    prunable: tuple[tuple[str, bool], ...] = ((".*", True),)
    score: str = "weight_l2"
    decay: float = 0.9
    allocation: str = "uniform"
    least_share: float = 0.1
    schedule: str = "constant"
    prune_from: int = 10
    steps: int = 1
    every: int = 10
    refine_every: int = 0
    refine_until: int = 0
    pruned: str = "keep"

    def __post_init__(self):
        choices = {"score": pruning_scores.SCORES, "allocation": ALLOCATIONS, "schedule": SCHEDULES}
        for option, known in {**choices, "pruned": PRUNED, "pattern": PATTERNS}.items():
            if (value := getattr(self, option)) not in known:
                raise UserError(
                    f"federated_pruning.{option} must be one of {', '.join(known)}, not {value!r}"
                )
        if self.score in pruning_scores.BY_UPDATE and not self.prune_from:
            raise UserError(
                f"federated_pruning.score {self.score} needs a round before the first mask: set "
                "prune_from to 1 or more"
            )
        for option in ("sparsity", "decay", "least_share"):
            if not 0 <= getattr(self, option) < 1:
                raise UserError(f"federated_pruning.{option} must be at least 0 and below 1")
        if self.allocation == "adaptive" and self.score == "movement":
            raise UserError(
                "federated_pruning.score movement has either sign, and adaptive allocation divides "
                "by a mean score: use another"
            )
        self._masks()
        self.groups.check()
        if self.sparsity:
            # An unreachable sparsity is refused now and not in the middle of the run.
            ramps = {name: np.linspace(1, 2, n) for name, n in self.groups.totals.items()}
            self.counts(self.sparsity, ramps)

    @functools.cached_property
    def groups(self) -> Groups:
        """What may be pruned."""
        return make_groups(self.pattern, self.axes, self.shapes, self.prunable)

    @property
    def hides_units(self):
        """See `Method`."""
        return self.pattern not in _MASKS and self.sparsity > 0

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All masks of the run, in order."""
        return tuple(turn for turn in self._masks() if turn.round < self.rounds and self.sparsity)

    def _masks(self) -> list[Turn]:
        phases = (self.prune_from, self.steps, self.every, self.refine_every, self.refine_until)
        return mask_turns(self.schedule, self.sparsity, *phases)

    def counts(self, sparsity: float, scores: Mapping[str, Any]) -> dict[str, int]:
        """Kept groups by name, on the host; "uniform" does not look at the scores."""
        return kept_counts(self.groups, sparsity, self.allocation, self.least_share, scores)

    def init(self, key, view):
        """Number of the round, scores, average aggregate; UserError if `view` was cut before."""
        if not self.sparsity:
            return ()
        parts = {**view.read, **view.trained}
        values = {path: part.value for path, part in parts.items() if ":" not in path}
        if any(value.shape != self.shapes[path] for path, value in values.items()):
            raise UserError(
                "federated_pruning ranks the groups of the whole model, so in the chain of methods "
                "it must stand before the methods that cut it: put it further left"
            )
        told = self.shapes if self.score in pruning_scores.BY_UPDATE else {}
        average = {path: jnp.zeros(shape) for path, shape in told.items()}
        if self.score == "random":
            scores = pruning_scores.random_scores(key, self.groups.totals)
        else:
            scores = self.groups.scores(self.score, values, average)
        state = {"round": jnp.int32(0), "scores": scores, "average": average}
        return {**state, "ranks": self.groups.ranks(scores)}

    def revise(self, state, key, params, aggregate, report):
        """Where a mask follows, scores change; nothing is pruned yet."""
        return self.rescored(state, params, aggregate, {})

    def rescored(self, state, params, aggregate, flags: Mapping[str, Any]):
        """After a round with the groups of `flags` (bool [groups] by name) kept; see `revise`."""
        if not self.turns:
            return state
        average = {
            # Of what was pruned nothing was heard.
            path: jnp.where(
                self.groups.hit(path, flags),
                self.decay * old + (1 - self.decay) * aggregate.get(path, 0.0),
                old,
            )
            for path, old in state["average"].items()
        }
        number, kept = state["round"] + 1, {name: state[name] for name in ("scores", "ranks")}
        turn = jnp.isin(number, jnp.array([turn.round for turn in self.turns]))
        if self.score != "random":

            def fresh():
                scores = self.groups.scores(self.score, params, average)
                if self.pruned == "zero":
                    for name, own in flags.items():
                        scores[name] = jnp.where(own, scores[name], -jnp.inf)
                return {"scores": scores, "ranks": self.groups.ranks(scores)}

            kept = jax.lax.cond(turn, fresh, lambda: kept)
        return {"round": number, "average": average, **kept}

    def at(self, round_number, state, recipe):
        """The kept counts of the last mask."""
        begun = [turn for turn in self.turns if turn.round <= round_number]
        until = min((t.round for t in self.turns[len(begun) :]), default=recipe.until)
        recipe = dataclasses.replace(recipe, until=min(recipe.until, until))
        if not begun:
            return self, recipe
        pruned = self.groups.pruned(self.counts(begun[-1].sparsity, state["scores"]))
        return _MASKS.get(self.pattern, Compact)(self, pruned), recipe
