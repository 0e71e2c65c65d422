"""Examples that are read for each round: their padded shapes, and the memory that they take."""

import jax
import numpy as np
import pytest

from fedlite.data.federated import ClientNumbers, Split
from fedlite.federated import feed
from fedlite.federated.cohort import lay_out, sample_cohort


def make_split(sizes, x=None) -> Split:
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    x = np.arange(offsets[-1], dtype=np.int32) if x is None else x
    return Split({"x": x}, offsets, ClientNumbers(len(sizes)))


def fetch(streamed, split, ids, devices=1, clients_per_chunk=1):
    sizes, starts = split.sizes[ids], split.offsets[ids]
    layout = lay_out(
        np.asarray(ids), sizes, starts,
        devices=devices, clients_per_chunk=clients_per_chunk, batch_size=2,
    )  # fmt: skip
    return streamed.fetch([layout], 1)


def streamed_feed(split, devices=1):
    return feed.StreamedFeed(split, jax.devices()[:1] * devices)


def test_each_client_finds_its_examples():
    split = make_split([3, 0, 2, 4, 1])
    fed = fetch(streamed_feed(split), split, [0, 1, 3])
    x, cohort = np.asarray(fed.arrays["x"]), fed.layouts[0].cohort
    found = {
        int(client): x[start : start + size].tolist()
        for client, start, size in zip(
            cohort.ids.ravel(), cohort.starts.ravel(), cohort.sizes.ravel()
        )
    }
    assert found == {0: [0, 1, 2], 1: [], 3: [5, 6, 7, 8]}


def test_room_by_hand():
    sizes = [4, 2, 2, 2, 2, 2, 2, 2, 2, 0]
    streamed = streamed_feed(make_split(sizes))
    # No three clients have more than 4 + 2 + 2, whatever their deviation.
    assert streamed._room((3, 1), 5) == 8
    # Where clients are many, the bound is by their mean and deviation, and a chunk.
    many = make_split([1, 3] * 5000)
    assert streamed_feed(many)._room((1000, 1), 1900) == 1000 * 2 + 6 * 32 - 2 + 3
    assert streamed_feed(many)._room((250, 4), 1900) == 1000 * 2 + 6 * 32 - 2 + 4 * 3
    # Who needs more all the same gets it, in few sizes.
    assert streamed_feed(many)._room((1000, 1), 2900) == 2 * 2193


def test_no_room_at_all_is_room_for_one():
    split = make_split([0, 0, 5])
    fed = fetch(streamed_feed(split), split, [0, 1])
    assert fed.arrays["x"].shape == (5,)
    empty = make_split([0, 0])
    assert streamed_feed(empty)._room((2, 1), 0) == 1


@pytest.mark.parametrize("clients_per_chunk", [1, 3])
def test_cohorts_of_one_size_have_one_shape(clients_per_chunk):
    """Where a power of two above each cohort's examples would not."""
    rng = np.random.default_rng(0)
    split = make_split(rng.integers(1, 8, 5000))
    streamed = streamed_feed(split)
    shapes, totals = set(), []
    for number in range(30):
        ids = sample_cohort(0, number, split.num_clients, 63)
        fed = fetch(streamed, split, ids, clients_per_chunk=clients_per_chunk)
        shapes.add(fed.arrays["x"].shape)
        totals.append(int(split.sizes[ids].sum()))
    assert min(totals) < 256 < max(totals)
    assert len(shapes) == 1
    # Little is padded: the bound is near.
    assert shapes.pop()[0] < 1.7 * np.mean(totals)


def make_layouts(split, *cohorts):
    return [
        lay_out(np.array(ids), split.sizes[ids], split.offsets[ids],
                devices=1, clients_per_chunk=1, batch_size=2)
        for ids in cohorts
    ]  # fmt: skip


def test_what_was_prefetched_is_what_is_fetched():
    split = make_split([3, 1, 2, 4, 1])
    streamed = streamed_feed(split)
    layouts = make_layouts(split, [0, 1, 2], [2, 3, 4])
    for ready, wanted in ((0, 0), (0, 1)):
        streamed.prefetch([layouts[ready]], 1)
        fed = streamed.fetch([layouts[wanted]], 1)
        expected = streamed_feed(split).fetch([layouts[wanted]], 1)
        assert np.array_equal(fed.arrays["x"], expected.arrays["x"])


def test_copies_on_a_cpu_share_its_memory(monkeypatch):
    split = make_split([3, 1])
    for count, limit, expected in (
        (1, 16, feed.ResidentFeed),
        (2, 32, feed.ResidentFeed),
        (2, 31, feed.StreamedFeed),
    ):
        monkeypatch.setattr(feed.devices_lib, "replicate", lambda tree, devices: tree)
        assert isinstance(feed.make_feed(split, jax.devices()[:1] * count, limit), expected)


def found_by(fed):
    """Round by round, each client's examples."""
    x = np.asarray(fed.arrays["x"])
    return [
        {
            int(i): x[a : a + n].tolist()
            for i, a, n in zip(*(leaf.ravel() for leaf in layout.cohort[:3]))
        }
        for layout in fed.layouts
    ]


def test_several_rounds_lie_in_one_array(monkeypatch):
    split = make_split([3, 1, 2, 4, 1])
    layouts = make_layouts(split, [0, 1, 2], [2, 3, 4], [0, 3, 4])
    streamed = streamed_feed(split)
    everyone = [[0, 1, 2], [3], [4, 5], [6, 7, 8, 9], [10]]
    expected = [{i: everyone[i] for i in ids} for ids in ([0, 1, 2], [2, 3, 4], [0, 3, 4])]
    whole = streamed.fetch(layouts, 4)
    assert found_by(whole) == expected
    # The rounds of a shorter call are the first ones of those that were prefetched.
    for wanted in (3, 2, 1):
        streamed.prefetch(layouts, 4)
        streamed._ready[1].result()
        with monkeypatch.context() as patch:
            patch.setattr(streamed, "_read", None)
            fed = streamed.fetch(layouts[:wanted], 4)
        assert found_by(fed) == expected[:wanted]
        assert fed.arrays["x"].shape == whole.arrays["x"].shape
    # Of more rounds than were prefetched, all are read.
    streamed.prefetch(layouts[:1], 4)
    assert found_by(streamed.fetch(layouts, 4)) == expected


def test_rounds_of_a_dispatch_are_bounded_by_their_bytes(monkeypatch):
    split = make_split([3, 1, 2, 4, 2])
    # 12 examples of 4 bytes: 9.6 bytes a client.
    for limit, clients, rounds in ((100, 2, 5), (100, 5, 2), (100, 9, 2), (10, 5, 1)):
        monkeypatch.setattr(feed, "_DISPATCH_BYTES", limit)
        assert streamed_feed(split).most_rounds(clients) == rounds
