"""Text as token ids: vocabularies, words and windows for next-token prediction.

Ids follow TensorFlow Federated's baselines: 0 is padding, then come the vocabulary's own
entries from 1, then out of vocabulary, beginning and end of a sentence.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np

# The characters that TensorFlow Federated's Shakespeare baseline predicts, in its order.
CHARACTERS = (
    "dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"
)

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Token ids: 0 padding, 1.. entries, then out of vocabulary, begin and end of sentence.

    Attributes:
      entries: the tokens that have a meaning of their own; `entries[i]` has id `i + 1`.
    """

    entries: tuple[str, ...]

    @property
    def pad(self) -> int:
        """The id of padding, 0."""
        return 0

    @property
    def oov(self) -> int:
        """The id of every token that isn't an entry."""
        return len(self.entries) + 1

    @property
    def bos(self) -> int:
        """The id of the beginning of a sentence."""
        return len(self.entries) + 2

    @property
    def eos(self) -> int:
        """The id of the end of a sentence."""
        return len(self.entries) + 3

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens by id."""
        return ("<pad>", *self.entries, "<oov>", "<bos>", "<eos>")

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.entries, start=1)}

    def encode(self, tokens: Iterable[str]) -> np.ndarray:
        """The ids of tokens (for a vocabulary of characters: of a string), int32 [tokens]."""
        return np.array([self._ids.get(token, self.oov) for token in tokens], np.int32)

    def encode_sentence(self, tokens: Iterable[str]) -> np.ndarray:
        """The same between begin and end of sentence, int32 [tokens + 2]."""
        return np.concatenate([[self.bos], self.encode(tokens), [self.eos]]).astype(np.int32)


def words(text: str) -> list[str]:
    """Lower-case words (with inner apostrophes), numbers and single punctuation marks.

    >>> words("'Tis bitter cold, Reliev'd at 12!")
    ["'", 'tis', 'bitter', 'cold', ',', "reliev'd", 'at', '12', '!']
    """
    return _WORD.findall(text.lower())


def most_frequent(sentences: Iterable[Sequence[str]], size: int) -> Vocabulary:
    """The `size` most frequent tokens, the first in the alphabet where counts are equal."""
    counts = collections.Counter()
    for sentence in sentences:
        counts.update(sentence)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return Vocabulary(tuple(ranked[:size]))


def pad(sentences: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Ids cut or filled with padding (0) to one length, int32 [sentences, length]."""
    padded = np.zeros((len(sentences), length), np.int32)
    for row, sentence in zip(padded, sentences):
        row[: len(sentence)] = sentence[:length]
    return padded


def windows(ids: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """A sequence cut for next-token prediction.

    Every token but the first is predicted once: a window begins with the last target of
    the one before. The last window is padded.

    Args:
      ids: int32 [tokens], at least two.
      length: predictions of a window.

    Returns:
      x and y, int32 [windows, length], where `y[i, j]` follows `x[i, j]`.
    """
    count = -(-(len(ids) - 1) // length)
    padded = np.zeros(count * length + 1, np.int32)
    padded[: len(ids)] = ids
    x, y = padded[:-1].reshape(count, length), padded[1:].reshape(count, length)
    # The very last token is a target only; as an input it would stand beside padding.
    return np.where(y == 0, 0, x), y
