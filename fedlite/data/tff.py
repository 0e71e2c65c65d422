"""TensorFlow Federated's data sets: EMNIST, CIFAR-100, Shakespeare and Stack Overflow.

Each is one SQLite file under the name that TFF gives it, in `data_dir` (by default `~/.tff`,
where TFF keeps its downloads); an archive `.sqlite.lzma` beside it is decompressed once. Other
files in the same format do as well, such as those that `scripts/export_tff.py` writes. The
first load converts a file into a memory-mapped cache (`fedlite.data.cache`), preprocessed as
TFF's baselines do (`fedlite.data.tff_preprocessing`); the next ones map it.

Clients are those of the file, sorted by id as in TFF. A conversion takes a core about 20 s for
EMNIST, and a minute for every four million sentences of Stack Overflow.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedlite.data import cache, splits, text, tff_files, tff_preprocessing, tff_sqlite
from fedlite.data.federated import FederatedDataset, Split
from fedlite.data.tff_preprocessing import Preprocessing
from fedlite.errors import UserError

# Raised when the conversion changes, so that caches of an older one are not believed.
_VERSION = 1


def emnist(
    *,
    data_dir: str = "",
    digits_only: bool = False,
    inverted: bool = False,
    max_clients: int = 0,
    validation: float = 0.0,
    max_examples_per_client: int = 0,
    seed: int = 0,
    cache_dir: str = "",
) -> FederatedDataset:
    """Federated EMNIST by writer (LEAF): 28 x 28 characters in 62 classes, or 10 digits.

    3,400 writers, 671,585 training and 77,483 test examples (digits: 3,383, 341,873 and
    40,832). Every writer has examples in both splits. Labels are 0 to 9, A to Z, a to z.
    Characters are dark on a light background, 255 (TFF's baselines train on them so).

    Args:
      data_dir: where `emnist_all.sqlite` lies; "" for `~/.tff`.
      digits_only: the ten digits only, as TFF's own default.
      inverted: light characters on background 0 instead, as in MNIST.
      max_clients: only the first clients by id, of every split; 0 for all.
      validation: the fraction of each client's training examples cut for validation.
      max_examples_per_client: of the training split; 0 for no cap.
      seed: of the draws that the last two need.
      cache_dir: see `fedlite.data.cache`.
    """
    part = "digits_only" if digits_only else "all"
    num_classes = 10 if digits_only else 62
    entry = _load(
        "emnist",
        tff_files.find_database("emnist_all.sqlite", data_dir),
        {"train": f"{part}_train", "test": f"{part}_test"},
        tff_preprocessing.emnist(num_classes, inverted),
        {"digits_only": digits_only, "inverted": inverted},
        max_clients=max_clients,
        cache_dir=cache_dir,
    )
    return FederatedDataset(
        name="emnist",
        splits=_with_validation(entry, validation, max_examples_per_client, seed),
        num_classes=num_classes,
    )


def cifar100(
    *,
    data_dir: str = "",
    max_clients: int = 0,
    validation: float = 0.0,
    max_examples_per_client: int = 0,
    seed: int = 0,
    cache_dir: str = "",
) -> FederatedDataset:
    """TFF's CIFAR-100: 32 x 32 colour images in 100 (fine) classes.

    500 training and 100 other test clients of 100 examples each, made by Pachinko
    allocation over coarse (Dir(0.1)) and fine (Dir(10)) labels. The baselines' crop to 24 x
    24, flip and standardisation are the task's matter.

    Args:
      data_dir: where `cifar100.sqlite` lies; "" for `~/.tff`.
      max_clients: see `emnist`, as for the other options.
      validation: see `emnist`.
      max_examples_per_client: see `emnist`.
      seed: see `emnist`.
      cache_dir: see `emnist`.
    """
    entry = _load(
        "cifar100_tff",
        tff_files.find_database("cifar100.sqlite", data_dir),
        {"train": "train", "test": "test"},
        tff_preprocessing.cifar100(),
        {},
        max_clients=max_clients,
        cache_dir=cache_dir,
    )
    return FederatedDataset(
        name="cifar100_tff",
        splits=_with_validation(entry, validation, max_examples_per_client, seed),
        num_classes=100,
    )


def shakespeare(
    *,
    data_dir: str = "",
    sequence_length: int = 80,
    max_clients: int = 0,
    validation: float = 0.0,
    max_examples_per_client: int = 0,
    seed: int = 0,
    cache_dir: str = "",
) -> FederatedDataset:
    """TFF's Shakespeare (LEAF): the next character, a client is a role in a play.

    715 roles, 16,068 training and 2,356 test snippets; a snippet is cut into windows, which
    are the examples. 86 characters, padding, out of vocabulary, begin and end: 90 tokens.
    TFF's accuracy leaves out padding alone, and so does this.

    Args:
      data_dir: where `shakespeare.sqlite` lies; "" for `~/.tff`.
      sequence_length: predictions of a window, 80 in TFF and in McMahan et al. 2017.
      max_clients: see `emnist`, as for the other options.
      validation: see `emnist`.
      max_examples_per_client: see `emnist`; it counts windows.
      seed: see `emnist`.
      cache_dir: see `emnist`.
    """
    _check_positive("sequence_length", sequence_length)
    vocabulary = tff_preprocessing.SHAKESPEARE
    entry = _load(
        "shakespeare_tff",
        tff_files.find_database("shakespeare.sqlite", data_dir),
        {"train": "train", "test": "test"},
        tff_preprocessing.shakespeare(sequence_length),
        {"sequence_length": sequence_length},
        max_clients=max_clients,
        cache_dir=cache_dir,
    )
    return FederatedDataset(
        name="shakespeare_tff",
        splits=_with_validation(entry, validation, max_examples_per_client, seed),
        num_classes=len(vocabulary.tokens),
        kind="language",
        vocabulary=vocabulary.tokens,
        ignored_tokens=(vocabulary.pad,),
    )


def stackoverflow(
    *,
    data_dir: str = "",
    vocabulary: str = "tff",
    vocabulary_size: int = 10_000,
    sequence_length: int = 20,
    max_clients: int = 0,
    max_examples_per_client: int = 1000,
    cache_dir: str = "",
) -> FederatedDataset:
    """Stack Overflow: the next word, a client is a user.

    342,477 users and 135,818,730 sentences in "train" (before 2018), 38,758 held-out
    users and 16,491,230 in "validation", 204,088 and 16,586,035 (from 2018 on, users of
    "train" among them) in "test". 10,000 words and padding, one out of vocabulary, begin and
    end: 10,004 tokens. Accuracy leaves out padding, out of vocabulary and end of sentence.

    The cache takes 84 bytes a sentence: 14 GB for the whole set without a cap.

    Args:
      data_dir: where `stackoverflow.sqlite` lies; "" for `~/.tff`.
      vocabulary: "tff" takes the first words of `stackoverflow.word_count` (or of
        `stackoverflow.word_count.tar.bz2`) in `data_dir`, by default also where Keras keeps
        it for TFF, `~/.keras/datasets`. "train" counts how many of the converted training
        clients use each word, which is TFF's own count if they are all there.
      vocabulary_size: words; fewer where there are no more.
      sequence_length: words that are predicted, 20 in the baselines.
      max_clients: only the first clients by id, of every split; 0 for all.
      max_examples_per_client: only the first sentences of each training client; 0 for all.
        The baselines draw 1,000 or, with differential privacy, 256 at random.
      cache_dir: see `fedlite.data.cache`.
    """
    _check_positive("sequence_length", sequence_length)
    _check_positive("vocabulary_size", vocabulary_size)
    if vocabulary not in ("tff", "train"):
        raise UserError(f"vocabulary must be 'tff' or 'train', got {vocabulary!r}")
    path = tff_files.find_database("stackoverflow.sqlite", data_dir)
    limits = {"max_clients": max_clients, "max_examples": max_examples_per_client}
    if vocabulary == "tff":
        words = tff_files.read_words(data_dir, vocabulary_size)
    else:
        words = _count_words(path, vocabulary_size, limits, cache_dir)
    entry = _load(
        "stackoverflow",
        path,
        {"train": "train", "validation": "heldout", "test": "test"},
        tff_preprocessing.stackoverflow(words, sequence_length),
        {"words": list(words.entries), "sequence_length": sequence_length},
        max_clients=max_clients,
        max_examples=max_examples_per_client,
        cache_dir=cache_dir,
    )
    return FederatedDataset(
        name="stackoverflow",
        splits=_splits(entry),
        num_classes=len(words.tokens),
        kind="language",
        vocabulary=words.tokens,
        ignored_tokens=(words.pad, words.oov, words.eos),
    )


def _check_positive(name: str, value: int):
    if value < 1:
        raise UserError(f"{name} must be at least 1, got {value}")


def _count_words(
    path: pathlib.Path, size: int, limits: Mapping[str, int], cache_dir: str
) -> text.Vocabulary:
    """The vocabulary of the training split, cached since counting reads all of it."""

    def convert(writer):
        del writer
        features = tff_preprocessing.STACKOVERFLOW_FEATURES
        clients = tff_sqlite.read_clients(path, "train", features, **limits)
        counts = tff_preprocessing.word_counts(examples for _, examples in clients)
        return {"words": tff_preprocessing.most_frequent(counts, size).entries}

    options = {"version": _VERSION, "path": str(path.resolve()), "size": size, **limits}
    entry = cache.load(
        "stackoverflow_words",
        options=options,
        sources=[cache.stamp(path)],
        convert=convert,
        cache_dir=cache_dir,
    )
    return text.Vocabulary(tuple(entry.facts["words"]))


def _load(
    name: str,
    path: pathlib.Path,
    split_names: Mapping[str, str],
    preprocessing: Preprocessing,
    options: Mapping[str, Any],
    *,
    max_clients: int,
    cache_dir: str,
    max_examples: int = 0,
) -> cache.Entry:
    """The converted file: arrays "SPLIT.NAME" and "SPLIT.offsets", and the ids by split.

    Args:
      name: of the data set.
      path: its SQLite file.
      split_names: our splits and those in the file.
      preprocessing: of the examples.
      options: all that it depends on.
      max_clients: of each split.
      cache_dir: see `fedlite.data.cache`.
      max_examples: of each training client.
    """
    for option, value in (("max_clients", max_clients), ("max_examples_per_client", max_examples)):
        if value < 0:
            raise UserError(f"{option} must be 0 (no cap) or more, got {value}")

    def convert(writer: cache.Writer) -> dict[str, Any]:
        clients = {}
        for split, name_in_file in split_names.items():
            limit = max_examples if split == "train" else 0
            clients[split] = _convert_split(
                writer, split, path, name_in_file, preprocessing, max_clients, limit
            )
        return {"clients": clients}

    return cache.load(
        name,
        options={
            "version": _VERSION,
            "path": str(path.resolve()),
            "splits": split_names,
            "max_clients": max_clients,
            "max_examples": max_examples,
            **options,
        },
        sources=[cache.stamp(path)],
        convert=convert,
        cache_dir=cache_dir,
    )


def _convert_split(
    writer: cache.Writer,
    split: str,
    path: pathlib.Path,
    name_in_file: str,
    preprocessing: Preprocessing,
    max_clients: int,
    max_examples: int,
) -> list[str]:
    """Writes a split's arrays, one client after another; returns the clients' ids."""
    ids, offsets = [], [0]
    for client, examples in tff_sqlite.read_clients(
        path,
        name_in_file,
        preprocessing.features,
        max_clients=max_clients,
        max_examples=max_examples,
    ):
        try:
            arrays = preprocessing.encode(examples)
        except UserError as error:
            raise UserError(
                f"{path}, split {name_in_file!r}, client {client!r}: {error}"
            ) from error
        for name, array in arrays.items():
            writer.append(f"{split}.{name}", array)
        ids.append(client)
        offsets.append(offsets[-1] + len(next(iter(arrays.values()))))
    writer.append(f"{split}.offsets", np.array(offsets, np.int64))
    return ids


def _splits(entry: cache.Entry) -> dict[str, Split]:
    found = {}
    for split, ids in entry.facts["clients"].items():
        if f"{split}.tokens" in entry.arrays:
            tokens = entry.arrays[f"{split}.tokens"]
            arrays = {"x": tokens[:, :-1], "y": tokens[:, 1:]}
        else:
            arrays = {name: entry.arrays[f"{split}.{name}"] for name in ("x", "y")}
        found[split] = Split(arrays, entry.arrays[f"{split}.offsets"], tuple(ids))
    return found


def _with_validation(
    entry: cache.Entry, validation: float, max_examples_per_client: int, seed: int
) -> dict[str, Split]:
    found = _splits(entry)
    return splits.with_validation(
        found["train"],
        found["test"],
        validation=validation,
        max_examples_per_client=max_examples_per_client,
        seed=seed,
    )
