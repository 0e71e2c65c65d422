"""Populations of any size: every client has a few images of MNIST-5k or digits.

What tries the engine at the size of a production population (10^6 clients and more), where no
public data set has one. A client's number of examples is uniform, its labels follow proportions
drawn from Dir(alpha) as in `partition`'s dirichlet_by_client, and its images are drawn, with
replacement, from those of the source's training part that have the label. Clients are a function of
(seed, client) alone, so that a smaller population is the beginning of a larger one.

The arrays are written once, block by block, and memory-mapped: see `fedlite.data.cache`. A million
clients with 4 images of 28 x 28 each are 3.2 GB.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from fedlite.data import cache, images
from fedlite.data import partition as partitions
from fedlite.data.federated import ClientNumbers, FederatedDataset, Split
from fedlite.errors import UserError

SOURCES = {"mnist5k": images.mnist5k, "digits": images.digits}
# Clients whose draws come from one generator; another number is another population.
BLOCK = 4096
# Of the generators, beside those in partition.py and splits.py.
_PURPOSE = 20
_VERSION = 1


class _Pool(NamedTuple):
    """Images sorted by label: those of label `c` are `x[first[c] : first[c] + count[c]]`."""

    x: np.ndarray
    first: np.ndarray
    count: np.ndarray


def population(
    *,
    clients: int = 1000,
    source: str = "mnist5k",
    examples_per_client: int = 4,
    alpha: float = 0.5,
    seed: int = 0,
    data_dir: str = "",
) -> FederatedDataset:
    """Loads a population, which is written first where it is not there yet.

    Args:
      clients: their number.
      source: "mnist5k" (images of 28 x 28) or "digits" (8 x 8).
      examples_per_client: their mean; a client has 1 to 2 * examples_per_client - 1.
      alpha: of the Dirichlet distribution of a client's label proportions.
      seed: of all draws.
      data_dir: where the files go or lie; "" for fedlite's cache.

    Returns:
      The splits "train", and "test" with the source's test part as one client.
    """
    return make(
        clients=clients,
        source=source,
        examples_per_client=examples_per_client,
        alpha=alpha,
        seed=seed,
        data_dir=data_dir,
    )


def make(
    *,
    clients: int,
    source: str,
    examples_per_client: int,
    alpha: float,
    seed: int,
    data_dir: str,
    progress: Callable[[int], None] = lambda done: None,
) -> FederatedDataset:
    """As `population`; `progress` is told how many clients are written."""
    if source not in SOURCES:
        raise UserError(f"source = {source!r} is unknown: use {' or '.join(SOURCES)}")
    for name, value in (("clients", clients), ("examples_per_client", examples_per_client)):
        if value < 1:
            raise UserError(f"{name} must be 1 or more, got {value}")
    options = {
        "version": _VERSION,
        "clients": clients,
        "source": source,
        "examples_per_client": examples_per_client,
        "alpha": alpha,
        "seed": seed,
    }

    def convert(writer: cache.Writer) -> dict[str, int]:
        pooled = SOURCES[source](clients=1, partition="iid").splits
        pool = _pool(**pooled["train"].arrays)
        writer.append("offsets", np.zeros(1, np.int64))
        done = examples = 0
        for sizes, x, y in _blocks(pool, clients, examples_per_client, alpha, seed):
            writer.append("offsets", examples + np.cumsum(sizes))
            writer.append("x", x)
            writer.append("y", y)
            done, examples = done + len(sizes), examples + len(y)
            progress(done)
        for name, array in pooled["test"].arrays.items():
            writer.append(f"test_{name}", array)
        return {"classes": len(pool.count)}

    entry = cache.load(
        "population", options=options, sources=[], convert=convert, cache_dir=data_dir
    )
    arrays = entry.arrays
    test = {name: np.array(arrays[f"test_{name}"]) for name in ("x", "y")}
    return FederatedDataset(
        name="population",
        splits={
            "train": Split(
                {name: arrays[name] for name in ("x", "y")},
                np.array(arrays["offsets"]),
                ClientNumbers(clients),
            ),
            "test": Split(test, np.array([0, len(test["y"])]), ("test",)),
        },
        num_classes=entry.facts["classes"],
    )


def _pool(x: np.ndarray, y: np.ndarray) -> _Pool:
    count = np.bincount(y)
    return _Pool(x[np.argsort(y, kind="stable")], np.cumsum(count) - count, count)


def _blocks(
    pool: _Pool, clients: int, mean: int, alpha: float, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The sizes and the examples of `BLOCK` clients after the other."""
    for block, begin in enumerate(range(0, clients, BLOCK)):
        # Drawn in full also for the last clients: nobody's data depends on how many there are.
        rng = partitions.generator(seed, _PURPOSE, block)
        sizes = rng.integers(1, 2 * mean, BLOCK)
        labels_seed = int(rng.integers(2**31))
        proportions = partitions.client_proportions(
            BLOCK, len(pool.count), labels_seed, alpha=alpha
        )
        owners = np.repeat(np.arange(BLOCK), sizes)
        below = proportions.cumsum(axis=1)[owners, :-1]
        y = (rng.random((len(owners), 1)) >= below).sum(axis=1)
        chosen = pool.first[y] + rng.integers(0, pool.count[y])
        count = min(BLOCK, clients - begin)
        kept = int(sizes[:count].sum())
        yield sizes[:count], pool.x[chosen[:kept]], y[:kept].astype(np.int32)
