"""Banded Toeplitz noise: it inverts the strategy, and its sensitivity is the worst pattern's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedlite.privacy import matrix, tree
from fedlite.privacy.noise import normal_like

ROUNDS, BANDS = 9, 3


@pytest.fixture(scope="module")
def coefs():
    return matrix.coefficients(ROUNDS, BANDS)


def strategy(coefs, rounds):
    return sum(c * np.eye(rounds, k=-band) for band, c in enumerate(coefs))


def test_coefficients(coefs):
    assert len(coefs) == BANDS and np.linalg.norm(coefs) == pytest.approx(1)
    assert (np.diff(coefs) <= 0).all() and min(coefs) >= 0


def test_noise_is_the_inverse_of_the_strategy(coefs):
    like = {"w": jnp.zeros((2, 3))}
    memory, rows, draws = matrix.init(like, BANDS), [], []
    for step in range(ROUNDS):
        key = jax.random.fold_in(jax.random.key(0), step)
        row, memory = matrix.advance(key, memory, coefs)
        rows.append(row["w"])
        draws.append(normal_like(key, like)["w"])
    again = np.tensordot(strategy(coefs, ROUNDS), np.stack(rows), axes=1)
    np.testing.assert_allclose(again, np.stack(draws), atol=1e-5)


@pytest.mark.parametrize("separation", [1, 2, 3, 4, 20])
def test_sensitivity_against_every_participation(coefs, separation):
    """All sets of rounds at least `separation` apart, not the regular ones alone."""
    worst = 0
    for taken in itertools.product((0, 1), repeat=ROUNDS):
        rounds = np.flatnonzero(taken)
        if (np.diff(rounds) >= separation).all():
            worst = max(worst, np.sum((strategy(coefs, ROUNDS) @ taken) ** 2))
    ours = matrix.sensitivity_squared(coefs, ROUNDS, separation)
    assert ours == pytest.approx(worst, rel=1e-5)


def test_blocks_after_a_restart_are_added(coefs):
    one, rest = (matrix.sensitivity_squared(coefs, rounds, 2) for rounds in (4, 1))
    assert matrix.sensitivity_squared(coefs, 9, 2, 4) == pytest.approx(2 * one + rest)
    assert matrix.sensitivity_squared(coefs, 0, 2, 4) == 0


def test_at_equal_privacy_it_beats_the_tree():
    """Mean variance of the prefix sums over three passes, times the squared sensitivity."""
    rounds, separation = 48, 16
    coefs = matrix.coefficients(rounds, separation)
    noise = np.tri(rounds) @ np.linalg.inv(strategy(coefs, rounds))
    factorised = np.mean(np.sum(noise**2, 1)) * matrix.sensitivity_squared(
        coefs, rounds, separation
    )
    prefixes = [
        sum(1 / (2 - 2.0**-level) for level in range(7) if (step + 1) >> level & 1)
        for step in range(rounds)
    ]
    assert factorised < 0.8 * np.mean(prefixes) * tree.sensitivity_squared(rounds, separation)
