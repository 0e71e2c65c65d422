"""Tests of vocabularies, words and windows."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from fedlite.data import text

LETTERS = text.Vocabulary(tuple("abc"))


def test_ids_of_a_vocabulary():
    assert LETTERS.tokens == ("<pad>", "a", "b", "c", "<oov>", "<bos>", "<eos>")
    assert (LETTERS.pad, LETTERS.oov, LETTERS.bos, LETTERS.eos) == (0, 4, 5, 6)
    np.testing.assert_array_equal(LETTERS.encode("cabd"), [3, 1, 2, 4])
    np.testing.assert_array_equal(LETTERS.encode_sentence("b"), [5, 2, 6])
    assert LETTERS.encode("").dtype == LETTERS.encode_sentence("").dtype == np.int32


def test_characters_are_those_of_the_baseline():
    # 86 characters and four special tokens: 90 classes.
    assert len(set(text.CHARACTERS)) == len(text.CHARACTERS) == 86
    assert len(text.Vocabulary(tuple(text.CHARACTERS)).tokens) == 90


def test_words():
    assert text.words("'Tis 12 o'clock,\nREADY--see naïve don’t!") == (
        ["'", "tis", "12", "o'clock", ",", "ready", "-", "-", "see", "naïve", "don’t", "!"]
    )


def test_most_frequent_breaks_ties_by_alphabet():
    vocabulary = text.most_frequent([["b", "a", "c"], ["c", "d"]], 3)
    assert vocabulary.entries == ("c", "a", "b")


def test_pad_fills_and_cuts():
    padded = text.pad([np.array([1, 2, 3, 4]), np.array([5], np.int32)], 3)
    np.testing.assert_array_equal(padded, [[1, 2, 3], [5, 0, 0]])
    assert padded.dtype == np.int32


def test_windows_by_hand():
    x, y = text.windows(np.array([5, 1, 2, 3, 1, 6], np.int32), 3)
    np.testing.assert_array_equal(x, [[5, 1, 2], [3, 1, 0]])
    np.testing.assert_array_equal(y, [[1, 2, 3], [1, 6, 0]])


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    ids=st.lists(st.integers(1, 9), min_size=2, max_size=40), length=st.integers(1, 12)
)
def test_windows_predict_every_token_but_the_first_once(ids, length):
    x, y = text.windows(np.array(ids, np.int32), length)
    assert x.shape == y.shape and x.shape[1] == length
    assert x.dtype == y.dtype == np.int32
    assert y[y > 0].tolist() == ids[1:]
    assert x[y > 0].tolist() == ids[:-1]
    assert not x[y == 0].any()
    # No window is padding alone.
    assert (y[:, 0] > 0).all()
