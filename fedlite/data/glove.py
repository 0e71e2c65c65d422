"""Word vectors from a text file, such as GloVe's (Pennington et al. 2014), for an embedding.

A line is a word and its numbers, separated by blanks: `the 0.418 0.24968 -0.41242 ...`.
FedOBD's model of IMDB begins with the 100 numbers of glove.6B.100d.txt (arXiv 2208.05174).
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fedlite.errors import UserError


class Vectors(NamedTuple):
    """An initial embedding.

    Attributes:
      table: float32 [words, features], a row a word of the vocabulary.
      found: bool [words], whether the file has the word.
    """

    table: np.ndarray
    found: np.ndarray


def load_vectors(file: str, vocabulary: Sequence[str], features: int, *, seed: int = 0) -> Vectors:
    """Reads the vectors of a vocabulary's words.

    Words that the file lacks get normal draws with the standard deviation of all the numbers
    that were found; their row depends on the seed, the size of the table and that deviation.

    Args:
      file: path of the text file, UTF-8; of a word that stands there twice, the first counts.
      vocabulary: words by row, no word twice, as `FederatedDataset.vocabulary` has them.
      features: numbers of a vector.
      seed: of the draws.

    Raises:
      UserError: the file cannot be read, holds vectors of another size or something else
        than numbers, or none of the words.
    """
    rows = {word: row for row, word in enumerate(vocabulary)}
    table = np.zeros((len(vocabulary), features), np.float32)
    found = np.zeros(len(vocabulary), bool)
    for number, word, fields in _lines(pathlib.Path(file).expanduser(), features):
        row = rows.get(word)
        if row is not None and not found[row]:
            table[row] = _numbers(fields, f"{file}, line {number}")
            found[row] = True
    if not found.any():
        raise UserError(
            f"{file} has none of the {len(vocabulary)} words of the vocabulary: name a file of "
            "words in lower case in the language of the data set"
        )
    draws = np.random.default_rng(seed).normal(0, table[found].std(), table.shape)
    return Vectors(np.where(found[:, None], table, draws).astype(np.float32), found)


def _lines(file: pathlib.Path, features: int) -> Iterator[tuple[int, str, list[str]]]:
    """Number, word and fields of every line."""
    try:
        with open(file, encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                # Some words of the larger GloVe files have blanks in them.
                word, *fields = line.rstrip().rsplit(" ", features)
                if len(fields) != features or (number == 1 and " " in word):
                    raise UserError(
                        f"{file}, line {number}: needs a word and {features} numbers, has "
                        f"{len(line.split())} fields; name a file of vectors of this size"
                    )
                yield number, word, fields
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}): name a text file with a word and "
            f"{features} numbers a line, such as an unpacked GloVe file"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no UTF-8 text ({error.reason}): unpack it first") from error


def _numbers(fields: list[str], where: str) -> np.ndarray:
    try:
        numbers = np.array(fields, np.float32)
    except ValueError as error:
        raise UserError(f"{where}: {error}; name a file of words and numbers") from error
    if not np.isfinite(numbers).all():
        raise UserError(f"{where}: a number is not finite; mend or replace the file")
    return numbers
