"""Binary-tree noise for prefix sums, as DP-FTRL adds it.

Kairouz et al. 2021 (arXiv 2103.00039), appendix B. The rounds are the leaves of a binary tree.
Every complete node has its own standard normal noise; the noise N_t of the sum over rounds 0 to t
is the sum over the nodes of t + 1's binary digits. The efficient form (Honaker 2015) estimates a
node from its whole subtree: value = own + (left + right) / 2, divided by 2 - 2^-level, which has
the variance 1 / (2 - 2^-level) instead of 1.

A method that adds noise to each round's sum adds the increment N_t - N_{t-1}.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedlite.privacy.noise import normal_like


def levels(rounds: int) -> int:
    """Levels of the tree over `rounds` leaves that have a complete node: floor(log2 rounds) + 1."""
    return rounds.bit_length()


def init(like: Mapping[str, object], rounds: int) -> dict[str, object]:
    """Memory before the first round: one node a level, each leaf [levels, *shape]."""
    return {path: jnp.zeros((levels(rounds), *value.shape)) for path, value in like.items()}


def advance(key, step, memory: Mapping[str, object], efficient: bool):
    """The noise of one more round.

    Args:
      key: of this round and tree.
      step: rounds that this tree has seen, an int32 scalar.
      memory: from `init` or the round before: for each level the node whose digit is set.
      efficient: Honaker's estimate.

    Returns:
      The increment N_t - N_{t-1} by path, and the memory.
    """
    completed = step + 1
    # Trailing zeros: the level of the greatest node that this leaf completes.
    level = jax.lax.population_count((completed & -completed) - 1)
    like = {path: nodes[0] for path, nodes in memory.items()}

    def own(index):
        return normal_like(jax.random.fold_in(key, index), like)

    value, depth = own(0), max(nodes.shape[0] for nodes in memory.values())
    weights = np.ones(depth, np.float32)
    if efficient:

        def parent(child_level, value):
            mine = own(child_level + 1)
            return {
                path: mine[path] + (memory[path][child_level] + value[path]) / 2 for path in memory
            }

        value = jax.lax.fori_loop(0, level, parent, value)
        weights = 1 / (2 - 2.0 ** -np.arange(depth, dtype=np.float32))

    index = jnp.arange(depth)
    increment, after = {}, {}
    for path, nodes in memory.items():
        column = (depth, *[1] * (nodes.ndim - 1))
        below = (index < level).reshape(column)
        replaced = jnp.where(below, nodes * weights.reshape(column), 0)
        increment[path] = value[path] * jnp.asarray(weights)[level] - jnp.sum(replaced, axis=0)
        kept = jnp.where(below, 0, nodes)
        after[path] = jnp.where((index == level).reshape(column), value[path], kept)
    return increment, after


@functools.lru_cache(maxsize=4096)
def sensitivity_squared(rounds: int, separation: int, restart_every: int = 0) -> int:
    """How far one client moves the nodes, squared, in units of its clipped norm.

    A client takes part in rounds first, first + separation, ... and adds to each complete node as
    often as it took part below it, so the squared sensitivity is the sum over nodes of that count
    squared, at its worst `first`. Trees after a restart are added: they have noise of their own.
    The plain form never draws on a right child, so for it this is an upper bound.
    With one participation a tree it is floor(log2 rounds) + 1 (Kairouz et al., theorem 4.1); the
    release of all trees is one Gaussian mechanism.

    Args:
      rounds: so far.
      separation: rounds from one participation of a client to its next.
      restart_every: rounds of a tree; 0: one tree.
    """
    length, worst = restart_every or rounds, 0
    for first in range(min(separation, rounds)):
        taken = np.zeros(rounds, np.int64)
        taken[first::separation] = 1
        total = 0
        for start in range(0, rounds, length):
            nodes = taken[start : start + length]
            while len(nodes):
                total += int(nodes @ nodes)
                nodes = nodes[: len(nodes) // 2 * 2].reshape(-1, 2).sum(axis=1)
        worst = max(worst, total)
    return worst
