"""Tests of the digits of three sources."""

import numpy as np
import pytest

from fedlite import data
from fedlite.data.domains import DOMAINS
from fedlite.errors import UserError


@pytest.fixture(scope="module")
def loaded():
    return data.load("digit_domains", clients=12)


def test_clients_have_one_domain_each_and_all_labels(loaded):
    for name, examples in (("train", 1400), ("test", 350)):
        split = loaded.splits[name]
        assert split.num_clients == 12
        assert split.arrays["x"].shape == (3 * examples, 28, 28, 1)
        assert split.arrays["x"].dtype == np.uint8
        assert [i.split("-")[0] for i in split.client_ids] == [d for d in DOMAINS for _ in range(4)]
        for client in range(12):
            counts = np.bincount(split.client(client)["y"], minlength=10)
            assert len(counts) == 10 and counts.min() > 0
            assert split.sizes[client] in (examples // 4, examples // 4 + 1)


def test_domains_look_different(loaded):
    """A nearest mean of the domain's own training images beats one of another domain's."""
    train, test = loaded.splits["train"], loaded.splits["test"]

    def of(split, domain):
        rows = slice(split.offsets[4 * domain], split.offsets[4 * domain + 4])
        return split.arrays["x"][rows].astype(float), split.arrays["y"][rows]

    accuracy = np.zeros((3, 3))
    for source in range(3):
        x, y = of(train, source)
        means = np.stack([x[y == label].mean(axis=0) for label in range(10)])
        for target in range(3):
            images, labels = of(test, target)
            nearest = ((images[:, None] - means) ** 2).sum(axis=(2, 3, 4)).argmin(axis=1)
            accuracy[source, target] = (nearest == labels).mean()
    assert np.diag(accuracy).min() > 0.25
    for source in range(3):
        others = np.delete(accuracy[:, source], source)
        assert accuracy[source, source] > others.max() + 0.1


def test_the_same_seed_gives_the_same_clients(loaded):
    again = data.load("digit_domains", clients=12)
    np.testing.assert_array_equal(
        again.splits["train"].arrays["x"], loaded.splits["train"].arrays["x"]
    )
    other = data.load("digit_domains", clients=12, seed=1)
    assert not np.array_equal(other.splits["train"].arrays["x"], loaded.splits["train"].arrays["x"])


def test_clients_are_dealt_to_the_domains_evenly():
    split = data.load("digit_domains", clients=5, examples_per_domain=40).splits["train"]
    domains = [name.split("-")[0] for name in split.client_ids]
    assert [domains.count(domain) for domain in DOMAINS] == [2, 2, 1]
    assert split.sizes.tolist() == [20, 20, 20, 20, 40]


@pytest.mark.parametrize("options", [{"clients": 2}, {"examples_per_domain": 1401}])
def test_refusals(options):
    with pytest.raises(UserError, match=r"3 clients or more|to 1400"):
        data.load("digit_domains", **options)
