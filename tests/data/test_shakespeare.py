"""Tests of the plays by role."""

import numpy as np
import pytest

from fedlite import data
from fedlite.data import shakespeare
from fedlite.errors import UserError

PLAY = """ACT I.

SCENE I. Elsinore.
A platform.

[Enter GHOST
and others.]

FIRST WITCH. [Aside.]
When shall we three   meet again?
  In thunder, [thunder] lightning,

It is my mistress.
A paragraph without a role.

Friar Lawrence.
Wisely and slow.

THESEUS
                    Go, Philostrate.

1 Clown.
Here.
[Exit.]

SONG.
Under the greenwood tree

FIRST WITCH.
[Thunder.]

HAMLET.
"""


@pytest.fixture(scope="module")
def characters():
    return data.load("shakespeare")


@pytest.fixture(scope="module")
def words():
    return data.load("shakespeare", level="word", vocabulary_size=500, validation=0.1, clients=40)


def said(loaded, part, client):
    """What a client's windows say, read back through the vocabulary."""
    windows = loaded.splits[part].client(client)
    ids = [windows["x"][0, 0], *windows["y"][windows["y"] > 0]]
    return [loaded.vocabulary[token] for token in ids]


def test_speeches_by_hand():
    assert shakespeare.speeches(PLAY) == [
        ("FIRST WITCH", "When shall we three   meet again?\nIn thunder,  lightning,"),
        ("FRIAR LAWRENCE", "Wisely and slow."),
        ("THESEUS", "Go, Philostrate."),
        ("1 CLOWN", "Here."),
    ]


def test_facts(characters):
    train, test = characters.splits["train"], characters.splits["test"]
    assert (characters.num_classes, characters.kind) == (90, "language")
    assert characters.ignored_tokens == (0,)
    assert len(characters.vocabulary) == 90
    # Three roles give just one speech.
    assert train.num_clients == 801
    assert test.num_clients == 778
    assert set(test.client_ids) < set(train.client_ids)
    assert "hamlet/HAM" in train.client_ids
    for split in (train, test):
        x, y = split.arrays["x"], split.arrays["y"]
        assert x.shape == y.shape == (split.num_examples, 80)
        assert x.dtype == y.dtype == np.int32
        assert x.min() == 0 and x.max() < 90
        np.testing.assert_array_equal(x == 0, y == 0)
    # About four million characters and ends of speeches, a fifth for the test.
    predicted = [(split.arrays["y"] > 0).sum() for split in (train, test)]
    assert sum(predicted) == pytest.approx(4.0e6, rel=0.01)
    assert predicted[1] / sum(predicted) == pytest.approx(0.2, abs=0.01)
    # The texts are written with the vocabulary's characters but for a few braces.
    assert (train.arrays["y"] == 87).mean() < 1e-4


def test_a_role_says_its_speeches_in_order(characters):
    train = characters.splits["train"].client_ids.index("hamlet/HAM")
    test = characters.splits["test"].client_ids.index("hamlet/HAM")
    first = "".join(said(characters, "train", train))
    assert first.startswith("<bos>A little more than kin, and less than kind!<eos><bos>Not so, my")
    last = "".join(said(characters, "test", test))
    assert last.endswith("the rest is silence.<eos>")
    # 358 speeches.
    assert (first.count("<bos>"), last.count("<bos>")) == (286, 72)


def test_speeches_by_themselves_begin_windows():
    loaded = data.load("shakespeare", pack=False, clients=20)
    bos, eos = 88, 89
    train = loaded.splits["train"].arrays
    # With no speech cut at 80, its begin is a window's first input and nowhere else.
    assert not (train["x"][:, 1:] == bos).any()
    assert not (train["y"] == bos).any()
    assert (train["x"][:, 0] == bos).sum() == (train["y"] == eos).sum()


def test_words(words):
    train, validation = words.splits["train"], words.splits["validation"]
    assert words.num_classes == len(words.vocabulary) == 504
    assert words.ignored_tokens == (0, 501, 503)
    assert train.arrays["x"].shape[1] == 20
    assert (train.num_clients, words.vocabulary[1]) == (40, ",")
    # Validation is the end of what a role says for training: its own last window is padded.
    name = validation.client_ids[0]
    last = validation.client(0)["y"][-1]
    assert last[last > 0][-1] == 503
    assert name in train.client_ids


def test_unseen_roles():
    loaded = data.load("shakespeare", clients=10, test_clients="unseen", sequence_length=30)
    train, test = loaded.splits["train"], loaded.splits["test"]
    assert (train.num_clients, test.num_clients) == (8, 2)
    assert not set(train.client_ids) & set(test.client_ids)
    assert train.arrays["x"].shape[1] == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "byte"}, "level must be 'char' or 'word', got 'byte'"),
        ({"vocabulary_size": 0}, "vocabulary_size 1 or more"),
        ({"sequence_length": -1}, "sequence_length must be 0 or more"),
        ({"clients": 9000}, "clients must be from 1 to 801, or 0 for all"),
        ({"min_characters": 10**9}, "no role says min_characters 1000000000: set at most"),
        ({"test_clients": "all"}, "test_clients must be"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        data.load("shakespeare", **options)


def test_every_other_play():
    plays = {
        part: {
            role.partition("/")[0]
            for role in data.load("shakespeare", plays=part).splits["train"].client_ids
        }
        for part in ("all", "even", "odd")
    }
    ordered = sorted(plays["all"])
    assert plays["even"] == set(ordered[::2])
    assert plays["odd"] == set(ordered[1::2])
    with pytest.raises(UserError, match="all, even, odd"):
        data.load("shakespeare", plays="half")
