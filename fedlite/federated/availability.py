"""Which of the selected clients answer: failures, over-selection and a deadline, simulated.

A production server selects more clients than it needs, and closes the round when enough have
answered or when the time is up (Bonawitz et al. 2019, "Towards Federated Learning at Scale: System
Design", arXiv 1902.01046; 130 % there). Here the server selects ceil(cohort * over_selection)
clients, and of each it is a function of (seed, round, client) alone which of these it becomes:

* failed: it received its download and is never heard of again (chance `failure_rate`);
* straggler: it would answer after the deadline, or after the round was closed because as many
  clients as the cohort has answered before it (only where more were selected). It is told so before
  it uploads;
* counted: all others. The round is theirs alone.

Everyone's download is charged; uploads, updates, losses and new client states are those of the
counted clients. A client takes as long as its local steps (epochs times batches of its examples)
times its slowness exp(spread * z), z standard normal and its own for the whole run. Time is counted
in steps of the median client, so a deadline of 50 lets the median client do 50 steps.

As in production, the counted clients are then no fair sample: fast clients and small ones answer
first. A run with differential privacy may have failures, which don't depend on anyone's data (a
client that fails is one whose contribution is zero, or who was not drawn, so the guarantee stands;
the denominator stays that of the whole cohort), but neither over-selection nor a deadline: with
these one client's data decides whether another one is counted, and more clients are drawn than
the accounting supposes.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from fedlite.errors import UserError


class Answers(NamedTuple):
    """What became of a round's selected clients.

    Attributes:
      counted: bool [selected], in the order in which they were given.
      failed, stragglers: how many of the others were what.
    """

    counted: np.ndarray
    failed: int
    stragglers: int


@dataclasses.dataclass(frozen=True)
class Availability:
    """The model; its defaults are clients that always answer in time.

    Attributes:
      over_selection: clients selected for each that the cohort has, at least 1.
      failure_rate: the chance that a selected client never answers, below 1.
      deadline: in steps of the median client; 0 for none.
      spread: standard deviation of the logarithm of the clients' slowness.
    """

    over_selection: float = 1.0
    failure_rate: float = 0.0
    deadline: float = 0.0
    spread: float = 0.5

    def __post_init__(self):
        for name, value, good, remedy in (
            ("over_selection", self.over_selection, self.over_selection >= 1, "1 or more"),
            ("failure_rate", self.failure_rate, 0 <= self.failure_rate < 1, "0 to below 1"),
            ("deadline", self.deadline, self.deadline >= 0, "0 (none) or more"),
            ("spread", self.spread, self.spread >= 0, "0 or more"),
        ):
            if not (good and math.isfinite(value)):
                raise UserError(f"availability.{name} = {value} is out of range: take {remedy}")

    @property
    def on(self) -> bool:
        """Whether anyone may not be counted."""
        return self.failure_rate > 0 or self.depends_on_data

    @property
    def depends_on_data(self) -> bool:
        """Whether clients' data decide who is counted."""
        return self.over_selection > 1 or self.deadline > 0

    def selected(self, clients: int) -> int:
        """How many clients are selected for a cohort of so many."""
        # 10 * 1.1 is a little more than 11.
        return math.ceil(round(clients * self.over_selection, 6))

    def answers(
        self,
        seed: int,
        round_number: int,
        population: int,
        ids: np.ndarray,
        steps: np.ndarray,
        clients: int,
    ) -> Answers:
        """What becomes of the selected clients of a round.

        Args:
          seed: of the run.
          round_number: from 0.
          population: number of clients.
          ids: int64 [selected], sorted and distinct, as `sample_cohort` gives them.
          steps: int64 [selected], local steps of each.
          clients: of the cohort: answers that the server waits for where more are selected.
        """
        if not self.on:
            return Answers(np.ones(len(ids), bool), 0, 0)
        draws = np.random.default_rng(np.random.SeedSequence([seed, round_number, 0xAB]))
        failed = draws.random(len(ids)) < self.failure_rate
        ties = draws.random(len(ids))
        time = steps * np.exp(self.spread * _slowness(seed, population)[ids].astype(np.float64))
        counted = ~failed
        if self.deadline:
            counted &= time <= self.deadline
        if self.over_selection > 1:
            first = np.lexsort((ties, time))
            late = first[counted[first]][clients:]
            counted[late] = False
        return Answers(counted, int(failed.sum()), int((~failed & ~counted).sum()))


ALWAYS = Availability()


@functools.lru_cache(maxsize=2)
def _slowness(seed: int, population: int) -> np.ndarray:
    """float32 [population], standard normal."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, 0xAC]))
    return generator.standard_normal(population, dtype=np.float32)
