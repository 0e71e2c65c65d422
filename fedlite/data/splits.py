"""From examples and their owners to the splits of a federated data set.

A pooled data set becomes federated by `federate` (a partition of `fedlite.data.partition`),
one with natural clients by `split_by` and `hold_out`. All are pure functions of their
arguments, the seed among them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fedlite.data import partition as partitions
from fedlite.data.federated import Split
from fedlite.errors import UserError

Arrays = Mapping[str, np.ndarray]

# Purposes of generators, beside those in partition.py.
_HOLD_OUT, _CAP, _CLIENTS, _TRAIN_TEST = range(10, 14)


def client_names(clients: int) -> tuple[str, ...]:
    """Ids of clients that have no name of their own: their numbers, of equal width."""
    width = len(str(clients - 1))
    return tuple(f"{client:0{width}d}" for client in range(clients))


def split_by(arrays: Arrays, assignments: np.ndarray, client_ids: Sequence[str]) -> Split:
    """The split in which example `i` belongs to client `assignments[i]`.

    Args:
      arrays: each [examples, ...]; a client's examples keep their order.
      assignments: integers [examples] below the number of clients.
      client_ids: the name of each client.
    """
    order = np.argsort(assignments, kind="stable")
    sizes = np.bincount(assignments, minlength=len(client_ids))
    return Split(
        arrays={name: array[order] for name, array in arrays.items()},
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        client_ids=tuple(client_ids),
    )


def from_clients(clients: Mapping[str, Arrays]) -> Split:
    """The split of the given clients, in this order; each maps to its own arrays."""
    parts = list(clients.values())
    sizes = [len(next(iter(part.values()))) for part in parts]
    return Split(
        arrays={name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        client_ids=tuple(clients),
    )


def _owners(split: Split) -> np.ndarray:
    return np.repeat(np.arange(split.num_clients), split.sizes)


def _keep(split: Split, kept: np.ndarray) -> Split:
    """The split with the examples where `kept` (bool [examples]); empty clients go."""
    sizes = np.bincount(_owners(split)[kept], minlength=split.num_clients)
    return Split(
        arrays={name: array[kept] for name, array in split.arrays.items()},
        offsets=np.concatenate([[0], np.cumsum(sizes[sizes > 0])]),
        client_ids=tuple(np.array(split.client_ids, object)[sizes > 0]),
    )


def _random_ranks(split: Split, seed: int, purpose: int) -> np.ndarray:
    """A random order of each client's examples: the place of each, int64 [examples]."""
    keys = partitions.generator(seed, purpose).random(split.num_examples)
    order = np.lexsort((keys, _owners(split)))
    ranks = np.empty(split.num_examples, np.int64)
    ranks[order] = np.arange(split.num_examples)
    return ranks - np.repeat(split.offsets[:-1], split.sizes)


