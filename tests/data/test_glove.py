"""Word vectors: what is read, what is drawn, and files that are refused."""

import numpy as np
import pytest

from fedlite.data.glove import load_vectors
from fedlite.errors import UserError

TEXT = "the 1 -2 3\nrock 'n roll 7 8 9\nfilm 0.5 1e-1 0\nthe 0 0 0\n"
VOCABULARY = ("<pad>", "film", "the", "plot")


@pytest.fixture
def file(tmp_path):
    def make(content):
        path = tmp_path / "vectors.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return make


def test_reads_the_words_of_the_vocabulary(file):
    table, found = load_vectors(file(TEXT), VOCABULARY, 3)
    assert table.dtype == np.float32 and found.tolist() == [False, True, True, False]
    expected = np.array([[0.5, 0.1, 0], [1, -2, 3]], np.float32)
    np.testing.assert_array_equal(table[found], expected)


def test_a_word_with_blanks_is_read(file):
    table, found = load_vectors(file(TEXT), ("rock 'n roll", "roll"), 3)
    assert table[0].tolist() == [7, 8, 9] and found.tolist() == [True, False]


def test_missing_words_are_drawn_on_the_scale_of_the_others(file):
    words = ("a", "b", *(f"w{i}" for i in range(5000)))
    path = file("a 3 -3\nb -3 3\n")
    table, found = load_vectors(path, words, 2)
    assert table[~found].std() == pytest.approx(3, rel=0.05)
    assert abs(table[~found].mean()) < 0.15
    np.testing.assert_array_equal(table, load_vectors(path, words, 2).table)
    other = load_vectors(path, words, 2, seed=1).table
    assert (other[~found] != table[~found]).all()
    np.testing.assert_array_equal(other[found], table[found])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "none of the 4 words"),
        ("a 1 2 3\n", "none of the 4 words"),
        ("film 1 2\n", "line 1: needs a word and 3 numbers, has 3 fields"),
        ("film 1 2 3 4\n", "line 1: needs a word and 3 numbers, has 5 fields"),
        ("a 1 2 3\n\n", "line 2: needs a word and 3 numbers, has 0 fields"),
        ("film 1 2 x\n", "line 1: .*'x'; name a file of words and numbers"),
        ("film 1 nan 3\n", "line 1: a number is not finite"),
        (b"PK\x03\x04\xff\xfe", "no UTF-8 text .*: unpack it first"),
    ],
)
def test_bad_files_are_refused_in_one_line(content, says, file):
    with pytest.raises(UserError, match=says) as error:
        load_vectors(file(content), VOCABULARY, 3)
    assert "vectors.txt" in str(error.value) and "\n" not in str(error.value)


def test_missing_file_is_refused(tmp_path):
    for path in (tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(UserError, match=r"cannot be read .*word and 3 numbers a line"):
            load_vectors(str(path), VOCABULARY, 3)
