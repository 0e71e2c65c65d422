"""Tests of the in-memory form of a federated data set."""

import numpy as np
import pytest

from fedlite.data.federated import Split
from fedlite.errors import UserError


def test_split_gives_clients_their_examples():
    split = Split(
        arrays={"x": np.arange(10).reshape(5, 2), "y": np.arange(5)},
        offsets=np.array([0, 2, 2, 5]),
        client_ids=("a", "b", "c"),
    )
    assert (split.num_clients, split.num_examples) == (3, 5)
    np.testing.assert_array_equal(split.sizes, [2, 0, 3])
    np.testing.assert_array_equal(split.client(0)["x"], [[0, 1], [2, 3]])
    assert len(split.client(1)["y"]) == 0
    np.testing.assert_array_equal(split.client(2)["y"], [2, 3, 4])


@pytest.mark.parametrize(
    ("arrays", "offsets", "ids", "message"),
    [
        ({}, [0], (), "one length"),
        ({"x": 3, "y": 2}, [0, 3], ("a",), "one length"),
        ({"x": 3}, [0, 3], ("a", "b"), "2 client ids need 3 offsets, got 2"),
        ({"x": 3}, [1, 3], ("a",), "rise from 0"),
        ({"x": 3}, [0, 2], ("a",), r"number of examples \(3\)"),
        ({"x": 3}, [0, 3, 2, 3], ("a", "b", "c"), "rise from 0"),
        ({"x": 3}, [0, 1, 3], ("a", "a"), "unique"),
    ],
)
def test_split_refuses_what_does_not_fit(arrays, offsets, ids, message):
    with pytest.raises(UserError, match=message):
        Split({name: np.zeros(size) for name, size in arrays.items()}, np.array(offsets), ids)


def test_user_error_is_one_line():
    assert str(UserError("two\n   lines")) == "two lines"
