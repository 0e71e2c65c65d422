"""FedOBD: clients upload the blocks that changed most, then all of them fine-tune.

Chen et al. 2023 (arXiv 2208.05174, IJCAI 2023), opportunistic block dropout. The parameters are
cut into semantic blocks, such as a layer of a Transformer or a convolution with its norm; a
client ranks them by their mean block difference

    MBD(B) = ||delta_B||_2 / |B|

and uploads them from the largest on, a block that exceeds what is left of the budget of
(1 - lambda) |w| values being skipped for smaller ones. A block that is not sent counts as one that
did not move (papers.md 1.4 rule A). After stage 1 every client takes part in every round of one
epoch, without dropout. The quantiser is a method of its own: "quantize+fedobd" with codec nnadq.
"""

import dataclasses
import fractions
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedlite.errors import UserError
from fedlite.methods.algebra import FOREVER, Method, Update
from fedlite.methods.fedavg import FedAvg
from fedlite.methods.patterns import check_rules
from fedlite.methods.registry import register
from fedlite.models.blocks import semantic_blocks
from fedlite.models.normalization import is_statistic
from fedlite.wire.message import first_on_wire

CHOICES = ("mbd", "norm", "random_blocks", "random_tensors")


@register("fedobd")
@dataclasses.dataclass(frozen=True)
class FedOBD(Method):
    """Opportunistic block dropout in stage 1, fine-tuning by all clients in stage 2.

    Which blocks a client chose is a bit a block, in whole bytes, in the header of its upload;
    random choices follow from a seed that the server knows and cost nothing.

    Attributes:
      shapes: shapes of the server's parameters by path.
      population: number of clients; all take part in stage 2.
      dropout_rate: lambda; at most 1 - lambda of the values in an update are sent.
      blocks: pairs (pattern, name) that override the rules of `fedlite.models.blocks`: the first
        pattern that matches a whole path names its block: (r"(layer\\d+)/.*", r"\\1").
      choice: "mbd"; "norm", the norm not divided by the block's size; "random_blocks" or
        "random_tensors", drawn anew by each client and round.
      stage1_rounds: after so many rounds stage 2 begins; 0: there is no stage 2.
      stage2_rounds: rounds of stage 2, then the run ends. The learning rate of round j of n is
        lr (1 + cos(pi j / n)) / 2: the authors let a schedule of 5 epochs run on, up and down.
      patience, min_delta: stage 2 begins early once the cohort's training loss has not fallen by
        `min_delta` for `patience` rounds; 0: never. (The authors watch the test accuracy.)
    """

    shapes: Mapping[str, tuple[int, ...]]
    population: int
    dropout_rate: float = 0.3
    blocks: tuple[tuple[str, str], ...] = ()
    choice: str = "mbd"
    stage1_rounds: int = 0
    stage2_rounds: int = 0
    patience: int = 0
    min_delta: float = 0.001

    def __post_init__(self):
        if not 0 <= self.dropout_rate < 1:
            raise UserError(f"fedobd.dropout_rate must be in [0, 1), not {self.dropout_rate}")
        if self.choice not in CHOICES:
            raise UserError(f"fedobd.choice must be {' or '.join(CHOICES)}, not {self.choice!r}")
        for option in ("stage1_rounds", "stage2_rounds", "patience", "min_delta"):
            if getattr(self, option) < 0:
                raise UserError(f"fedobd.{option} must not be below 0")
        if not self.stage1_rounds and (self.stage2_rounds or self.patience):
            raise UserError("a stage 2 needs a stage 1 that ends: set fedobd.stage1_rounds")
        check_rules(self.blocks, self.shapes, "fedobd.blocks", str)
        semantic_blocks(self.shapes, self.blocks)

    @property
    def changes_cohort(self) -> bool:
        """In stage 2 all clients take part."""
        return self.stage2_rounds > 0

    def init(self, key, view):
        """With `patience`: the least loss, the rounds since, all rounds, and stage 2's first."""
        if not self.patience:
            return ()
        none, never = jnp.int32(0), jnp.int32(FOREVER)
        return {"best": jnp.float32(jnp.inf), "since": none, "rounds": none, "stage2": never}

    def select(self, state, mine, keys, view):
        """Everything, to train everything; the key is for random choices."""
        return view, (mine, jax.random.fold_in(keys.client, 0))

    def deselect(self, context, update, report):
        """The chosen blocks; a block that is left out claims a change of 0."""
        mine, key = context
        # No dropout is no choice at all, so that it is bit-equal to FedAvg.
        if not self.dropout_rate:
            return update, mine
        members = self._members(update.parts)
        sizes = [sum(update.parts[path].value.size for path in block) for block in members]
        # Exact in decimals: 1 - 0.9 of 10 values is one value.
        budget = math.floor((1 - fractions.Fraction(str(self.dropout_rate))) * sum(sizes))
        if min(sizes) > budget:
            raise UserError(
                f"fedobd: no block fits into the budget of {budget} of {sum(sizes)} values, the "
                f"smallest has {min(sizes)}: lower fedobd.dropout_rate or cut smaller fedobd.blocks"
            )
        chosen = choose(self._scores(members, update, key), sizes, budget)
        parts = {}
        for block, on in zip(members, chosen):
            for path in block:
                part = update.parts[path]
                value, sent = jnp.where(on, part.value, 0), part.sent * on.astype(jnp.int32)
                parts[path] = part._replace(value=value, sent=sent)
        if not self.choice.startswith("random"):
            first = first_on_wire(parts)
            parts[first] = parts[first].with_flags(chosen)
        return Update(parts, update.weight), mine

    def _members(self, paths: Iterable[str]) -> list[tuple[str, ...]]:
        """The paths (or "tag:path"s, which belong where their path does) of each block."""
        if self.choice == "random_tensors":
            return [(path,) for path in sorted(paths)]
        names = semantic_blocks(self.shapes, self.blocks)
        found: dict[str, list[str]] = {}
        for path in sorted(paths):
            found.setdefault(names[path.rpartition(":")[2]], []).append(path)
        return [tuple(found[name]) for name in sorted(found)]

    def _scores(self, members, update, key):
        if self.choice.startswith("random"):
            return jax.random.uniform(key, (len(members),))
        # Running statistics come along with their block: how far they moved is no significance.
        counted = [[update.parts[p].value for p in b if not is_statistic(p)] for b in members]
        zero = jnp.float32(0)
        squares = [sum((jnp.sum(jnp.square(v)) for v in block), zero) for block in counted]
        norms = jnp.sqrt(jnp.stack(squares))
        if self.choice != "mbd":
            return norms
        sizes = [max(sum(v.size for v in block), 1) for block in counted]
        return norms / jnp.array(sizes, jnp.float32)

    def revise(self, state, key, params, aggregate, report):
        """Counts the rounds without a better loss; a round without a client counts as one."""
        if not self.patience:
            return state
        better = (report.loss < state["best"] - self.min_delta) & (report.examples > 0)
        best = jnp.where(better, report.loss, state["best"])
        since, rounds = jnp.where(better, 0, state["since"] + 1), state["rounds"] + 1
        stage2 = jnp.where(since >= self.patience, rounds, state["stage2"])
        return {"best": best, "since": since, "rounds": rounds, "stage2": stage2}

    def at(self, round_number, state, recipe):
        """The stage, and the learning rate of each round of stage 2, where FedAvg is left."""
        if not self.stage1_rounds:
            return self, recipe
        begin = self.stage1_rounds
        # Before round 0 the state tells nothing, and may have no values yet.
        if self.patience and round_number:
            begin = min(begin, int(state["stage2"]))
        if round_number < begin:
            if self.patience:
                # It cannot run out before.
                since = int(state["since"]) if round_number else 0
                begin = min(begin, round_number + self.patience - since)
            return self, dataclasses.replace(recipe, until=min(recipe.until, begin))
        if (position := round_number - begin) >= self.stage2_rounds:
            return FedAvg(), dataclasses.replace(recipe, ended=True)
        lr = recipe.lr * (1 + math.cos(math.pi * position / self.stage2_rounds)) / 2
        recipe = dataclasses.replace(recipe, until=min(recipe.until, round_number + 1))
        return FedAvg(), dataclasses.replace(recipe, clients=self.population, epochs=1, lr=lr)


def choose(scores: Any, sizes: Sequence[int], budget: int):
    """The blocks to send, greedily by score (papers.md 6.2); the first of equals goes first.

    The authors also stop once more than the budget is used, which skipping never lets happen.

    Args:
      scores: float32 [blocks].
      sizes: values of each block.
      budget: values that may be sent.

    Returns:
      bool [blocks].
    """
    sizes = jnp.array(sizes, jnp.int32)
    order = jnp.argsort(-scores, stable=True)

    def take(left, block):
        fits = sizes[block] <= left
        return left - jnp.where(fits, sizes[block], 0), fits

    _, taken = jax.lax.scan(take, jnp.int32(budget), order)
    return jnp.zeros(len(sizes), bool).at[order].set(taken)
