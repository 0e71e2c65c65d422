"""Tree noise: exact variances, the factorisation behind them, and the sensitivity."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlite.privacy import tree

ROUNDS = 13
advance = jax.jit(tree.advance, static_argnums=3)


def stream(rounds, efficient, like, key=0):
    """N_t of every round, [rounds, *shape]."""
    memory, sums, total = tree.init({"w": like}, rounds), [], jnp.zeros_like(like)
    for step in range(rounds):
        own = jax.random.fold_in(jax.random.key(key), step)
        increment, memory = advance(own, jnp.int32(step), memory, efficient)
        total = total + increment["w"]
        sums.append(np.asarray(total))
    return np.stack(sums)


def digits(number):
    return [level for level in range(number.bit_length()) if number >> level & 1]


@pytest.mark.parametrize("efficient", [False, True])
def test_empirical_variance_at_every_round(efficient):
    sums = stream(ROUNDS, efficient, jnp.zeros(40_000))
    for step, noise in enumerate(sums):
        levels = digits(step + 1)
        vanilla = len(levels)
        exact = sum(1 / (2 - 2.0**-level) for level in levels) if efficient else vanilla
        assert exact <= vanilla
        # The deviation of a sample variance is sqrt(2 / 40000) = 0.7 %.
        assert noise.var() == pytest.approx(exact, rel=0.035)
        assert abs(noise.mean()) < 5 * np.sqrt(exact / 40_000)


@pytest.mark.parametrize("efficient", [False, True])
def test_the_noise_is_that_of_noisy_nodes(efficient, monkeypatch):
    """With unit vectors for draws the noise is the matrix B of A = B C, C the nodes drawn for."""
    nodes = []
    for step in range(ROUNDS):
        level = ((step + 1) & -(step + 1)).bit_length() - 1
        for drawn in range(level + 1) if efficient else [level]:
            node = np.zeros(ROUNDS)
            node[step + 1 - 2**drawn : step + 1] = 1
            nodes.append(node)
    draws = itertools.count()

    def unit(key, like):
        return {path: jnp.zeros(array.shape).at[next(draws)].set(1) for path, array in like.items()}

    monkeypatch.setattr(tree, "normal_like", unit)
    with jax.disable_jit():
        factor = stream(ROUNDS, efficient, jnp.zeros(len(nodes)))
    assert next(draws) == len(nodes)
    np.testing.assert_allclose(factor @ np.stack(nodes), np.tri(ROUNDS), atol=1e-6)


def all_nodes(rounds, restart_every):
    """Every complete node of every tree, as the rounds below it: by hand, no arithmetic."""
    length = restart_every or rounds
    for start in range(0, rounds, length):
        end = min(start + length, rounds)
        size = 1
        while size <= end - start:
            for first in range(start, end - size + 1, size):
                yield range(first, first + size)
            size *= 2


@given(st.integers(1, 24), st.integers(1, 26), st.integers(0, 9))
def test_sensitivity_against_brute_force(rounds, separation, restart_every):
    worst = max(
        sum(
            len(set(node) & set(range(first, rounds, separation))) ** 2
            for node in all_nodes(rounds, restart_every)
        )
        for first in range(separation)
    )
    assert tree.sensitivity_squared(rounds, separation, restart_every) == worst


def test_sensitivity_of_one_pass_is_the_height():
    for rounds, height in [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (1600, 11)]:
        assert tree.sensitivity_squared(rounds, separation=rounds) == height == tree.levels(rounds)
    # Four epochs with a restart after each: four times the height.
    assert tree.sensitivity_squared(64, separation=16, restart_every=16) == 4 * 5
    assert tree.sensitivity_squared(0, separation=3) == 0


def test_coordinates_and_paths_are_independent():
    memory = tree.init({"a": jnp.zeros(2000), "b": jnp.zeros(2000)}, 4)
    increment, _ = advance(jax.random.key(0), jnp.int32(0), memory, True)
    assert abs(np.corrcoef(increment["a"], increment["b"])[0, 1]) < 0.1