def held_counts(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """How many of `sizes` items to hold out: the nearest to `fraction`, but one at least.

    Never all of them, so none of one.
    """
    counts = np.floor(fraction * sizes + 0.5).astype(np.int64)
    return np.minimum(np.maximum(counts, 1), np.maximum(sizes - 1, 0))


def hold_out(
    split: Split, fraction: float, seed: int, *, last: bool = False
) -> tuple[Split, Split]:
    """Cuts a part of every client's examples off.

    Each client gives as many as `held_counts` says; one with a single example gives none
    and is then no client of the second split.

    Args:
      split: a split.
      fraction: above 0 and below 1.
      seed: of the draw.
      last: take each client's last examples instead of a random draw, where their order
        is that of time.

    Returns:
      The rest, with all clients, and what was held out. Both keep the examples' order.
    """
    sizes = split.sizes
    counts = held_counts(sizes, fraction)
    if last:
        ranks = np.repeat(split.offsets[1:], sizes) - 1 - np.arange(split.num_examples)
    else:
        ranks = _random_ranks(split, seed, _HOLD_OUT)
    held = ranks < np.repeat(counts, sizes)
    if not held.any():
        raise UserError("no client has two examples, so none can be held out of its data")
    return _keep(split, ~held), _keep(split, held)


def keep_clients(split: Split, kept: np.ndarray) -> Split:
    """The split with the clients where `kept` (bool [clients]) and no others."""
    return _keep(split, kept[_owners(split)])


def draw_clients(split: Split, clients: int, seed: int) -> Split:
    """A random draw of `clients` clients, in their old order; all of them for 0."""
    if not 0 <= clients <= split.num_clients:
        raise UserError(
            f"clients must be from 1 to {split.num_clients}, or 0 for all, got {clients}"
        )
    if not clients:
        return split
    drawn = partitions.generator(seed, _CLIENTS).permutation(split.num_clients)[:clients]
    return keep_clients(split, np.isin(np.arange(split.num_clients), drawn))


def hold_out_test(
    split: Split, test_clients: str, fraction: float, seed: int, *, last: bool = False
) -> tuple[Split, Split]:
    """The training and test split of a data set with natural clients.

    Args:
      split: all examples.
      test_clients: "same" to hold out a part of every client's examples, see `hold_out`;
        "unseen" to hold out a part of the clients with all their examples.
      fraction: of the examples or clients that are held out.
      seed: of the draw.
      last: see `hold_out`.
    """
    if not 0 < fraction < 1:
        raise UserError(f"test_fraction must be above 0 and below 1, got {fraction}")
    if test_clients == "same":
        return hold_out(split, fraction, seed, last=last)
    if test_clients != "unseen":
        raise UserError(f"test_clients must be 'same' or 'unseen', got {test_clients!r}")
    if split.num_clients < 2:
        raise UserError("a test on unseen clients needs at least two clients, got one")
    held = int(held_counts(np.array(split.num_clients), fraction))
    seen = draw_clients(split, split.num_clients - held, seed)
    unseen = ~np.isin(split.client_ids, seen.client_ids)
    return seen, keep_clients(split, unseen)


def cap(split: Split, max_examples: int, seed: int) -> Split:
    """At most `max_examples` of each client, drawn at random; their order is kept."""
    if max_examples < 0:
        raise UserError(f"max_examples_per_client must be 0 (no cap) or more, got {max_examples}")
    if max_examples == 0 or split.sizes.max() <= max_examples:
        return split
    return _keep(split, _random_ranks(split, seed, _CAP) < max_examples)


def with_validation(
    train: Split,
    test: Split,
    *,
    validation: float,
    max_examples_per_client: int,
    seed: int,
    last: bool = False,
) -> dict[str, Split]:
    """The splits of a data set: training examples cut for validation, then capped.

    Args:
      train: all training examples.
      test: passed through.
      validation: the fraction of each client's training examples that makes up the split
        "validation"; 0 for none.
      max_examples_per_client: of the training split; 0 for no cap.
      seed: of the draws.
      last: cut each client's last examples for validation instead of random ones.
    """
    if not 0 <= validation < 1:
        raise UserError(f"validation must be at least 0 and below 1, got {validation}")
    splits = {"train": train, "test": test}
    if validation:
        splits["train"], splits["validation"] = hold_out(train, validation, seed, last=last)
    splits["train"] = cap(splits["train"], max_examples_per_client, seed)
    return splits


def train_test(pooled: Arrays, fraction: float = 0.2) -> tuple[Arrays, Arrays]:
    """Divides pooled examples, stratified by label and always in the same way.

    Args:
      pooled: arrays [examples, ...], with integer labels "y".
      fraction: of each class that is for the test, to the nearest whole number.

    Returns:
      The training and the test arrays, each in random order so that no client's examples
      come sorted by label.
    """
    if not 0 < fraction < 1:
        raise UserError(f"test_fraction must be above 0 and below 1, got {fraction}")
    labels = pooled["y"]
    order = partitions.generator(0, _TRAIN_TEST).permutation(len(labels))
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        test[members[: round(fraction * len(members))]] = True
    parts = order[~test[order]], order[test[order]]
    return tuple({name: array[part] for name, array in pooled.items()} for part in parts)


def federate(
    train: Arrays,
    test: Arrays,
    *,
    partition: str,
    clients: int,
    seed: int,
    validation: float = 0.0,
    max_examples_per_client: int = 0,
    **options,
) -> dict[str, Split]:
    """The splits of a pooled data set, its training and test part over the same clients.

    Args:
      train: arrays [examples, ...], with integer labels "y".
      test: likewise.
      partition: a kind of `fedlite.data.partition.KINDS`.
      clients: their number.
      seed: of all draws.
      validation: see `with_validation`.
      max_examples_per_client: see `with_validation`.
      **options: of partitions; those that this kind doesn't know are left out, so that
        a data set can offer the options of all kinds.
    """
    known = partitions.partition_options(partition)
    options = {name: value for name, value in options.items() if name in known}
    labels, test_labels = np.asarray(train["y"]), np.asarray(test["y"])
    if "classes" in known:
        options["classes"] = int(max(labels.max(), test_labels.max())) + 1
    assignments = partitions.partition(labels, partition, clients, seed, **options)
    test_assignments = partitions.partition_test(
        test_labels, partition, seed, labels=labels, assignments=assignments, **options
    )
    names = client_names(clients)
    return with_validation(
        split_by(train, assignments, names),
        split_by(test, test_assignments, names),
        validation=validation,
        max_examples_per_client=max_examples_per_client,
        seed=seed,
    )
