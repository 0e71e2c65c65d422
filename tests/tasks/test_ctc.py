"""CTC against sums over all alignments."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlite.tasks import ctc


def collapse(path):
    """Repetitions merged, then blanks removed."""
    return tuple(k for k, _ in itertools.groupby(path) if k != ctc.BLANK)


def distribution(log_probs):
    """The probability of every label sequence, alignment by alignment."""
    found = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        probability = np.exp(sum(frame[k] for frame, k in zip(log_probs, path)))
        found[collapse(path)] = found.get(collapse(path), 0.0) + probability
    return found


def logits_of(seed, frames=5, classes=3):
    return np.random.default_rng(seed).normal(0, 2, (frames, classes)).astype(np.float32)


def padded(labels, length=6):
    return np.array([[*labels] + [0] * (length - len(labels))], np.int32)


@pytest.mark.parametrize("labels", [(), (1,), (2, 1), (1, 1), (1, 1, 1), (1, 2, 1)])
def test_loss_is_the_sum_over_alignments(labels):
    logits = logits_of(len(labels))
    # Two frames of padding that say something else.
    long = np.concatenate([logits, logits_of(9, 2)])[None]
    loss, possible = jax.jit(ctc.loss)(long, jnp.array([5]), padded(labels))
    expected = -np.log(distribution(np.array(jax.nn.log_softmax(logits)))[labels])
    assert possible[0] and float(loss[0]) == pytest.approx(expected, rel=1e-4)


def test_labels_without_an_alignment_have_no_loss_and_no_gradient():
    labels = np.concatenate([padded(y) for y in ((1, 1, 1), (1, 2, 1), (1, 2, 1, 2, 1), ())])
    frames = np.array([5, 3, 4, 0])
    assert ctc.fits(frames, labels).tolist() == [True, True, False, True]
    assert ctc.fits(frames - 1, labels).tolist()[:2] == [False, False]
    logits = np.stack([logits_of(i) for i in range(4)])

    def total(logits):
        losses, possible = ctc.loss(logits, jnp.array(frames), labels)
        return losses.sum(), (losses, possible)

    gradient, (losses, possible) = jax.jit(jax.grad(total, has_aux=True))(logits)
    assert possible.tolist() == [True, True, False, True]
    assert losses[0] > 0 and losses[1] > 0 and losses[2] == 0
    assert np.isfinite(gradient).all() and not gradient[2].any() and gradient[0].any()


def test_greedy():
    best = [[1, 1, 0, 1, 2, 2], [0, 3, 0, 0, 3, 3], [2, 0, 2, 1, 1, 1]]
    logits = jax.nn.one_hot(jnp.array(best), 4)
    found = ctc.greedy(logits, jnp.array([6, 4, 0]))
    assert found.tolist() == [[1, 1, 2, 0, 0, 0], [3, 0, 0, 0, 0, 0], [0] * 6]


def test_beam_search_sums_where_greedy_does_not():
    # "" has 0.36, "1" in three alignments 0.64, but each at most 0.24.
    log_probs = np.log([[0.6, 0.4], [0.6, 0.4]])
    assert ctc.greedy(log_probs[None], jnp.array([2])).tolist() == [[0, 0]]
    assert ctc.beam_search(log_probs, 4) == (1,)
    # A beam of one holds the blank and loses what begins with a label.
    assert ctc.beam_search(log_probs, 1) == ()
    assert ctc.beam_search(log_probs[:0], 4) == ()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_a_wide_beam_is_exact(seed):
    log_probs = np.array(jax.nn.log_softmax(logits_of(seed, 4)))
    exact = distribution(log_probs)
    found = ctc.beam_search(log_probs, 1000)
    assert exact[found] == pytest.approx(max(exact.values()))


TOKENS = st.lists(st.integers(1, 3), max_size=6)


@settings(max_examples=40, deadline=None)
@given(TOKENS, TOKENS)
def test_edit_distance(a, b):
    table = {(i, 0): i for i in range(7)} | {(0, j): j for j in range(7)}
    for i, j in itertools.product(range(1, len(a) + 1), range(1, len(b) + 1)):
        wrong = table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
        table[i, j] = min(wrong, table[i - 1, j] + 1, table[i, j - 1] + 1)
    assert DISTANCE(padded(a), padded(b, 7)).tolist() == [table[len(a), len(b)]]


DISTANCE = jax.jit(ctc.edit_distance)
