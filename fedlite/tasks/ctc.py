"""Connectionist temporal classification: loss, decoding, and errors between token sequences.

Graves et al. 2006 ("Connectionist Temporal Classification", ICML). An alignment gives each frame a
label or the blank; its label sequence is what is left when repetitions are merged and then blanks
removed. Label 0 is the blank, and pads label sequences at their end.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

BLANK = 0


def fits(frames, labels):
    """Whether any alignment has these labels: each takes a frame, and equal neighbours a blank.

    Args:
      frames: integers [batch].
      labels: [batch, length], padded with 0; both arrays of numpy, or both of JAX.

    Returns:
      bool [batch].
    """
    repeated = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] != BLANK)
    return frames >= (labels != BLANK).sum(1) + repeated.sum(1)


def loss(logits: jax.Array, frames: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-probability of the labels, summed over all their alignments.

    Args:
      logits: [batch, frames', classes].
      frames: int32 [batch], the real ones of frames'.
      labels: int32 [batch, length].

    Returns:
      Nats [batch], and bool [batch]: whether there is an alignment. Where there is none the loss
      and its gradient are 0.
    """
    possible = fits(frames, labels)
    padding = jnp.arange(logits.shape[1]) >= frames[:, None]
    # Without labels the loss is finite, so what is not selected has no NaN in its gradient.
    absent = (labels == BLANK) | ~possible[:, None]
    values = optax.ctc_loss(
        logits, padding.astype(logits.dtype), labels, absent.astype(jnp.float32)
    )
    return jnp.where(possible, values, 0), possible


def greedy(logits: jax.Array, frames: jax.Array) -> jax.Array:
    """The labels of the most probable alignment.

    Args:
      logits: [batch, frames', classes].
      frames: int32 [batch].

    Returns:
      int32 [batch, frames'], padded with 0.
    """
    best = jnp.argmax(logits, -1).astype(jnp.int32)
    best = jnp.where(jnp.arange(best.shape[1]) < frames[:, None], best, BLANK)
    before = jnp.pad(best, ((0, 0), (1, 0)))[:, :-1]
    kept = (best != BLANK) & (best != before)
    order = jnp.argsort(~kept, axis=1, stable=True)
    return jnp.take_along_axis(jnp.where(kept, best, BLANK), order, axis=1)


def beam_search(log_probs: np.ndarray, beam: int) -> tuple[int, ...]:
    """The most probable label sequence that a prefix beam search finds.

    Hannun et al. 2014 (arXiv 1408.2873), algorithm 1, without a language model. The probabilities
    of all alignments of a prefix are summed, which `greedy` does not; with as many beams as there
    are prefixes the result is exact.

    Args:
      log_probs: [frames, classes] of one utterance's real frames.
      beam: prefixes that are kept after each frame, and labels that may extend one.

    Returns:
      The labels.
    """
    # By prefix: log-probabilities of its alignments that end in a blank, and in its last label.
    beams = {(): (0.0, -np.inf)}
    for frame in np.asarray(log_probs, np.float64):
        following: dict[tuple[int, ...], tuple[float, float]] = {}

        def add(prefix, blank, label, following=following):
            old = following.get(prefix, (-np.inf, -np.inf))
            following[prefix] = np.logaddexp(old[0], blank), np.logaddexp(old[1], label)

        likely = [int(k) for k in np.argsort(-frame)[: beam + 1] if k != BLANK]
        for prefix, (blank, label) in beams.items():
            either = np.logaddexp(blank, label)
            add(prefix, either + frame[BLANK], -np.inf)
            if prefix:
                add(prefix, -np.inf, label + frame[prefix[-1]])
            for k in likely:
                # The last label again is a second one only behind a blank.
                start = blank if prefix and prefix[-1] == k else either
                add((*prefix, k), -np.inf, start + frame[k])
        ranked = sorted(following.items(), key=lambda item: (-np.logaddexp(*item[1]), item[0]))
        beams = dict(ranked[:beam])
    return next(iter(beams))


def edit_distance(hypotheses: jax.Array, references: jax.Array) -> jax.Array:
    """Levenshtein's distance: least substitutions, deletions and insertions.

    Args:
      hypotheses: int32 [batch, m], padded with 0.
      references: int32 [batch, n], padded with 0.

    Returns:
      int32 [batch].
    """
    steps = jnp.arange(references.shape[1] + 1)

    def row(distances, token):
        substituted = distances[:, :-1] + (references != token[:, None])
        best = (distances + 1).at[:, 1:].min(substituted)
        # A deletion goes one to the right for 1, so many in a row at once.
        best = jax.lax.cummin(best - steps, axis=1) + steps
        return jnp.where(token[:, None] != BLANK, best, distances), None

    start = jnp.broadcast_to(steps, (len(references), len(steps)))
    distances, _ = jax.lax.scan(row, start, hypotheses.T)
    lengths = jnp.sum(references != BLANK, 1)
    return jnp.take_along_axis(distances, lengths[:, None], axis=1)[:, 0]
