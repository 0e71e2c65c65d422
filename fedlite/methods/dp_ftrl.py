"""DP-FTRL: user-level differential privacy by correlated noise, without sampling.

Kairouz et al. 2021 (arXiv 2103.00039), algorithm 1 and DP-FTRLM in appendix B; matrix
factorisation: Choquette-Choo et al. 2023 (arXiv 2306.08153). The noise N_t of the sum over rounds
0 to t is small because rounds share it; the method adds the increment N_t - N_{t-1} to each
round's sum. The server's SGD with momentum mu over that is DP-FTRLM,

    v_t = mu v_{t-1} + (G_t + N_t),    y_{t+1} = y_0 - eta v_t,

with G_t the sum of the gradients, since both sum up the same recursion.

A client that took part twice in nearby rounds would be seen twice in the tree, so clients take
turns: cohorts are cyclic, and a client's participations lie population // clients_per_round rounds
apart. Epsilon covers all of them, and needs no randomness in who takes part.

After a restart a fresh tree begins and the old one's noise stays in the parameters. The paper's
code drops the server's momentum at a restart; here it is kept, which is a function of what is
released already and costs no privacy.

For whom and against what: see `fedlite.privacy`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedlite.errors import UserError
from fedlite.methods.algebra import Method, Sums, Update
from fedlite.methods.registry import register
from fedlite.privacy import accounting, matrix, options, tree
from fedlite.privacy.clipping import clip_parts, fixed_claim

MECHANISMS = ("tree", "tree_efficient", "matrix")
# Bands cost memory, one array like the trained parameters each.
_MOST_BANDS = 16


class Noise(NamedTuple):
    """What the server remembers of the noise.

    Attributes:
      key: uint32, data of the key of the run's noise.
      step: rounds begun, an int32 scalar.
      memory: of the mechanism, by path.
      increment: standard normal increments N_t - N_{t-1} for the round to come, by path.
    """

    key: Any
    step: Any
    memory: dict[str, Any]
    increment: dict[str, Any]


@register("dp_ftrl")
@dataclasses.dataclass(frozen=True)
class DpFtrl(Method):
    """Clips each update, adds correlated noise to the sum, divides by a fixed number.

    Attributes:
      population, clients_per_round, rounds, participation, weighting: of the experiment.
      clip: C, the L2 norm of a client's update.
      noise_multiplier: z, the noise of a tree's node, or of the matrix's entries, over C; 0 for no
        noise and no guarantee. The multipliers of two mechanisms do not compare; epsilons do.
      epsilon: where above 0, the noise multiplier is not `noise_multiplier` but the least that
        keeps the whole run within this epsilon.
      delta: of the guarantee; 0 for population^-1.1.
      mechanism: "tree" (a binary tree), "tree_efficient" (Honaker's estimate from the same tree)
        or "matrix" (a banded Toeplitz factorisation).
      restart_every: rounds of a tree; 0 for one tree.
      bands: of "matrix"; 0 for as many as a client's participations lie apart, at most 16.
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
    mechanism: str = "tree_efficient"
    restart_every: int = 0
    bands: int = 0

    bounds_updates = True

    def __post_init__(self):
        options.check("dp_ftrl", self)
        if self.participation != "cyclic":
            raise UserError(
                f"dp_ftrl needs clients to take turns, and with participation = "
                f"{self.participation!r} a client may be in a tree twice without separation: set "
                "participation = 'cyclic'"
            )
        if self.mechanism not in MECHANISMS:
            raise UserError(
                f"dp_ftrl.mechanism must be one of {', '.join(MECHANISMS)}, not {self.mechanism!r}"
            )
        if self.restart_every < 0:
            raise UserError(
                f"dp_ftrl.restart_every must be 0 (never) or more, not {self.restart_every}"
            )
        if self.bands and (self.mechanism != "matrix" or self.bands < 2):
            raise UserError(
                f"dp_ftrl.bands = {self.bands}: at least 2, with mechanism = 'matrix', or 0"
            )
        # Solved here, on the host: under a trace it could not run.
        if self.noise and self.mechanism == "matrix":
            self._coefs()

    @property
    def noise(self) -> float:
        """The noise multiplier z."""
        if not self.epsilon:
            return self.noise_multiplier
        return accounting.solve_noise_multiplier(
            lambda z: self._epsilon(z, self.rounds), self.epsilon
        )

    @property
    def separation(self) -> int:
        """Rounds from one participation of a client to its next."""
        return self.population // self.clients_per_round

    def init(self, key, view):
        """The noise's memory, and the first round's noise."""
        if not self.noise:
            return ()
        like = {path: part.value for path, part in view.trained.items()}
        if self.mechanism == "matrix":
            memory = matrix.init(like, len(self._coefs()))
        else:
            memory = tree.init(like, self._horizon)
        return self._advance(jax.random.key_data(key), jnp.int32(0), memory)

    def deselect(self, context, update, report):
        """The clipped update with weight 1."""
        parts, _ = clip_parts(update.parts, self.clip, "dp_ftrl")
        return Update(parts, jnp.ones_like(update.weight)), context

    def combine(self, state, key, sums: Sums, report):
        """The round's share of the noise, and the fixed denominator."""
        total = dict(sums.total)
        if self.noise:
            std = self.noise * self.clip
            total = {path: value + std * state.increment[path] for path, value in total.items()}
        return Sums(total, fixed_claim(total, self.clients_per_round))

    def revise(self, state, key, params, aggregate, report):
        """The next round's noise."""
        return self._advance(state.key, state.step, state.memory) if self.noise else state

    def privacy(self, rounds):
        """Of the rounds so far."""
        return options.guarantee(
            epsilon=self._epsilon(self.noise, rounds),
            delta=self._delta,
            mechanism=self.mechanism,
            noise_multiplier=self.noise,
            clip=self.clip,
            participation=self.participation,
            adjacency="sends its updates or sends zeros",
            proviso=f"a client takes part every {self.separation} rounds, in an order fixed before",
        )

    def _advance(self, key, step, memory) -> Noise:
        local = step
        if self.restart_every:
            local = step % self.restart_every
            memory = {path: jnp.where(local == 0, 0, value) for path, value in memory.items()}
        own = jax.random.fold_in(jax.random.wrap_key_data(key), step)
        if self.mechanism == "matrix":
            increment, memory = matrix.advance(own, memory, self._coefs())
        else:
            increment, memory = tree.advance(own, local, memory, self.mechanism == "tree_efficient")
        return Noise(key, step + 1, memory, increment)

    def _coefs(self) -> tuple[float, ...]:
        bands = self.bands or min(self.separation, _MOST_BANDS)
        bands = max(2, min(bands, self._horizon))
        return matrix.coefficients(max(self._horizon, bands), bands)

    @property
    def _horizon(self) -> int:
        return min(self.rounds, self.restart_every or self.rounds)

    @property
    def _delta(self) -> float:
        return self.delta or accounting.default_delta(self.population)

    def _epsilon(self, noise_multiplier: float, rounds: int) -> float:
        if self.mechanism == "matrix":
            # Without noise nothing is optimised.
            coefs = self._coefs() if noise_multiplier else (1.0,)
            squared = matrix.sensitivity_squared(coefs, rounds, self.separation, self.restart_every)
        else:
            squared = tree.sensitivity_squared(rounds, self.separation, self.restart_every)
        return accounting.gaussian_epsilon(noise_multiplier, squared, self._delta)
