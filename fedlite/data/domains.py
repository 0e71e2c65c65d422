"""Digits of three sources: the same ten labels, another look for each client (feature skew).

A third of the clients has MNIST's handwriting (MNIST-5k), a third scikit-learn's scans (8x8, three
times enlarged), a third the digits of typefaces (from the glyphs, each in another hand). The
substitute that needs no download for Digit-Five, the usual set of feature skew. A domain's
examples are dealt to its clients by label, evenly, so nothing but the look differs.
"""

import numpy as np

from fedlite.data import glyphs, images, splits
from fedlite.data import partition as partitions
from fedlite.data.federated import FederatedDataset, Split
from fedlite.errors import UserError

DOMAINS = ("handwriting", "scans", "typefaces")


def digit_domains(
    *,
    clients: int = 30,
    examples_per_domain: int = 1400,
    seed: int = 0,
    validation: float = 0.0,
    max_examples_per_client: int = 0,
) -> FederatedDataset:
    """Loads the domains: uint8 [examples, 28, 28, 1], 10 classes, one client of one domain.

    Args:
      clients: their number, at least 3, dealt to the domains evenly; ids are "DOMAIN-NUMBER".
      examples_per_domain: for training, at most 1400; a quarter as many are for the test.
      seed: of the draws.
      validation: see `fedlite.data.splits.with_validation`.
      max_examples_per_client: likewise.
    """
    most = -(-clients // len(DOMAINS))
    if clients < len(DOMAINS):
        raise UserError(f"digit_domains has three domains: take 3 clients or more, not {clients}")
    if not 4 * most <= examples_per_domain <= 1400:
        raise UserError(
            f"examples_per_domain must be {4 * most} (4 a client) to 1400, got "
            f"{examples_per_domain}"
        )
    found = {"train": {}, "test": {}}
    for number, (domain, source) in enumerate(zip(DOMAINS, _sources(), strict=True)):
        each = (clients + len(DOMAINS) - 1 - number) // len(DOMAINS)
        for part, share in (("train", 1), ("test", 4)):
            arrays = _first(source[part], examples_per_domain // share)
            owners = partitions.stratified(arrays["y"], each, seed)
            for client in range(each):
                mine = {name: array[owners == client] for name, array in arrays.items()}
                found[part][f"{domain}-{client:03d}"] = mine
    train, test = (splits.from_clients(found[part]) for part in ("train", "test"))
    return FederatedDataset(
        name="digit_domains",
        splits=splits.with_validation(
            train,
            test,
            validation=validation,
            max_examples_per_client=max_examples_per_client,
            seed=seed,
        ),
        num_classes=10,
    )


def _sources() -> list[dict[str, Split]]:
    """The splits of each domain, as flat arrays of 28x28 images with their labels."""
    handwriting = images.mnist5k(clients=1, partition="iid").splits
    scans = images.digits(clients=1, partition="iid").splits
    typefaces = glyphs.glyphs(clients=200).splits
    return [
        {part: handwriting[part].arrays for part in ("train", "test")},
        {part: _enlarged(scans[part].arrays) for part in ("train", "test")},
        {part: _digits(typefaces[part].arrays) for part in ("train", "test")},
    ]


def _enlarged(arrays):
    # Three pixels for one, and a margin of two.
    x = np.repeat(np.repeat(arrays["x"], 3, axis=1), 3, axis=2)
    return {"x": np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), "y": arrays["y"]}


def _digits(arrays):
    """The glyphs that are digits, which are the first ten classes."""
    kept = arrays["y"] < 10
    return {name: array[kept] for name, array in arrays.items()}


def _first(arrays, count: int):
    """So many examples, a fixed draw."""
    order = np.random.default_rng(0).permutation(len(arrays["y"]))[:count]
    if len(order) < count:
        raise UserError(f"a domain has {len(order)} examples, fewer than {count}: take fewer")
    return {name: array[order] for name, array in arrays.items()}
