"""DP-FedAvg: federated averaging with user-level differential privacy, amplified by sampling.

McMahan et al. 2018 (arXiv 1710.06963), algorithm 1 with flat clipping and a fixed denominator.
Every client's update is clipped to an L2 norm C over all that it trains; the sum gets Gaussian
noise of standard deviation z C, drawn once for the cohort; the denominator is the expected size of
the cohort, whoever came. Epsilon counts the chance of being drawn, so cohorts must be drawn anew
each round: Poisson or of a fixed size.

With `adaptive` the norm follows a quantile of the clients' norms: Andrew et al. 2021 (arXiv
1905.03871), algorithm 1. Clip and noise stand outside (left of) whatever makes the update smaller,
and act on the decoded update, as the server does that sees it.

For whom and against what: see `fedlite.privacy`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from fedlite.errors import UserError
from fedlite.methods.algebra import Method, Sums, Update
from fedlite.methods.registry import register
from fedlite.privacy import accounting, options
from fedlite.privacy.clipping import clip_parts, fixed_claim
from fedlite.wire import Part

# How many clients stayed within the norm, minus half of the cohort.
_COUNT = "count:clip"


@register("dp_fedavg")
@dataclasses.dataclass(frozen=True)
class DpFedAvg(Method):
    """Clips each update, adds Gaussian noise to the sum, divides by a fixed number.

    Attributes:
      population, clients_per_round, rounds, participation, weighting: of the experiment.
      clip: C, the L2 norm of a client's update; the first one where it is adaptive.
      noise_multiplier: z; 0 for no noise and no guarantee.
      epsilon: where above 0, the noise multiplier is not `noise_multiplier` but the least that
        keeps the whole run within this epsilon.
      delta: of the guarantee; 0 for population^-1.1.
      adaptive: whether C follows a quantile.
      quantile: share of the clients whose update is to stay within C.
      clip_learning_rate: of log C.
      count_noise: standard deviation of the noise on the number of clients within C; 0 for
        clients_per_round / 20 (the paper's) or z, whichever is more. The updates' noise grows so
        that both queries together cost z.
    """

    population: int
    clients_per_round: int
    rounds: int
    participation: str
    weighting: str
    clip: float = 1.0
    noise_multiplier: float = 1.0
    epsilon: float = 0.0
    delta: float = 0.0
    adaptive: bool = False
    quantile: float = 0.5
    clip_learning_rate: float = 0.2
    count_noise: float = 0.0

    bounds_updates = True

    def __post_init__(self):
        options.check("dp_fedavg", self)
        if self.participation not in accounting.SAMPLED:
            raise UserError(
                f"dp_fedavg counts on cohorts that are drawn at random, and participation is "
                f"{self.participation!r}: set participation = 'poisson' or 'uniform', or take "
                "dp_ftrl"
            )
        if not 0 < self.quantile < 1:
            raise UserError(f"dp_fedavg.quantile must be above 0 and below 1, not {self.quantile}")
        if not self.clip_learning_rate > 0:
            raise UserError(
                f"dp_fedavg.clip_learning_rate must be above 0, not {self.clip_learning_rate}"
            )
        if self.adaptive and math.isinf(self.clip):
            raise UserError("dp_fedavg.clip is infinite, which no quantile can mend: take a bound")
        noise = self.noise
        if self.adaptive and noise and not self._count_noise > noise / 2:
            raise UserError(
                f"dp_fedavg.count_noise = {self.count_noise} leaves nothing for the updates: take "
                f"more than half of the noise multiplier {noise:.4g}"
            )

    @property
    def noise(self) -> float:
        """The noise multiplier z of a round, all queries together."""
        if not self.epsilon:
            return self.noise_multiplier
        return accounting.solve_noise_multiplier(
            lambda z: self._epsilon(z, self.rounds), self.epsilon
        )

    @property
    def update_noise(self) -> float:
        """The noise multiplier of the updates: (z^-2 - (2 count_noise)^-2)^(-1/2), theorem 1."""
        if not self.adaptive or not self.noise:
            return self.noise
        return (self.noise**-2 - (2 * self._count_noise) ** -2) ** -0.5

    @property
    def _count_noise(self) -> float:
        if not self.noise:
            return 0.0
        return self.count_noise or max(self.clients_per_round / 20, self.noise)

    def init(self, key, view):
        """The norm, where it is adaptive."""
        return jnp.float32(self.clip) if self.adaptive else ()

    def select(self, state, mine, keys, view):
        """Everything is sent; the norm is at hand when the update is back."""
        return view, (mine, state)

    def deselect(self, context, update, report):
        """The clipped update with weight 1, and whether it was within the norm."""
        mine, norm = context
        norm = norm if self.adaptive else self.clip
        parts, within = clip_parts(update.parts, norm, "dp_fedavg")
        if self.adaptive:
            # The server that clips knows it: nothing travels.
            parts[_COUNT] = Part(within.astype(jnp.float32) - 0.5, bits=0)
        return Update(parts, jnp.ones_like(update.weight)), mine

    def combine(self, state, key, sums: Sums, report):
        """Noise for the cohort's sum, and the fixed denominator."""
        from jax_privacy import noise_addition

        update_key, count_key = jax.random.split(key)
        total = dict(sums.total)
        count = total.pop(_COUNT, None)
        if self.noise:
            std = self.update_noise * (state if self.adaptive else self.clip)
            privatizer = noise_addition.gaussian_privatizer(stddev=std, prng_key=update_key)
            total, _ = privatizer.update(total, privatizer.init(total))
        if count is not None:
            total[_COUNT] = count + self._count_noise * jax.random.normal(count_key)
        return Sums(total, fixed_claim(total, self.clients_per_round))

    def revise(self, state, key, params, aggregate, report):
        """C <- C exp(-rate (share within C - quantile))."""
        if not self.adaptive:
            return state
        share = aggregate[_COUNT] + 0.5
        return state * jnp.exp(-self.clip_learning_rate * (share - self.quantile))

    def privacy(self, rounds):
        """Of the rounds so far."""
        uniform = self.participation == "uniform"
        return options.guarantee(
            epsilon=self._epsilon(self.noise, rounds),
            delta=self._delta,
            mechanism="gaussian, adaptive clip" if self.adaptive else "gaussian",
            noise_multiplier=self.noise,
            clip=self.clip,
            participation=self.participation,
            adjacency="is replaced by another" if uniform else "is there or is not",
            proviso=(
                "each round's cohort is secret, of a fixed size, drawn without replacement"
                if uniform
                else "each round's cohort is secret, each client in it independently"
            ),
        )

    @property
    def _delta(self) -> float:
        return self.delta or accounting.default_delta(self.population)

    def _epsilon(self, noise_multiplier: float, rounds: int) -> float:
        return accounting.sampled_epsilon(
            self.participation,
            self.population,
            self.clients_per_round,
            noise_multiplier,
            rounds,
            self._delta,
        )
