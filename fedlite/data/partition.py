"""Partitions: which client holds each example of a pooled data set.

Every partition is a pure function of the labels, the number of clients and a seed, gives
each example to exactly one client and leaves none out. The result is an int32 array
[examples] with the client of each example, which `fedlite.data.splits.split_by` turns into a
split.

  iid                  equal sizes, at random.
  stratified           equal sizes and, to within one example, equal label counts (the IID
                       of FedOBD).
  dirichlet_by_client  Hsu et al. 2019 (arXiv 1909.06335), as in TensorFlow Federated: equal
                       sizes, each client's label proportions drawn from Dir(alpha).
  dirichlet_by_class   NIID-Bench, Li et al. 2022 (arXiv 2102.02079): every class is divided
                       over the clients by a draw from Dir(alpha); sizes differ.
  shards               McMahan et al. 2017 (arXiv 1602.05629): equal sizes, a few shards of
                       the label-sorted data each.
  quantity             NIID-Bench's quantity skew: sizes from Dir(alpha), labels IID.
  natural              by a given owner of each example.

Where clients (or shards) must be of equal size and the examples are no multiple of them, the
remainder is spread: sizes differ by one at most. Draws come from NumPy's `Generator`, whose
streams are the same on every machine but may change with a version of NumPy.
"""

import inspect
from collections.abc import Callable, Mapping

import numpy as np

from fedlite.errors import UserError

# What a generator is for, mixed into its seed, so that (for one) the clients' proportions do
# not depend on how many examples are divided by them.
_PROPORTIONS, _ASSIGNMENT, _TEST = range(3)


def generator(seed: int, *purpose: int) -> np.random.Generator:
    """The generator of one purpose; those of other purposes are independent of it."""
    if seed < 0:
        raise UserError(f"seed must be 0 or more, got {seed}")
    return np.random.default_rng([seed, *purpose])


def _check_alpha(alpha: float):
    if not (np.isfinite(alpha) and alpha > 0):
        raise UserError(f"alpha must be a finite number above 0, got {alpha}")


def _dirichlet(rng: np.random.Generator, alpha: float, size: int, draws: int) -> np.ndarray:
    """Draws of Dir(alpha * 1), float64 [draws, size], each summing to 1."""
    shares = rng.dirichlet(np.full(size, float(alpha)), size=draws)
    return shares / shares.sum(axis=1, keepdims=True)


