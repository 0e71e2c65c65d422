"""Error rates counted by hand, and intervals over speakers."""

import json
import sys

import numpy as np
import pytest

from fedlite.errors import UserError
from fedlite.tasks import wer

COUNTS = {f"s{i}": {"errors": e, "words": n} for i, (e, n) in enumerate([(1, 4), (2, 4), (0, 2)])}


def test_errors_by_hand():
    errors = wer.word_errors(["one two three", "", "four"], ["one too", "uh", "four"])
    assert errors == wer.Errors(substitutions=1, deletions=1, insertions=1, length=4)
    assert errors.total == 3 and errors.rate == 0.75
    assert wer.character_errors(["two"], ["too"]) == wer.Errors(1, 0, 0, 3)
    assert wer.character_errors(["a b"], ["ab"]).deletions == 1
    assert wer.word_errors([], []).rate == 0


def test_a_missing_jiwer_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(UserError, match=r"jiwer .* pip install -e '\.\[speech\]'"):
        wer.word_errors(["a"], ["a"])


def test_bootstrap():
    interval = wer.bootstrap(COUNTS, draws=500)
    assert interval.value == 0.3 and 0 <= interval.low < 0.3 < interval.high <= 0.5
    many = {f"s{i}": {"errors": i * i % 17, "words": 20 + i} for i in range(20)}
    assert wer.bootstrap(many) == wer.bootstrap(many) != wer.bootstrap(many, seed=1)
    narrow = wer.bootstrap(COUNTS, draws=500, level=0.2)
    assert interval.low <= narrow.low <= narrow.high <= interval.high
    alike = {name: {"errors": 1, "words": 5} for name in "abc"}
    assert wer.bootstrap(alike, draws=50) == (0.2, 0.2, 0.2)
    with pytest.raises(UserError, match="no speaker has a word"):
        wer.bootstrap({"a": {"errors": 0, "words": 0}})


def test_what_is_hard_for_both_cancels():
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 40, 30)
    a = {f"s{i}": {"errors": int(n) + 5, "words": 50} for i, n in enumerate(hard)}
    b = {name: {"errors": own["errors"] - 3, "words": 50} for name, own in a.items()}
    difference = wer.paired_bootstrap(a, b, draws=200)
    np.testing.assert_allclose(difference, (0.06, 0.06, 0.06))
    apart = wer.bootstrap(a, draws=200)
    assert apart.high - apart.low > 0.05
    mirrored = wer.paired_bootstrap(b, a, draws=200)
    np.testing.assert_allclose(mirrored, (-0.06, -0.06, -0.06))


def test_only_equal_test_sets_are_compared():
    with pytest.raises(UserError, match="only one of the two runs has speaker 's2'"):
        wer.paired_bootstrap(COUNTS, {k: COUNTS[k] for k in ("s0", "s1")})
    with pytest.raises(UserError, match="'s0' has 4 words in one run and 5"):
        wer.paired_bootstrap(COUNTS, {**COUNTS, "s0": {"errors": 1, "words": 5}})


def test_counts_are_read_as_they_were_written(tmp_path):
    file = tmp_path / "clients_test.json"
    with pytest.raises(UserError, match="finish the run"):
        wer.read_counts(file)
    file.write_text(json.dumps({"round": 3, "metric": "wer", "clients": COUNTS}))
    assert wer.read_counts(file) == COUNTS
    file.write_text('{"clients": {"s0": {"errors": 1}}}')
    with pytest.raises(UserError, match="no counts of speakers"):
        wer.read_counts(file)
