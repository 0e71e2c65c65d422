"""Epsilon for what really took place, by dp-accounting's events and accountants.

The noise multiplier z is the noise's standard deviation over the clip C: how far one client can
move the sum by joining or leaving. Replacing one client by another moves it by 2 C.

* Poisson cohorts (each client with probability q): the sampled Gaussian mechanism, composed over
  the rounds; neighbours differ in one client that is there or not.
* Cohorts of a fixed size, drawn without replacement each round: if the client is drawn, somebody
  else is not, so the sum moves by up to 2 C. dp-accounting's truncated Poisson sampling
  (arXiv 2508.15089) with everybody drawn and all but the cohort left out at random is this very
  mechanism; neighbours differ in one client replaced by another.
* Cyclic cohorts with correlated noise: one Gaussian mechanism for the whole run, whose sensitivity
  covers all of a client's participations; neighbours differ in one client that contributes or
  sends zeros. Nothing is random about who takes part, so nothing is gained by it.

The first two go through privacy loss distributions, the third has a closed form.
"""

import functools
import math
from collections.abc import Callable

from fedlite.errors import UserError

SAMPLED = ("poisson", "uniform")
# Grid of the privacy losses: losses grow with 1/z^2, and so does the grid for small z. The
# accountant rounds up, so that a coarse grid says too much, never too little.
_GRID, _GRID_FROM = 5e-4, 0.5


def default_delta(population: int) -> float:
    """Population^-1.1, a common choice below 1 / population."""
    return population**-1.1


def sampled_event(
    participation: str, population: int, clients: int, noise_multiplier: float, rounds: int
):
    """The `dp_accounting.DpEvent` of `rounds` rounds with sampled cohorts.

    Args:
      participation: "poisson" or "uniform".
      population: number of clients.
      clients: size of a cohort; its mean where it is Poisson.
      noise_multiplier: z, above 0.
      rounds: at least 1.
    """
    import dp_accounting

    if participation == "poisson":
        event = dp_accounting.PoissonSampledDpEvent(
            clients / population, dp_accounting.GaussianDpEvent(noise_multiplier)
        )
    else:
        event = dp_accounting.TruncatedSubsampledGaussianDpEvent(
            population, 1.0, clients, noise_multiplier
        )
    return dp_accounting.SelfComposedDpEvent(event, rounds)


@functools.lru_cache(maxsize=4096)
def sampled_epsilon(
    participation: str,
    population: int,
    clients: int,
    noise_multiplier: float,
    rounds: int,
    delta: float,
) -> float:
    """Epsilon at `delta` of rounds with sampled cohorts; arguments as of `sampled_event`.

    Returns:
      Epsilon: for "poisson" of adding or removing one client, for "uniform" of replacing one;
      infinite without noise.
    """
    if not rounds:
        return 0.0
    if not noise_multiplier:
        return math.inf
    from dp_accounting import NeighboringRelation, pld

    poisson = participation == "poisson"
    effective = noise_multiplier if poisson else noise_multiplier / 2
    accountant = pld.PLDAccountant(
        NeighboringRelation.ADD_OR_REMOVE_ONE if poisson else NeighboringRelation.REPLACE_ONE,
        value_discretization_interval=_GRID * max(1.0, (_GRID_FROM / effective) ** 2),
    )
    event = sampled_event(participation, population, clients, noise_multiplier, rounds)
    return float(accountant.compose(event).get_epsilon(delta))


@functools.lru_cache(maxsize=4096)
def gaussian_epsilon(noise_multiplier: float, sensitivity_squared: float, delta: float) -> float:
    """Epsilon of one Gaussian mechanism: Balle and Wang 2018 (arXiv 1805.06530), theorem 8.

    Args:
      noise_multiplier: z.
      sensitivity_squared: of the mechanism, in units of the clip squared.
      delta: of the guarantee.
    """
    if not sensitivity_squared:
        return 0.0
    if not noise_multiplier:
        return math.inf
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(noise_multiplier / math.sqrt(sensitivity_squared), delta))


def solve_noise_multiplier(epsilon_of: Callable[[float], float], epsilon: float) -> float:
    """The least noise multiplier that keeps to `epsilon`, to 0.1 %, never below it.

    Bisection on its logarithm, so that the answer is the same on every machine.

    Args:
      epsilon_of: epsilon by noise multiplier, falling.
      epsilon: the target, above 0.

    Raises:
      UserError: it would take a multiplier beyond 10^6.
    """
    low = high = 1.0
    while epsilon_of(high) > epsilon:
        low, high = high, 2 * high
        if high > 1e6:
            raise UserError(f"epsilon = {epsilon} is out of reach: take a larger one")
    while low == high or epsilon_of(low) <= epsilon:
        low, high = low / 2, low
        if low < 1e-3:
            return high
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        if epsilon_of(middle) > epsilon:
            low = middle
        else:
            high = middle
    return high
