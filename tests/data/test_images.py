"""Tests of MNIST-5k and digits."""

import numpy as np
import pytest

from fedlite import data
from fedlite.errors import UserError

FACTS = {"mnist5k": (100, 4000, 1000, 28), "digits": (20, 1438, 359, 8)}


@pytest.fixture(scope="module", params=FACTS)
def loaded(request):
    return data.load(request.param)


def test_facts(loaded):
    clients, train, test, size = FACTS[loaded.name]
    assert (loaded.num_classes, loaded.kind) == (10, "image")
    assert set(loaded.splits) == {"train", "test"}
    for name, examples in (("train", train), ("test", test)):
        split = loaded.splits[name]
        assert split.num_clients == clients
        assert split.arrays["x"].shape == (examples, size, size, 1)
        assert split.arrays["x"].dtype == np.uint8
        assert split.arrays["y"].shape == (examples,)
        assert split.arrays["y"].dtype == np.int32
        # The full range of shades and of labels is used.
        assert (split.arrays["x"].min(), split.arrays["x"].max()) == (0, 255)
        assert set(split.arrays["y"]) == set(range(10))
        assert split.sizes.max() - split.sizes.min() <= 1


def test_images_belong_to_their_labels(loaded):
    train, test = (loaded.splits[name].arrays for name in ("train", "test"))
    means = np.stack([train["x"][train["y"] == label].mean(axis=0) for label in range(10)])
    distances = ((test["x"][:, None] - means[None]) ** 2).sum(axis=(2, 3, 4))
    # The nearest mean is right for four in five of MNIST, nine in ten of digits.
    assert (distances.argmin(axis=1) == test["y"]).mean() > 0.75


def test_train_and_test_do_not_depend_on_partition_and_seed(loaded):
    other = data.load(loaded.name, partition="iid", clients=7, seed=5)
    for name in ("train", "test"):
        first, second = (
            sorted(image.tobytes() for image in each.splits[name].arrays["x"])
            for each in (loaded, other)
        )
        assert first == second


def test_options():
    capped = data.load("digits", clients=10, validation=0.25, max_examples_per_client=30)
    assert set(capped.splits) == {"train", "test", "validation"}
    np.testing.assert_array_equal(capped.splits["train"].sizes, [30] * 10)
    assert capped.splits["validation"].num_examples == 360
    assert (
        data.load("digits", partition="dirichlet_by_class", alpha=1.0).splits["train"].sizes.min()
        >= 10
    )
    with pytest.raises(UserError, match="clients must be from 1 to 1438"):
        data.load("digits", clients=2000)
    with pytest.raises(UserError, match="alpha must be"):
        data.load("digits", alpha=0.0)
    with pytest.raises(UserError, match="unknown partition 'natural'"):
        data.load("digits", partition="natural")