def _sorted_by_label(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Example indices sorted by label, in random order within a label."""
    order = rng.permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]


def _apportion(total: int, weights: np.ndarray) -> np.ndarray:
    """Whole numbers that sum to `total`, nearest to `weights` (largest remainders first)."""
    quota = total * (weights / weights.sum())
    counts = np.floor(quota).astype(np.int64)
    most = np.argsort(counts - quota, kind="stable")
    counts[most[: total - counts.sum()]] += 1
    return counts


def iid(labels: np.ndarray, clients: int, seed: int) -> np.ndarray:
    """Equal sizes, at random."""
    assignments = np.empty(len(labels), np.int32)
    order = generator(seed, _ASSIGNMENT).permutation(len(labels))
    assignments[order] = np.arange(len(labels)) % clients
    return assignments


def stratified(labels: np.ndarray, clients: int, seed: int) -> np.ndarray:
    """Equal sizes; the clients' counts of any one label differ by one at most."""
    rng = generator(seed, _ASSIGNMENT)
    order = _sorted_by_label(labels, rng)
    # Dealt round like cards, through all labels: whoever got the last of one label is
    # followed by the next client with the first of the next.
    dealt = rng.permutation(clients)[np.arange(len(labels)) % clients]
    assignments = np.empty(len(labels), np.int32)
    assignments[order] = dealt
    return assignments


def client_proportions(clients: int, classes: int, seed: int, *, alpha: float) -> np.ndarray:
    """The label proportions of `dirichlet_by_client`, float64 [clients, classes]."""
    _check_alpha(alpha)
    return _dirichlet(generator(seed, _PROPORTIONS), alpha, classes, clients)


def dirichlet_by_client(
    labels: np.ndarray, clients: int, seed: int, *, alpha: float = 0.5, classes: int = 0
) -> np.ndarray:
    """Equal sizes; label proportions from Dir(alpha), one draw a client (Hsu et al. 2019).

    Clients draw one after another, without replacement, a label from their proportions for
    each example. The proportion of a class with no examples left becomes 0 and the rest is
    renormalised, so late clients may stray from their proportions. A client whose classes
    are all used up draws new proportions.

    Args:
      labels: integers [examples].
      clients: their number.
      seed: proportions depend on the seed, `alpha` and the numbers of clients and classes
        alone, so that a test split of the same seed is divided by the same proportions.
      alpha: concentration; towards 0 a client sees one class, towards infinity all equally.
      classes: the number of classes; 0 for one more than the highest label.
    """
    classes = classes or int(labels.max()) + 1
    if labels.max() >= classes:
        raise UserError(f"label {labels.max()} needs classes {labels.max() + 1}, got {classes}")
    proportions = client_proportions(clients, classes, seed, alpha=alpha)
    rng = generator(seed, _ASSIGNMENT)
    order = _sorted_by_label(labels, rng)
    remaining = np.bincount(labels, minlength=classes)
    begins = np.cumsum(remaining) - remaining
    assignments = np.empty(len(labels), np.int32)
    for client, row in enumerate(proportions):
        missing = len(labels) // clients + (client < len(labels) % clients)
        while missing:
            while not (weights := row * (remaining > 0)).any():
                row = _dirichlet(rng, alpha, classes, 1)[0]
            # Drawing all at once and drawing the surplus again is the same distribution as
            # one by one: rejecting an empty class is renormalising without it.
            drawn = rng.multinomial(missing, weights / weights.sum())
            taken = np.minimum(drawn, remaining)
            for label in np.flatnonzero(taken):
                begin = begins[label]
                assignments[order[begin : begin + taken[label]]] = client
            begins += taken
            remaining -= taken
            missing -= taken.sum()
    return assignments


def dirichlet_by_class(
    labels: np.ndarray,
    clients: int,
    seed: int,
    *,
    alpha: float = 0.5,
    min_examples: int = 10,
    attempts: int = 1000,
) -> np.ndarray:
    """Every class divided over the clients by one draw of Dir(alpha) (Li et al. 2022).

    The share of a client that already holds its even part (examples / clients) is set to 0
    and the rest renormalised; the whole is drawn again until every client holds
    `min_examples`.

    Raises:
      UserError: if that is impossible, or not reached in `attempts` draws.
    """
    _check_alpha(alpha)
    if not 1 <= min_examples <= len(labels) // clients:
        raise UserError(
            f"{clients} clients of {len(labels)} examples cannot have min_examples "
            f"{min_examples} each: set it from 1 to {len(labels) // clients}"
        )
    rng = generator(seed, _ASSIGNMENT)
    order = _sorted_by_label(labels, rng)
    pools = [pool for pool in np.split(order, np.cumsum(np.bincount(labels))) if len(pool)]
    for _ in range(attempts):
        assignments = np.empty(len(labels), np.int32)
        sizes = np.zeros(clients, np.int64)
        for pool in pools:
            room = sizes < len(labels) / clients
            # For a small alpha all may fall to clients without room: then draw again.
            while not (shares := room * _dirichlet(rng, alpha, clients, 1)[0]).any():
                pass
            cuts = (np.cumsum(shares / shares.sum()) * len(pool)).astype(np.int64)
            cuts[-1] = len(pool)
            counts = np.diff(cuts, prepend=0)
            assignments[pool] = np.repeat(np.arange(clients), counts)
            sizes += counts
        if sizes.min() >= min_examples:
            return assignments
    raise UserError(
        f"{attempts} draws of dirichlet_by_class with alpha {alpha} left one of {clients} "
        f"clients with fewer than {min_examples} of {len(labels)} examples: "
        "raise alpha, or lower clients or min_examples"
    )


def shards(
    labels: np.ndarray, clients: int, seed: int, *, shards_per_client: int = 2
) -> np.ndarray:
    """Label-sorted data in equal shards, `shards_per_client` of them a client.

    Where every class is a whole number of shards a client sees at most `shards_per_client`
    classes; else a shard may hold the end of one class and the beginning of the next.
    """
    total = clients * shards_per_client
    if shards_per_client < 1 or total > len(labels):
        raise UserError(
            f"{clients} clients with {shards_per_client} shards each cannot divide "
            f"{len(labels)} examples: set shards_per_client from 1 to {len(labels) // clients}"
        )
    rng = generator(seed, _ASSIGNMENT)
    order = _sorted_by_label(labels, rng)
    owner_of_shard = rng.permutation(total) // shards_per_client
    assignments = np.empty(len(labels), np.int32)
    assignments[order] = owner_of_shard[np.arange(len(labels)) * total // len(labels)]
    return assignments


def quantity(labels: np.ndarray, clients: int, seed: int, *, alpha: float = 0.5) -> np.ndarray:
    """Sizes from one draw of Dir(alpha), at least one example each; labels at random."""
    _check_alpha(alpha)
    shares = _dirichlet(generator(seed, _PROPORTIONS), alpha, clients, 1)[0]
    sizes = 1 + _apportion(len(labels) - clients, shares)
    assignments = np.empty(len(labels), np.int32)
    order = generator(seed, _ASSIGNMENT).permutation(len(labels))
    assignments[order] = np.repeat(np.arange(clients), sizes)
    return assignments


def natural(owners: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Clients given by the data, such as writers or speakers.

    Args:
      owners: the owner of each example, [examples], of any type that sorts.

    Returns:
      The client of each example (int32 [examples]) and the client ids in sorted order.
    """
    ids, assignments = np.unique(np.asarray(owners), return_inverse=True)
    return assignments.astype(np.int32), tuple(str(owner) for owner in ids)


KINDS: Mapping[str, Callable[..., np.ndarray]] = {
    function.__name__: function
    for function in (iid, stratified, dirichlet_by_client, dirichlet_by_class, shards, quantity)
}


def partition_options(kind: str) -> dict[str, object]:
    """The options of a kind of partition and their defaults."""
    if kind not in KINDS:
        raise UserError(f"unknown partition {kind!r}: use one of {', '.join(KINDS)}")
    parameters = inspect.signature(KINDS[kind]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def partition(labels: np.ndarray, kind: str, clients: int, seed: int, **options) -> np.ndarray:
    """Divides examples over clients.

    Args:
      labels: integers [examples], from 0.
      kind: one of `KINDS`.
      clients: their number, at most one an example.
      seed: from 0; the same arguments give the same partition.
      **options: of that kind, see `partition_options`.

    Returns:
      int32 [examples], the client of each example.

    Raises:
      UserError: for an unknown kind or option, or one out of range.
    """
    known = partition_options(kind)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(
            f"unknown option {unknown[0]!r} of partition {kind!r}: use {', '.join(known) or 'none'}"
        )
    labels = np.asarray(labels)
    if not 1 <= clients <= len(labels):
        raise UserError(
            f"clients must be from 1 to {len(labels)}, the number of examples, got {clients}"
        )
    return KINDS[kind](labels, clients, seed, **options)


def partition_test(
    test_labels: np.ndarray,
    kind: str,
    seed: int,
    *,
    labels: np.ndarray,
    assignments: np.ndarray,
    **options,
) -> np.ndarray:
    """Divides a test split over the clients of a partitioned training split.

    Clients are tested on what they train on: by the same draw of proportions where the kind
    has one (`dirichlet_by_client`, `quantity`), by the same rule where it has none (`iid`,
    `stratified`), and else class by class in proportion to the training examples that
    the clients hold. Every client gets at least one example.

    Args:
      test_labels: integers [test examples].
      kind: as in the call of `partition` that divided the training split.
      seed: likewise.
      labels: of the training split, integers [examples].
      assignments: what `partition` returned for them.
      **options: as in that call.

    Returns:
      int32 [test examples], the client of each.
    """
    clients = int(assignments.max()) + 1
    classes = int(max(labels.max(), test_labels.max())) + 1
    held = np.zeros((clients, classes), np.int64)
    np.add.at(held, (assignments, labels), 1)
    if clients > len(test_labels):
        raise UserError(
            f"{len(test_labels)} test examples cannot serve {clients} clients: "
            f"set clients to at most {len(test_labels)}"
        )
    if kind == "dirichlet_by_client":
        options["classes"] = options.get("classes") or int(labels.max()) + 1
    if kind in ("iid", "stratified", "dirichlet_by_client", "quantity"):
        return partition(test_labels, kind, clients, seed, **options)
    return _in_proportion(test_labels, held, generator(seed, _TEST))


def _in_proportion(labels: np.ndarray, held: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Divides each class in proportion to a column of `held` [clients, classes]."""
    clients = len(held)
    assignments = np.empty(len(labels), np.int32)
    for label in np.unique(labels):
        pool = rng.permutation(np.flatnonzero(labels == label))
        weights = held[:, label] if held[:, label].any() else np.ones(clients)
        # Ties of the remainders fall to clients in an order of their own for each class.
        order = rng.permutation(clients)
        assignments[pool] = np.repeat(order, _apportion(len(pool), weights[order]))
    sizes = np.bincount(assignments, minlength=clients)
    for client in np.flatnonzero(sizes == 0):
        spare = sizes[assignments] > 1
        wanted = spare & (held[client] > 0)[labels]
        candidates = np.flatnonzero(wanted if wanted.any() else spare)
        moved = candidates[np.argmax(sizes[assignments[candidates]])]
        sizes[assignments[moved]] -= 1
        sizes[client] += 1
        assignments[moved] = client
    return assignments
