"""Matrix-factorisation noise for prefix sums: banded Toeplitz strategies, from jax-privacy.

The prefix-sum matrix A is factored as B C; the noise of the rounds' sums is C^-1 z with z standard
normal, and a client's influence is measured by C's columns. A lower-triangular Toeplitz C with few
bands streams with one earlier noise a band: Choquette-Choo et al. 2023 (arXiv 2306.08153),
algorithm 9; McKenna 2024 (arXiv 2405.15913). Its coefficients are optimised for the mean squared
error of the prefix sums over the run.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedlite.privacy.noise import normal_like


@functools.lru_cache(maxsize=64)
def coefficients(rounds: int, bands: int) -> tuple[float, ...]:
    """Toeplitz coefficients of C, non-negative, non-increasing, of L2 norm 1.

    Args:
      rounds: of the run, or between restarts; at least `bands`.
      bands: of C; at least 1.
    """
    from jax_privacy.matrix_factorization import toeplitz

    with jax.ensure_compile_time_eval():
        found = np.asarray(toeplitz.optimize_banded_toeplitz(rounds, bands), np.float64)
    # The formula for the sensitivity rests on both, to the last digit.
    found = np.minimum.accumulate(np.maximum(found, 0))
    return tuple((found / np.linalg.norm(found)).tolist())


def init(like: Mapping[str, object], bands: int) -> dict[str, object]:
    """Memory before the first round: the last bands - 1 noises, each leaf [bands - 1, *shape]."""
    return {path: jnp.zeros((bands - 1, *value.shape)) for path, value in like.items()}


def advance(key, memory: Mapping[str, object], coefs: tuple[float, ...]):
    """The noise of one more round.

    Args:
      key: of this round.
      memory: from `init` or the round before.
      coefs: of C.

    Returns:
      This round's row of C^-1 z by path, and the memory.
    """
    from jax_privacy.matrix_factorization import toeplitz

    inverse = toeplitz.inverse_as_streaming_matrix(jnp.asarray(coefs, jnp.float32))
    like = {path: jax.ShapeDtypeStruct(m.shape[1:], m.dtype) for path, m in memory.items()}
    # On an accelerator a product of lower precision would not cancel earlier noise.
    with jax.default_matmul_precision("highest"):
        return inverse.multiply_next(normal_like(key, like), dict(memory))


@functools.lru_cache(maxsize=4096)
def sensitivity_squared(
    coefs: tuple[float, ...], rounds: int, separation: int, restart_every: int = 0
) -> float:
    """How far one client moves C x, squared, in units of its clipped norm.

    Theorem 2 of arXiv 2405.13763; blocks after a restart are added, each at its own worst
    participation, an upper bound.

    Args:
      coefs: of C.
      rounds: so far.
      separation: rounds from one participation of a client to its next.
      restart_every: rounds of a block; 0: one block.
    """
    from jax_privacy.matrix_factorization import toeplitz

    if not rounds:
        return 0.0
    whole, rest = divmod(rounds, restart_every or rounds)
    total = 0.0
    for length, count in ((restart_every or rounds, whole), (rest, 1 if rest else 0)):
        if count:
            with jax.ensure_compile_time_eval():
                squared = toeplitz.minsep_sensitivity_squared(
                    jnp.asarray(coefs, jnp.float32), separation, None, length
                )
            total += count * float(squared)
    return total
