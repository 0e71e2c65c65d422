"""When federated pruning makes its masks, and how sparse they are (papers.md 3.2).

Lin et al. 2022 (arXiv 2209.06359) compare a constant and a step schedule; the cubic one is Zhu and
Gupta 2017 (arXiv 1710.01878).
"""

from typing import NamedTuple

from fedlite.errors import UserError

SCHEDULES = ("constant", "step", "cubic")


class Turn(NamedTuple):
    """A new mask: the first round that it holds for, and its sparsity."""

    round: int
    sparsity: float


def mask_turns(
    schedule: str,
    sparsity: float,
    prune_from: int,
    steps: int,
    every: int,
    refine_every: int,
    refine_until: int,
) -> list[Turn]:
    """The masks of the prune phase and of the refine phase, in order.

    With x = i / n for prune mask i = 1 ... n, the sparsity is s ("constant"), s x ("step") or
    s (1 - (1 - x)^3) ("cubic").

    Args:
      schedule: one of `SCHEDULES`.
      sparsity: s, of the last prune mask and of all that follow.
      prune_from: round of the first mask.
      steps: n.
      every: rounds from one prune mask to the next.
      refine_every: rounds from the last prune mask to the first refined one, and between these; 0:
        none is refined.
      refine_until: the round before which masks are refined.

    Raises:
      UserError: a number is too small.
    """
    for option, value, least in (
        ("prune_from", prune_from, 0),
        ("steps", steps, 1),
        ("every", every, 1),
        ("refine_every", refine_every, 0),
        ("refine_until", refine_until, 0),
    ):
        if value < least:
            raise UserError(f"federated_pruning.{option} must be at least {least}, not {value}")
    turns = []
    for index in range(steps):
        x = (index + 1) / steps
        share = {"constant": 1.0, "step": x, "cubic": 1 - (1 - x) ** 3}[schedule]
        turns.append(Turn(prune_from + index * every, sparsity * share))
    if refine_every:
        first = turns[-1].round + refine_every
        if first >= refine_until:
            raise UserError(
                f"federated_pruning.refine_until = {refine_until} comes before the first refined "
                f"mask, that of round {first}: set it later, or refine_every to 0"
            )
        refined = range(first, refine_until, refine_every)
        turns += [Turn(number, sparsity) for number in refined]
    return turns
