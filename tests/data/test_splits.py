"""Tests of the way from examples and owners to splits."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from fedlite.data import partition as partitions
from fedlite.data import splits
from fedlite.errors import UserError


def numbered(*sizes):
    """A split whose examples are 0, 1, 2, ... over clients of these sizes."""
    owners = np.repeat(np.arange(len(sizes)), sizes)
    return splits.split_by({"y": np.arange(len(owners))}, owners, splits.client_names(len(sizes)))


def examples(split):
    """The examples of each client, by id."""
    return {name: split.client(index)["y"].tolist() for index, name in enumerate(split.client_ids)}


sizes_lists = st.lists(st.integers(1, 12), min_size=1, max_size=8)


def test_split_by_keeps_the_order_within_a_client():
    arrays = {"x": np.array([[5], [6], [7], [8]]), "y": np.array([0, 1, 2, 3])}
    split = splits.split_by(arrays, np.array([1, 0, 1, 0]), ("a", "b", "c"))
    assert examples(split) == {"a": [1, 3], "b": [0, 2], "c": []}
    np.testing.assert_array_equal(split.client(1)["x"], [[5], [7]])


def test_from_clients_joins_in_order():
    split = splits.from_clients({"z": {"y": np.array([4, 5])}, "a": {"y": np.array([6])}})
    assert examples(split) == {"z": [4, 5], "a": [6]}


def test_client_names_sort_by_number():
    assert splits.client_names(11)[::5] == ("00", "05", "10")
    assert splits.client_names(1) == ("0",)


@pytest.mark.parametrize(
    ("size", "fraction", "count"),
    [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (10, 0.2, 2), (10, 0.25, 3), (10, 0.24, 2)],
)
def test_held_counts(size, fraction, count):
    assert splits.held_counts(np.array([size]), fraction) == [count]


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(sizes=sizes_lists, seed=st.integers(0, 99), last=st.booleans())
def test_hold_out_divides_every_client(sizes, seed, last):
    hypothesis.assume(max(sizes) > 1)
    split = numbered(*sizes)
    rest, held = splits.hold_out(split, 0.3, seed, last=last)
    assert rest.client_ids == split.client_ids
    assert held.client_ids == tuple(name for name, size in zip(split.client_ids, sizes) if size > 1)
    rests, helds = examples(rest), examples(held)
    for name, whole in examples(split).items():
        kept, out = rests[name], helds.get(name, [])
        assert kept == sorted(kept) and out == sorted(out)
        assert (kept + out if last else sorted(kept + out)) == whole
        assert len(out) == splits.held_counts(np.array(len(whole)), 0.3)


def test_hold_out_draws_by_seed():
    split = numbered(50, 50)
    first, again, other = (splits.hold_out(split, 0.5, seed)[1] for seed in (0, 0, 1))
    assert examples(first) == examples(again) != examples(other)
    # A random half, not one end of it.
    assert 15 < np.mean(first.client(0)["y"]) < 34


def test_hold_out_needs_two_examples():
    with pytest.raises(UserError, match="no client has two examples"):
        splits.hold_out(numbered(1, 1), 0.5, 0)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(sizes=sizes_lists, most=st.integers(1, 12), seed=st.integers(0, 99))
def test_cap_keeps_at_most_so_many(sizes, most, seed):
    split = numbered(*sizes)
    capped = splits.cap(split, most, seed)
    np.testing.assert_array_equal(capped.sizes, np.minimum(sizes, most))
    for name, kept in examples(capped).items():
        assert kept == sorted(set(kept) & set(examples(split)[name]))


def test_no_cap_returns_the_split_itself():
    split = numbered(3, 2)
    assert splits.cap(split, 0, 0) is split
    with pytest.raises(UserError, match="max_examples_per_client must be 0"):
        splits.cap(split, -1, 0)


def test_draw_clients():
    split = numbered(1, 2, 3, 4, 5)
    drawn = splits.draw_clients(split, 3, 0)
    assert drawn.num_clients == 3
    assert examples(drawn).items() <= examples(split).items()
    assert list(drawn.client_ids) == sorted(drawn.client_ids)
    assert len({splits.draw_clients(split, 3, seed).client_ids for seed in range(20)}) > 3
    assert splits.draw_clients(split, 0, 0) is split
    for wrong in (-1, 6):
        with pytest.raises(UserError, match="clients must be from 1 to 5, or 0 for all"):
            splits.draw_clients(split, wrong, 0)


def test_unseen_clients_are_held_out_whole():
    split = numbered(1, 2, 3, 4, 5)
    train, test = splits.hold_out_test(split, "unseen", 0.4, 0)
    assert (train.num_clients, test.num_clients) == (3, 2)
    assert examples(train) | examples(test) == examples(split)


@pytest.mark.parametrize(
    ("sizes", "test_clients", "fraction", "message"),
    [
        ((2, 2), "other", 0.5, "test_clients must be 'same' or 'unseen', got 'other'"),
        ((2, 2), "same", 0.0, "test_fraction must be above 0 and below 1"),
        ((2, 2), "unseen", 1.0, "test_fraction must be above 0 and below 1"),
        ((9,), "unseen", 0.5, "at least two clients"),
    ],
)
def test_hold_out_test_refuses(sizes, test_clients, fraction, message):
    with pytest.raises(UserError, match=message):
        splits.hold_out_test(numbered(*sizes), test_clients, fraction, 0)


def test_with_validation_cuts_before_it_caps():
    parts = splits.with_validation(
        numbered(10, 4), numbered(2), validation=0.5, max_examples_per_client=3, seed=0
    )
    np.testing.assert_array_equal(parts["train"].sizes, [3, 2])
    np.testing.assert_array_equal(parts["validation"].sizes, [5, 2])
    assert not set(parts["train"].arrays["y"]) & set(parts["validation"].arrays["y"])
    assert examples(parts["test"]) == {"0": [0, 1]}


@pytest.mark.parametrize("validation", [-0.1, 1.0])
def test_validation_is_a_fraction(validation):
    with pytest.raises(UserError, match="validation must be at least 0 and below 1"):
        splits.with_validation(
            numbered(2),
            numbered(2),
            validation=validation,
            max_examples_per_client=0,
            seed=0,
        )


def test_train_test_is_stratified_and_shuffled():
    pooled = {"x": np.arange(100), "y": np.repeat([0, 1], [80, 20])}
    train, test = splits.train_test(pooled, 0.2)
    np.testing.assert_array_equal(np.bincount(test["y"]), [16, 4])
    np.testing.assert_array_equal(np.sort([*train["x"], *test["x"]]), np.arange(100))
    np.testing.assert_array_equal(pooled["y"][train["x"]], train["y"])
    # Not sorted by label: both are found among the first.
    assert set(train["y"][:25]) == {0, 1}
    with pytest.raises(UserError, match="test_fraction"):
        splits.train_test(pooled, 1.0)


def test_federate_gives_both_parts_the_same_clients():
    labels = np.repeat(np.arange(4), 50)
    train, test = splits.train_test({"x": np.arange(200), "y": labels}, 0.2)
    parts = splits.federate(
        train,
        test,
        partition="shards",
        clients=8,
        seed=3,
        shards_per_client=1,
        alpha=0.1,  # Not of this kind, and left out.
    )
    assert parts["train"].client_ids == parts["test"].client_ids == tuple("01234567")
    together = np.concatenate([parts["train"].arrays["x"], parts["test"].arrays["x"]])
    np.testing.assert_array_equal(np.sort(together), np.arange(200))
    for client in range(8):
        (label,) = set(parts["train"].client(client)["y"])
        assert set(parts["test"].client(client)["y"]) == {label}


@pytest.mark.parametrize("kind", partitions.KINDS)
def test_federate_takes_a_label_that_only_the_test_has(kind):
    train = {"x": np.arange(40), "y": np.arange(40) % 2}
    test = {"x": np.arange(8), "y": np.arange(8) % 4}
    parts = splits.federate(train, test, partition=kind, clients=2, seed=0, min_examples=5)
    np.testing.assert_array_equal(np.sort(parts["test"].arrays["x"]), np.arange(8))
