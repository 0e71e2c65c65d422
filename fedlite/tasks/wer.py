"""Word and character error rates with their parts, and bootstrap intervals over speakers.

Errors are the least substitutions, deletions and insertions that turn the reference into the
hypothesis, as jiwer counts them. Utterances of one speaker err alike, so intervals resample
speakers and not utterances (Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in
ASR performance evaluation", section 4).
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedlite.errors import UserError


class Errors(NamedTuple):
    """Of hypotheses against their references.

    Attributes:
      substitutions, deletions, insertions: in words or characters.
      length: of the references.
    """

    substitutions: int
    deletions: int
    insertions: int
    length: int

    @property
    def total(self) -> int:
        """All errors."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors a word (or character) of the references; may exceed 1."""
        return self.total / max(self.length, 1)


class Interval(NamedTuple):
    """A number with its bootstrap interval."""

    value: float
    low: float
    high: float


def check_installed():
    """Raises UserError where jiwer is not installed."""
    try:
        import jiwer  # noqa: F401
    except ImportError as error:
        raise UserError("jiwer is not installed: pip install -e '.[speech]'") from error


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Errors in words, which spaces divide; an empty reference has insertions alone.

    Raises:
      UserError: jiwer is not installed.
    """
    check_installed()
    import jiwer

    return _errors(jiwer.process_words(list(references), list(hypotheses)))


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Errors in characters, the spaces between words among them.

    Raises:
      UserError: jiwer is not installed.
    """
    check_installed()
    import jiwer

    return _errors(jiwer.process_characters(list(references), list(hypotheses)))


def _errors(found) -> Errors:
    length = found.hits + found.substitutions + found.deletions
    return Errors(found.substitutions, found.deletions, found.insertions, length)


def bootstrap(
    counts: Mapping[str, Mapping[str, int]],
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A word error rate with its percentile interval.

    Args:
      counts: by speaker, "errors" and "words".
      draws: samples of as many speakers as there are, with replacement.
      level: of the interval.
      seed: of the draws.

    Raises:
      UserError: no speaker has a word.
    """
    errors, words = _arrays(counts)
    return _interval(errors, words, draws, level, seed)


def paired_bootstrap(
    counts_a: Mapping[str, Mapping[str, int]],
    counts_b: Mapping[str, Mapping[str, int]],
    *,
    draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The word error rate of run a minus that of run b, with its percentile interval.

    Both runs are scored on the same draws of speakers, so what is hard for both cancels.

    Args:
      counts_a, counts_b: by speaker, "errors" and "words", as `read_counts` returns them.
      draws: as of `bootstrap`.
      level: of the interval.
      seed: of the draws.

    Raises:
      UserError: the runs were not scored on the same speakers and words.
    """
    terms = ((1.0, counts_a), (-1.0, counts_b))
    return contrast(terms, draws=draws, level=level, seed=seed)


def contrast(
    terms: Sequence[tuple[float, Mapping[str, Mapping[str, int]]]],
    *,
    draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A weighted sum of word error rates, with its percentile interval.

    For instance by how much more one model loses than another when both are cut:
    (a cut - a) - (b cut - b), with the weights 1, -1, -1, 1.

    Args:
      terms: weights and counts by speaker; all are scored on the same draws of speakers.
      draws: as of `bootstrap`.
      level: of the interval.
      seed: of the draws.

    Raises:
      UserError: the terms are not of the same speakers and words.
    """
    (_, first), *others = terms
    for _, counts in others:
        _check_alike(first, counts)
    _, words = _arrays(first)
    errors = sum(
        weight * _arrays({speaker: counts[speaker] for speaker in first})[0]
        for weight, counts in terms
    )
    return _interval(errors, words, draws, level, seed)


def pooled(runs: Sequence[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Counts of several runs, such as seeds, added speaker by speaker.

    Raises:
      UserError: the runs were not scored on the same speakers and words.
    """
    for other in runs[1:]:
        _check_alike(runs[0], other)
    return {
        speaker: {name: sum(run[speaker][name] for run in runs) for name in ("errors", "words")}
        for speaker in runs[0]
    }


def _check_alike(counts_a, counts_b):
    if counts_a.keys() != counts_b.keys():
        other = sorted(counts_a.keys() ^ counts_b.keys())[0]
        raise UserError(f"only one of the two runs has speaker {other!r}; compare equal test sets")
    for speaker, counts in counts_a.items():
        if counts["words"] != counts_b[speaker]["words"]:
            raise UserError(
                f"speaker {speaker!r} has {counts['words']} words in one run and "
                f"{counts_b[speaker]['words']} in the other; compare equal test sets"
            )


def read_counts(path: str | pathlib.Path) -> dict[str, dict[str, int]]:
    """The counts that a run left in its directory as clients_SPLIT.json.

    Raises:
      UserError: the file is not there or no such file.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        return {
            speaker: {"errors": int(counts["errors"]), "words": int(counts["words"])}
            for speaker, counts in content["clients"].items()
        }
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): finish the run") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no counts of speakers ({error}): run it anew") from error


def _arrays(counts: Mapping[str, Mapping[str, int]]) -> tuple[np.ndarray, np.ndarray]:
    errors, words = (
        np.array([own[name] for own in counts.values()], np.float64) for name in ("errors", "words")
    )
    if not words.sum():
        raise UserError("no speaker has a word: there is no word error rate")
    return errors, words


def _interval(errors, words, draws: int, level: float, seed: int) -> Interval:
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(words), size=(draws, len(words)))
    # Speakers without a word can make up a whole draw.
    rates = errors[drawn].sum(1) / np.maximum(words[drawn].sum(1), 1)
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(errors.sum() / words.sum()), float(low), float(high))
