"""Federated pruning: the server removes the units that matter least; clients train what is left.

Lin et al. 2022 (arXiv 2209.06359). The server keeps the full model, ranks the units of each width
and sends the best of them, as a physically smaller dense model. By the number of the round a run
has phases: prune (masks at rising sparsity), refine (new masks at the final sparsity, in which
units may come back) and fine-tune (the last mask stays).

Of the paper's patterns this is the whole column: one output unit with its bias and the rows that
read it. The whole row (one input unit) at a width tied by a residual sum would need a layer that
gathers its input by index, the half column and half row two dense layers side by side over their
own inputs or outputs, and unstructured masks a dense array: none of these is here. Formulas and
schedules are papers.md 3.2.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedlite.errors import UserError
from fedlite.methods import pruning_scores
from fedlite.methods.algebra import Method
from fedlite.methods.patterns import check_rules, first_match
from fedlite.methods.pruning_mask import Masked, flags
from fedlite.methods.pruning_schedule import SCHEDULES, Turn, mask_turns
from fedlite.methods.registry import register
from fedlite.methods.submodel import Kept, mask, width_names

ALLOCATIONS = ("uniform", "adaptive")
PRUNED = ("keep", "zero")


@register("federated_pruning")
@dataclasses.dataclass(frozen=True)
class FederatedPruning(Method):
    """Server-made masks over units; before the first mask, FedAvg.

    A mask is announced, even one that changed nothing, with the broadcast of the first round that
    it holds for: a bit a unit, in whole bytes; clients of later rounds are not told again. All
    clients share it, so what is kept is averaged over the cohort, and what is pruned keeps its bits
    on the server.

    Attributes:
      axes: the model's `UnitAxes`.
      shapes: shapes of the server's parameters by path.
      rounds: of the run; no mask is made for later ones.
      sparsity: s, the share of the prunable parameters (those of arrays with a prunable width) that
        the final mask removes; 0 prunes nothing.
      prunable: pairs (pattern, whether): the first pattern that matches a width's whole name wins,
        a width that none matches is kept whole.
      score: one of `pruning_scores.SCORES`; "random" is drawn once.
      decay: of the moving average of the server's aggregate that some scores use.
      allocation: how widths share the sparsity: "uniform", the same share of units in each, or
        "adaptive", by a threshold on score / mean score of the width.
      least_share: of a width's units that "adaptive" leaves in any case.
      schedule: sparsity of prune mask i = 1 ... n: "constant", s; "step", s i / n; "cubic",
        s (1 - (1 - i / n)^3).
      prune_from: round of the first mask.
      steps: n, masks of the prune phase.
      every: rounds from one prune mask to the next.
      refine_every: rounds from the last prune mask to the first refined one, and between these; 0:
        none.
      refine_until: the round at which fine-tuning begins: masks are refined before it.
      pruned: "keep", a pruned unit may come back with the values that it had, or "zero", its values
        count as 0 from then on, which have no score (and no gradient): it never does. On the server
        it keeps its bits in either case; `deployed` leaves it out.
    """

    shrinks_later = True

    axes: Any
    shapes: Mapping[str, tuple[int, ...]]
    rounds: int
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
        for option, known in {**choices, "pruned": PRUNED}.items():
            value = getattr(self, option)
            if value not in known:
                raise UserError(
                    f"federated_pruning.{option} must be one of {', '.join(known)}, not {value!r}"
                )
        self._masks()
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
        check_rules(self.prunable, width_names(self.axes), "federated_pruning.prunable", bool)
        if not self.widths:
            raise UserError("federated_pruning.prunable leaves no width to prune: allow one")
        if self.sparsity:
            # An unreachable sparsity is refused now and not in the middle of the run.
            flat = {width: np.ones(units) for width, units in self.widths.items()}
            self.counts(self.sparsity, flat)

    @property
    def widths(self) -> dict[str, int]:
        """Prunable units by width."""
        totals = self.axes.widths(self.shapes)
        return {w: totals[w] for w in sorted(totals) if first_match(self.prunable, w, False)}

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All masks of the run, in order."""
        turns = self._masks() if self.sparsity else []
        return tuple(turn for turn in turns if turn.round < self.rounds)

    def _masks(self) -> list[Turn]:
        phases = (self.prune_from, self.steps, self.every, self.refine_every, self.refine_until)
        return mask_turns(self.schedule, self.sparsity, *phases)

    def counts(self, sparsity: float, scores: Mapping[str, Any]) -> dict[str, int]:
        """Kept units by prunable width, on the host; "uniform" does not look at the scores."""
        target = pruning_scores.pruned_size(self.axes, self.shapes, self.widths, sparsity)
        if self.allocation == "uniform":
            return pruning_scores.uniform_counts(self.axes, self.shapes, self.widths, target)
        least = {w: max(1, math.ceil(self.least_share * n)) for w, n in self.widths.items()}
        return pruning_scores.adaptive_counts(self.axes, self.shapes, scores, least, target)

    def init(self, key, view):
        """The number of the round, the scores behind the mask, and the average aggregate."""
        if not self.sparsity:
            return ()
        parts = {**view.read, **view.trained}
        values = {path: part.value for path, part in parts.items() if ":" not in path}
        average = {}
        if self.score in pruning_scores.BY_UPDATE:
            average = {path: jnp.zeros(shape) for path, shape in self.shapes.items()}
        if self.score == "random":
            scores = pruning_scores.random_scores(key, self.widths)
        else:
            scores = pruning_scores.unit_scores(self.score, self.axes, self.widths, values, average)
        return {"round": jnp.int32(0), "scores": scores, "average": average}

    def revise(self, state, key, params, aggregate, report):
        """Nothing is pruned yet."""
        return self.rescored(state, params, aggregate, {})

    def rescored(self, state, params, aggregate, kept: Mapping[str, Kept]):
        """The state after a round with `kept` units; scores change where a mask follows."""
        if not self.turns:
            return state
        average = {
            # Of what was pruned nothing was heard.
            path: jnp.where(
                mask(self.axes.of(path), kept, old.ndim),
                self.decay * old + (1 - self.decay) * aggregate.get(path, 0.0),
                old,
            )
            for path, old in state["average"].items()
        }
        number, scores = state["round"] + 1, state["scores"]
        if self.score != "random":
            fresh = pruning_scores.unit_scores(self.score, self.axes, self.widths, params, average)
            if self.pruned == "zero":
                for width, own in kept.items():
                    fresh[width] = jnp.where(flags(own), fresh[width], -jnp.inf)
            turn = jnp.isin(number, jnp.array([turn.round for turn in self.turns]))
            scores = {width: jnp.where(turn, fresh[width], scores[width]) for width in scores}
        return {"round": number, "scores": scores, "average": average}

    def at(self, round_number, state, recipe):
        """The kept counts of the last mask; its first round, which announces it, by itself."""
        begun = [turn for turn in self.turns if turn.round <= round_number]
        until = min((t.round for t in self.turns[len(begun) :]), default=recipe.until)
        if not begun:
            return self, dataclasses.replace(recipe, until=min(recipe.until, until))
        first = round_number == begun[-1].round
        until = round_number + 1 if first else until
        counts = self.counts(begun[-1].sparsity, state["scores"])
        pruned = tuple((w, n) for w, n in counts.items() if n < self.widths[w])
        recipe = dataclasses.replace(recipe, until=min(recipe.until, until))
        return Masked(self, pruned, first and bool(pruned)), recipe
