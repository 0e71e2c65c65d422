"""Tests of Rotten Tomatoes by film."""

import numpy as np
import pytest

from fedlite import data
from fedlite.errors import UserError


@pytest.fixture(scope="module")
def natural():
    return data.load("rotten_tomatoes")


def test_facts(natural):
    train, test = natural.splits["train"], natural.splits["test"]
    assert (natural.num_classes, natural.kind) == (2, "text")
    assert len(natural.vocabulary) == 5004
    assert train.client_ids == test.client_ids
    assert train.num_clients == 405
    assert (train.sizes + test.sizes).min() >= 10
    for split in (train, test):
        assert split.arrays["x"].shape == (split.num_examples, 40)
        assert split.arrays["x"].dtype == split.arrays["y"].dtype == np.int32
        assert split.arrays["x"].max() <= 5001  # Ids of sentences' ends are not used.
        assert (split.arrays["x"][:, 0] > 0).all()
        assert split.arrays["y"].mean() == pytest.approx(0.58, abs=0.02)


def test_reviews_are_read_back(natural):
    train = natural.splits["train"]
    assert train.client_ids[0] == "a_grin_without_a_cat"
    films = [
        " ".join(natural.vocabulary[token] for token in x if token)
        for split in natural.splits.values()
        for x in split.client(0)["x"]
    ]
    assert "a remarkable <oov> - minute meditation on the nature of revolution ." in films


def test_films_have_skewed_labels(natural):
    train = natural.splits["train"]
    shares = np.array([train.client(client)["y"].mean() for client in range(train.num_clients)])
    binomial = np.sqrt(0.58 * 0.42 / train.sizes.mean())
    assert shares.std() > 2 * binomial


def test_the_vocabulary_is_that_of_the_training_split(natural):
    seen = np.unique(natural.splits["train"].arrays["x"])
    # A review longer than 40 words may hide a rare word's only place.
    assert len(np.intersect1d(seen, np.arange(1, 5001))) > 4950


def test_other_films_for_the_test():
    loaded = data.load("rotten_tomatoes", test_clients="unseen", clients=50)
    train, test = loaded.splits["train"], loaded.splits["test"]
    assert (train.num_clients, test.num_clients) == (40, 10)
    assert not set(train.client_ids) & set(test.client_ids)


def test_partitions_of_all_reviews():
    loaded = data.load(
        "rotten_tomatoes", partition="stratified", clients=100, validation=0.1, sequence_length=8
    )
    sizes = {name: split.num_examples for name, split in loaded.splits.items()}
    assert sum(sizes.values()) == 12_808
    assert sizes["test"] == 2562
    assert loaded.splits["train"].arrays["x"].shape[1] == 8
    assert np.ptp(loaded.splits["test"].sizes) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "films"}, "unknown partition 'films': use natural or one of iid"),
        ({"partition": "iid"}, "clients must be from 1 to"),
        ({"clients": 406}, "clients must be from 1 to 405, or 0 for all"),
        ({"sequence_length": 0}, "sequence_length and vocabulary_size must be 1 or more"),
        ({"min_examples": 1000}, "no film has min_examples 1000: set at most 35"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        data.load("rotten_tomatoes", **options)
