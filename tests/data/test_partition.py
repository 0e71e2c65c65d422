"""Tests of the partitions: properties of all kinds, then what each promises."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from fedlite.data import partition as partitions
from fedlite.data.partition import partition, partition_test
from fedlite.errors import UserError

KINDS = tuple(partitions.KINDS)
BALANCED = np.tile(np.arange(10), 100)
OPTIONS = {"dirichlet_by_class": {"min_examples": 1, "attempts": 50}}


def counts_of(labels, assignments, clients):
    """How many examples of each label each client holds, [clients, labels]."""
    counts = np.zeros((clients, labels.max() + 1), int)
    np.add.at(counts, (assignments, labels), 1)
    return counts


def skew(labels, assignments):
    """The mean total variation between the clients' labels and all labels."""
    counts = counts_of(labels, assignments, assignments.max() + 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    return np.abs(shares - np.bincount(labels) / len(labels)).sum(axis=1).mean() / 2


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_every_example_has_one_client_and_every_client_examples(kind, data):
    labels = np.array(data.draw(st.lists(st.integers(0, 4), min_size=8, max_size=60)))
    clients = data.draw(st.integers(1, len(labels) // 4))
    seed = data.draw(st.integers(0, 2**32))
    try:
        assignments = partition(labels, kind, clients, seed, **OPTIONS.get(kind, {}))
    except UserError:
        # Retries may be used up, by this kind alone.
        assert kind == "dirichlet_by_class"
        hypothesis.reject()
    assert assignments.dtype == np.int32
    assert assignments.shape == labels.shape
    assert set(assignments) == set(range(clients))
    again = partition(labels, kind, clients, seed, **OPTIONS.get(kind, {}))
    np.testing.assert_array_equal(assignments, again)


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_gives_another_partition(kind):
    first, second = (partition(BALANCED, kind, 10, seed) for seed in (0, 1))
    assert (first != second).mean() > 0.5


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("iid", "2201220010121010"),
        ("stratified", "1121002020212100"),
        ("dirichlet_by_client", "0012022012012110"),
        ("dirichlet_by_class", "0121120011122220"),
        ("shards", "0121220101201200"),
        ("quantity", "1011121001111200"),
    ],
)
def test_partitions_stay_what_they_were(kind, expected):
    # Results that were published must be computed on the same clients in years to come.
    labels = np.arange(16) % 3
    assignments = partition(labels, kind, 3, 7, **OPTIONS.get(kind, {}))
    assert "".join(map(str, assignments)) == expected


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(size=st.integers(1, 50), clients=st.integers(1, 50), seed=st.integers(0, 99))
@pytest.mark.parametrize("kind", ["iid", "stratified", "dirichlet_by_client"])
def test_sizes_are_equal_but_for_a_spread_remainder(kind, size, clients, seed):
    hypothesis.assume(clients <= size)
    labels = np.random.default_rng(seed).integers(0, 4, size)
    sizes = np.bincount(partition(labels, kind, clients, seed), minlength=clients)
    assert sizes.max() - sizes.min() == (size % clients > 0)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(size=st.integers(5, 80), clients=st.integers(1, 5), seed=st.integers(0, 99))
def test_stratified_spreads_each_label_evenly(size, clients, seed):
    labels = np.random.default_rng(seed).integers(0, 4, size)
    counts = counts_of(labels, partition(labels, "stratified", clients, seed), clients)
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()


@pytest.mark.parametrize("kind", ["dirichlet_by_client", "dirichlet_by_class"])
def test_label_skew_grows_as_alpha_falls(kind):
    skews = [
        np.mean([skew(BALANCED, partition(BALANCED, kind, 8, s, alpha=a)) for s in range(3)])
        for a in (100.0, 1.0, 0.1)
    ]
    assert skews[0] + 0.1 < skews[1] < skews[2] - 0.1


def test_dirichlet_by_client_follows_its_proportions():
    labels = np.tile(np.arange(4), 10_000)
    proportions = partitions.client_proportions(4, 4, 5, alpha=1.0)
    counts = counts_of(labels, partition(labels, "dirichlet_by_client", 4, 5, alpha=1.0), 4)
    # The first client finds all classes full; 0.02 is four standard deviations of 10,000 draws.
    np.testing.assert_allclose(counts[0] / 10_000, proportions[0], atol=0.02)
    np.testing.assert_allclose(proportions.sum(axis=1), 1)


def test_dirichlet_by_client_renormalises_without_exhausted_classes():
    # Two of three classes have one example: whatever the proportions, class 0 must fill up.
    labels = np.array([0] * 10 + [1, 2])
    for seed in range(5):
        assignments = partition(labels, "dirichlet_by_client", 3, seed, alpha=1e-8)
        np.testing.assert_array_equal(np.bincount(assignments), [4, 4, 4])


def test_dirichlet_by_class_stops_at_the_even_part():
    clients = 10
    assignments = partition(BALANCED, "dirichlet_by_class", clients, 3, alpha=0.3)
    counts = counts_of(BALANCED, assignments, clients)
    held_before = np.cumsum(counts, axis=1) - counts
    assert (held_before[counts > 0] < len(BALANCED) / clients).all()
    assert counts.sum(axis=1).min() >= 10


def test_shards_give_few_classes():
    assignments = partition(BALANCED, "shards", 25, 0, shards_per_client=2)
    counts = counts_of(BALANCED, assignments, 25)
    # 50 shards of 20, five to a class.
    assert set(np.unique(counts)) <= {0, 20, 40}
    assert (counts.sum(axis=1) == 40).all()
    assert (counts > 0).sum(axis=1).max() == 2


def test_shards_spread_a_remainder():
    sizes = np.bincount(partition(np.zeros(11, int), "shards", 2, 0, shards_per_client=2))
    assert sorted(sizes) in ([5, 6],)


def test_quantity_skews_sizes_alone():
    sizes, skews = zip(
        *(
            (np.bincount(assignments), skew(BALANCED, assignments))
            for a in (0.2, 100.0)
            for assignments in [partition(BALANCED, "quantity", 5, 1, alpha=a)]
        )
    )
    assert sizes[0].std() > 100 > 50 > sizes[1].std()
    assert sizes[0].min() >= 1
    assert skews[1] < 0.1


def test_natural_sorts_owners():
    assignments, ids = partitions.natural(["b", "a", "b", "c"])
    np.testing.assert_array_equal(assignments, [1, 0, 1, 2])
    assert ids == ("a", "b", "c")
    assert partitions.natural(np.array([10, 2]))[1] == ("2", "10")


@pytest.mark.parametrize("kind", KINDS)
def test_every_client_has_test_examples_and_none_is_lost(kind):
    test_labels = np.tile(np.arange(10), 5)
    assignments = partition(BALANCED, kind, 20, 0)
    tested = partition_test(test_labels, kind, 0, labels=BALANCED, assignments=assignments)
    assert tested.shape == test_labels.shape
    assert set(tested) == set(range(20))


@pytest.mark.parametrize("kind", ["dirichlet_by_class", "shards"])
def test_clients_are_tested_on_the_labels_that_they_train_on(kind):
    clients = 5
    assignments = partition(BALANCED, kind, clients, 2)
    test_labels = np.tile(np.arange(10), 50)
    tested = partition_test(test_labels, kind, 2, labels=BALANCED, assignments=assignments)
    train = counts_of(BALANCED, assignments, clients)
    # There are half as many test examples of each label.
    np.testing.assert_allclose(counts_of(test_labels, tested, clients), train / 2, atol=1)


def test_test_split_has_the_same_proportions():
    labels, test_labels = np.tile(np.arange(4), 10_000), np.tile(np.arange(4), 5_000)
    assignments = partition(labels, "dirichlet_by_client", 4, 5, alpha=1.0)
    tested = partition_test(
        test_labels, "dirichlet_by_client", 5, labels=labels, assignments=assignments, alpha=1.0
    )
    train, test = counts_of(labels, assignments, 4), counts_of(test_labels, tested, 4)
    np.testing.assert_allclose(test[0] / 5_000, train[0] / 10_000, atol=0.03)


def test_a_client_without_test_examples_takes_one_of_its_labels():
    # Clients 0 and 1 share label 0, client 2 has the one example of label 1 among many.
    labels = np.array([0] * 8 + [1] * 8)
    assignments = np.array([0] * 8 + [1] * 7 + [2])
    test_labels = np.array([0, 0, 1, 1])
    tested = partition_test(test_labels, "shards", 0, labels=labels, assignments=assignments)
    counts = counts_of(test_labels, tested, 3)
    np.testing.assert_array_equal(counts, [[2, 0], [0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("kind", "clients", "options", "message"),
    [
        ("random", 2, {}, "unknown partition 'random': use one of iid, stratified"),
        ("iid", 2, {"alpha": 1.0}, "unknown option 'alpha' of partition 'iid': use none"),
        ("iid", 0, {}, "clients must be from 1 to 20"),
        ("iid", 21, {}, "clients must be from 1 to 20"),
        ("dirichlet_by_client", 2, {"alpha": 0.0}, "alpha must be a finite number above 0"),
        ("dirichlet_by_class", 2, {"alpha": -1.0}, "alpha must be"),
        ("dirichlet_by_client", 2, {"classes": 1}, "label 1 needs classes 2, got 1"),
        ("quantity", 2, {"alpha": float("nan")}, "alpha must be"),
        ("quantity", 2, {"alpha": float("inf")}, "alpha must be"),
        ("dirichlet_by_class", 3, {}, "min_examples 10 each: set it from 1 to 6"),
        ("dirichlet_by_class", 2, {"min_examples": 0}, "set it from 1 to 10"),
        ("shards", 2, {"shards_per_client": 0}, "set shards_per_client from 1 to 10"),
        ("shards", 2, {"shards_per_client": 11}, "set shards_per_client from 1 to 10"),
    ],
)
def test_bad_options_are_named_with_their_remedy(kind, clients, options, message):
    with pytest.raises(UserError, match=message):
        partition(np.arange(20) % 2, kind, clients, 0, **options)


def test_dirichlet_by_class_gives_up():
    with pytest.raises(UserError, match=r"20 draws .* raise alpha, or lower clients"):
        partition(BALANCED, "dirichlet_by_class", 50, 0, alpha=1e-3, attempts=20)


def test_negative_seed_and_small_test_split_are_refused():
    with pytest.raises(UserError, match="seed must be 0 or more"):
        partition(BALANCED, "iid", 5, -1)
    with pytest.raises(UserError, match="3 test examples cannot serve 5 clients"):
        assignments = partition(BALANCED, "iid", 5, 0)
        partition_test(np.zeros(3, int), "iid", 0, labels=BALANCED, assignments=assignments)
