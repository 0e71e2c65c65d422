"""TensorFlow Datasets: CIFAR-10, CIFAR-100, Fashion-MNIST and IMDB reviews, divided over clients.

TFDS reads a prepared data set without TensorFlow where its files are in the ArrayRecord
format, but prepares one only with TensorFlow (its command line wants Apache Beam as well). So
data sets are prepared once in another environment, such as

  uv run --no-project --python=3.11 \
    --with=tensorflow-datasets,tensorflow-cpu,array-record,importlib-resources \
    python -c "import tensorflow_datasets as tfds; tfds.builder('cifar10', \
    data_dir='DIR', file_format='array_record').download_and_prepare()"

and read with `data_dir=DIR`. The first load converts the files into a memory-mapped cache
(`fedlite.data.cache`). Partitions are those of `fedlite.data.partition`, drawn on every load.
"""

import contextlib
import functools
import itertools
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fedlite.data import cache, splits, text
from fedlite.data.federated import FederatedDataset
from fedlite.errors import UserError

# Raised when the conversion changes, so that caches of an older one are not believed.
_VERSION = 1
_BATCH = 1024

_SPLITS = ("train", "test")
_LINE_BREAK = re.compile(r"<br\s*/?>")
_PREPARE = (
    "uv run --no-project --python=3.11 --with=tensorflow-datasets,tensorflow-cpu,array-record,"
    "importlib-resources python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', "
    "data_dir='DIR', file_format='array_record').download_and_prepare()\""
)

Example = Mapping[str, Any]
Source = Callable[[], Iterator[Example]]
Encode = Callable[[Sequence[Example]], dict[str, np.ndarray]]


def cifar10(
    *,
    data_dir: str = "",
    clients: int = 100,
    partition: str = "dirichlet_by_client",
    alpha: float = 0.5,
    shards_per_client: int = 2,
    min_examples: int = 10,
    seed: int = 0,
    validation: float = 0.0,
    max_examples_per_client: int = 0,
    cache_dir: str = "",
) -> FederatedDataset:
    """CIFAR-10: 50,000 training and 10,000 test images, 32 x 32 x 3, in 10 classes.

    Args:
      data_dir: where TFDS keeps its data sets; "" for its default (the environment variable
        TFDS_DATA_DIR, else `~/tensorflow_datasets`).
      clients: their number.
      partition: a kind of `fedlite.data.partition.KINDS`.
      alpha: of the Dirichlet partitions and of quantity.
      shards_per_client: of the partition by shards.
      min_examples: of dirichlet_by_class.
      seed: of the partition and the draws below.
      validation: see `fedlite.data.splits.with_validation`.
      max_examples_per_client: likewise.
      cache_dir: see `fedlite.data.cache`.
    """
    return _images(
        "cifar10",
        (32, 32, 3),
        10,
        data_dir=data_dir,
        cache_dir=cache_dir,
        clients=clients,
        partition=partition,
        alpha=alpha,
        shards_per_client=shards_per_client,
        min_examples=min_examples,
        seed=seed,
        validation=validation,
        max_examples_per_client=max_examples_per_client,
    )


def cifar100(
    *,
    data_dir: str = "",
    clients: int = 100,
    partition: str = "dirichlet_by_client",
    alpha: float = 0.5,
    shards_per_client: int = 2,
    min_examples: int = 10,
    seed: int = 0,
    validation: float = 0.0,
    max_examples_per_client: int = 0,
    cache_dir: str = "",
) -> FederatedDataset:
    """CIFAR-100: 50,000 training and 10,000 test images, 32 x 32 x 3, 100 fine classes.

    Args: as of `cifar10`.
    """
    return _images(
        "cifar100",
        (32, 32, 3),
        100,
        data_dir=data_dir,
        cache_dir=cache_dir,
        clients=clients,
        partition=partition,
        alpha=alpha,
        shards_per_client=shards_per_client,
        min_examples=min_examples,
        seed=seed,
        validation=validation,
        max_examples_per_client=max_examples_per_client,
    )


