"""Populations that are made up."""

import numpy as np
import pytest

from fedlite import data
from fedlite.data import cache, images, population
from fedlite.data.federated import ClientNumbers, Split
from fedlite.errors import UserError

OPTIONS = {"source": "digits", "examples_per_client": 3, "seed": 5}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(tmp_path_factory.mktemp("population"))


@pytest.fixture(scope="module")
def large(directory):
    """Two blocks, the second one not full."""
    return data.load("population", clients=population.BLOCK + 50, data_dir=directory, **OPTIONS)


def test_a_population(large):
    train, test = large.splits["train"], large.splits["test"]
    assert train.num_clients == population.BLOCK + 50
    assert set(train.sizes) == {1, 2, 3, 4, 5}
    assert train.sizes.mean() == pytest.approx(3, abs=0.1)
    assert train.arrays["x"].shape[1:] == (8, 8, 1) and train.arrays["x"].dtype == np.uint8
    assert train.arrays["y"].dtype == np.int32 and set(train.arrays["y"]) == set(range(10))
    assert (large.name, large.num_classes, large.kind) == ("population", 10, "image")
    assert (test.num_clients, test.num_examples) == (1, 359)
    # Read as they are needed.
    assert not train.arrays["x"].flags.owndata and not train.arrays["x"].flags.writeable


def test_images_have_the_labels_of_their_source(large):
    source = images.digits().splits["train"].arrays
    labels = {}
    for x, y in zip(source["x"], source["y"]):
        labels.setdefault(x.tobytes(), set()).add(int(y))
    train = large.splits["train"].arrays
    for x, y in zip(train["x"][:500], train["y"][:500]):
        assert int(y) in labels[x.tobytes()]


def test_clients_are_the_same_in_a_smaller_population(large, directory):
    for clients in (1, 7, population.BLOCK):
        small = data.load("population", clients=clients, data_dir=directory, **OPTIONS)
        for client in {0, clients // 2, clients - 1}:
            ours, theirs = (d.splits["train"].client(client) for d in (small, large))
            assert ours.keys() == theirs.keys()
            assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_clients_and_seeds_differ(large, directory):
    train = large.splits["train"]
    # The last of the first block and the first of the second have streams of their own.
    heads = [train.client(c)["x"][0].tobytes() for c in (0, 1, population.BLOCK)]
    assert len(set(heads)) == 3
    other = data.load("population", clients=50, data_dir=directory, **{**OPTIONS, "seed": 6})
    assert not np.array_equal(other.splits["train"].sizes, train.sizes[:50])


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.01, 0.9, 1.0), (1000.0, 0.0, 0.55)])
def test_alpha_sets_how_alike_a_clients_labels_are(alpha, low, high, directory):
    options = {**OPTIONS, "examples_per_client": 10, "alpha": alpha}
    train = data.load("population", clients=200, data_dir=directory, **options).splits["train"]
    shares = []
    for client in np.flatnonzero(train.sizes >= 5):
        y = train.client(client)["y"]
        shares.append(np.bincount(y).max() / len(y))
    assert low <= np.mean(shares) <= high


def test_a_population_is_written_once(large, directory, monkeypatch):
    def never(*_):
        raise AssertionError("written again")

    monkeypatch.setattr(cache, "_build", never)
    again = data.load("population", clients=population.BLOCK + 50, data_dir=directory, **OPTIONS)
    assert np.array_equal(again.splits["train"].offsets, large.splits["train"].offsets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 0}, "clients must be 1 or more"),
        ({"examples_per_client": 0}, "examples_per_client must be 1 or more"),
        ({"source": "emnist"}, "use mnist5k or digits"),
        ({"alpha": 0.0}, "alpha must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_left(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        data.load("population", **{"source": "digits", **options}, data_dir=str(tmp_path))
    assert not [path for path in tmp_path.rglob("*.npy")]


def test_numbers_of_clients():
    ids = ClientNumbers(1000)
    assert len(ids) == 1000 and ids[0] == "000" and ids[999] == ids[-1] == "999"
    assert ids[1:4] == ("001", "002", "003") and "007" in ids and ids.index("012") == 12
    assert list(ClientNumbers(3)) == ["0", "1", "2"]
    with pytest.raises(IndexError):
        ids[1000]


def test_a_split_of_numbered_clients_asks_for_no_name(monkeypatch):
    def never(*_):
        raise AssertionError("a name was made")

    monkeypatch.setattr(ClientNumbers, "__getitem__", never)
    split = Split({"y": np.zeros(4)}, np.arange(5), ClientNumbers(4))
    assert split.num_clients == 4
    with pytest.raises(UserError, match="4 client ids need 5 offsets"):
        Split({"y": np.zeros(4)}, np.array([0, 4]), ClientNumbers(4))