def fashion_mnist(
    *,
    data_dir: str = "",
    clients: int = 100,
    partition: str = "dirichlet_by_client",
    alpha: float = 0.5,
    shards_per_client: int = 2,
    min_examples: int = 10,
    seed: int = 0,
    validation: float = 0.0,
    max_examples_per_client: int = 0,
    cache_dir: str = "",
) -> FederatedDataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images, 28 x 28 x 1, 10 classes.

    Args: as of `cifar10`.
    """
    return _images(
        "fashion_mnist",
        (28, 28, 1),
        10,
        data_dir=data_dir,
        cache_dir=cache_dir,
        clients=clients,
        partition=partition,
        alpha=alpha,
        shards_per_client=shards_per_client,
        min_examples=min_examples,
        seed=seed,
        validation=validation,
        max_examples_per_client=max_examples_per_client,
    )


def imdb_reviews(
    *,
    data_dir: str = "",
    sequence_length: int = 300,
    vocabulary_size: int = 20_000,
    clients: int = 100,
    partition: str = "stratified",
    alpha: float = 0.5,
    shards_per_client: int = 2,
    min_examples: int = 10,
    seed: int = 0,
    validation: float = 0.0,
    max_examples_per_client: int = 0,
    cache_dir: str = "",
) -> FederatedDataset:
    """IMDB reviews: 25,000 for training, 25,000 for the test; y is 0 negative, 1 positive.

    Tokens are those of `fedlite.data.text.words` (lower case; words, numbers and single
    punctuation marks), where HTML line breaks count as spaces. The most frequent of the
    training reviews have ids of their own. A review is its first `sequence_length` tokens,
    padded with 0 at its end. FedOBD has spaCy's tokens, a length of 300 and IID clients;
    the size of its vocabulary isn't known.

    Args:
      data_dir: see `cifar10`, as for the options below that it has too.
      sequence_length: tokens of an example.
      vocabulary_size: the number of tokens with an id of their own.
      clients: their number.
      partition: a kind of `fedlite.data.partition.KINDS`.
      alpha: see `cifar10`.
      shards_per_client: see `cifar10`.
      min_examples: see `cifar10`.
      seed: see `cifar10`.
      validation: see `cifar10`.
      max_examples_per_client: see `cifar10`.
      cache_dir: see `cifar10`.
    """
    if sequence_length < 1 or vocabulary_size < 1:
        raise UserError(
            "sequence_length and vocabulary_size must be 1 or more, "
            f"got {sequence_length} and {vocabulary_size}"
        )

    def convert(writer: cache.Writer, sources: Mapping[str, Source]) -> dict[str, Any]:
        vocabulary = text.most_frequent(map(_review, sources["train"]()), vocabulary_size)

        def encode(examples):
            tokens = [vocabulary.encode(_review(example)) for example in examples]
            return {"x": text.pad(tokens, sequence_length), "y": _labels(examples, 2)}

        _write(writer, sources, encode)
        return {"entries": vocabulary.entries}

    options = {"sequence_length": sequence_length, "vocabulary_size": vocabulary_size}
    entry = _load("imdb_reviews", options, convert, data_dir, cache_dir)
    return FederatedDataset(
        name="imdb_reviews",
        splits=_federate(
            entry,
            clients=clients,
            partition=partition,
            alpha=alpha,
            shards_per_client=shards_per_client,
            min_examples=min_examples,
            seed=seed,
            validation=validation,
            max_examples_per_client=max_examples_per_client,
        ),
        num_classes=2,
        kind="text",
        vocabulary=text.Vocabulary(tuple(entry.facts["entries"])).tokens,
    )


def _images(
    name: str, shape: tuple[int, ...], num_classes: int, *, data_dir: str, cache_dir: str, **options
) -> FederatedDataset:
    def encode(examples):
        images = np.stack([example["image"] for example in examples])
        if images.shape[1:] != shape or images.dtype != np.uint8:
            raise UserError(
                f"images of {name} must be uint8 {list(shape)}, "
                f"got {images.dtype} {list(images.shape[1:])}: prepare it again"
            )
        return {"x": images, "y": _labels(examples, num_classes)}

    def convert(writer: cache.Writer, sources: Mapping[str, Source]) -> dict[str, Any]:
        _write(writer, sources, encode)
        return {}

    entry = _load(name, {}, convert, data_dir, cache_dir)
    return FederatedDataset(name=name, splits=_federate(entry, **options), num_classes=num_classes)


def _labels(examples: Sequence[Example], num_classes: int) -> np.ndarray:
    labels = np.array([example["label"] for example in examples], np.int64)
    if ((labels < 0) | (labels >= num_classes)).any():
        raise UserError(
            f"labels must lie in 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}: "
            "prepare the data set again"
        )
    return labels.astype(np.int32)


def _review(example: Example) -> list[str]:
    review = example["text"]
    # TFDS reads bytes from files, and its mock data are strings.
    if isinstance(review, bytes):
        review = review.decode(errors="replace")
    return text.words(_LINE_BREAK.sub(" ", review))


def _write(writer: cache.Writer, sources: Mapping[str, Source], encode: Encode):
    """Writes arrays "SPLIT.NAME" of all splits, a batch at a time."""
    for split, source in sources.items():
        examples = source()
        while batch := list(itertools.islice(examples, _BATCH)):
            for name, array in encode(batch).items():
                writer.append(f"{split}.{name}", array)


def _federate(entry: cache.Entry, **options) -> dict[str, splits.Split]:
    train, test = (
        {name: entry.arrays[f"{split}.{name}"] for name in ("x", "y")} for split in _SPLITS
    )
    return splits.federate(train, test, **options)


def _load(
    name: str,
    options: Mapping[str, Any],
    convert: Callable[[cache.Writer, Mapping[str, Source]], Mapping[str, Any]],
    data_dir: str,
    cache_dir: str,
) -> cache.Entry:
    """The converted data set, from the cache where that is of the files that TFDS has."""
    with _opened(name, data_dir):
        # Imported here, since it takes a third of a second.
        import tensorflow_datasets as tfds

        builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
    folder = pathlib.Path(builder.data_dir)
    files = sorted(folder.iterdir()) if folder.is_dir() else []

    def read(split: str) -> Iterator[Example]:
        with _opened(name, data_dir):
            source = builder.as_data_source(split=split)
        for index in range(len(source)):
            with _opened(name, data_dir):
                example = source[index]
            yield example

    sources = {split: functools.partial(read, split) for split in _SPLITS}
    return cache.load(
        f"{name}_tfds",
        options={"version": _VERSION, "path": str(folder.resolve()), **options},
        sources=[cache.stamp(file) for file in files],
        convert=lambda writer: convert(writer, sources),
        cache_dir=cache_dir,
    )


@contextlib.contextmanager
def _opened(name: str, data_dir: str) -> Iterator[None]:
    """Turns what TFDS raises about files that it cannot read into one line."""
    try:
        yield
    # TFDS raises errors of many types, from assertions to a missing TensorFlow.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        place = data_dir or "its default directory"
        raise UserError(
            f"TFDS has no {name} that can be read without TensorFlow in {place} ({reason[:400]}): "
            f"prepare it in a new directory DIR with `{_PREPARE.format(name=name)}` and set "
            "data_dir to DIR"
        ) from error
