"""From TFF's examples to arrays, as `tff.simulation.baselines` preprocesses its data sets.

One `Preprocessing` a data set: what it reads of an example and how a client's examples become
arrays. The facts were read in TensorFlow Federated 0.87. Shuffling, repeating, batching and
augmentation are left to training. Images become uint8 again, and token sequences are stored
once, as `tokens` [examples, length + 1], of which x is all but the last and y all but the
first column.
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedlite.data import text
from fedlite.data.tff_sqlite import Feature
from fedlite.errors import UserError

Example = Mapping[str, Any]

# Words are bytes in the file: what isn't UTF-8 survives the way to a string and back.
_ERRORS = "surrogateescape"

STACKOVERFLOW_FEATURES = {"tokens": Feature("bytes")}

# TFF's 86 characters.
SHAKESPEARE = text.Vocabulary(tuple(text.CHARACTERS))


class Preprocessing(NamedTuple):
    """How a client's examples become arrays.

    Attributes:
      features: what is read of each example.
      encode: arrays by name, each [examples, ...], of the examples of one client (perhaps
        none).
    """

    features: Mapping[str, Feature]
    encode: Callable[[Sequence[Example]], dict[str, np.ndarray]]


def emnist(num_classes: int, inverted: bool) -> Preprocessing:
    """Federated EMNIST: x uint8 [28, 28, 1] and y int32 below `num_classes`.

    The file holds float32 pixels from 0 (ink) to 1 (background), which TFF's baselines train
    on as they are; x is round(255 * pixel), so 255 is background. With `inverted` it is
    round(255 * (1 - pixel)), so 0 is background as in MNIST.
    """
    features = {"pixels": Feature("float", (28, 28)), "label": Feature("int64")}

    def encode(examples):
        pixels = _stack([example["pixels"] for example in examples], (28, 28), np.float32)
        # A comparison that NaN fails too.
        if not ((pixels >= 0) & (pixels <= 1)).all():
            raise UserError("EMNIST's pixels must lie in [0, 1]: is it another data set?")
        images = np.rint(255 * (1 - pixels if inverted else pixels)).astype(np.uint8)
        return {"x": images[..., None], "y": _labels(examples, num_classes)}

    return Preprocessing(features, encode)


def cifar100() -> Preprocessing:
    """CIFAR-100: x uint8 [32, 32, 3] and y int32, the fine label below 100."""
    features = {"image": Feature("int64", (32, 32, 3)), "label": Feature("int64")}

    def encode(examples):
        images = _stack([example["image"] for example in examples], (32, 32, 3), np.int64)
        if ((images < 0) | (images > 255)).any():
            raise UserError("CIFAR-100's pixels must lie in 0 to 255: is it another data set?")
        return {"x": images.astype(np.uint8), "y": _labels(examples, 100)}

    return Preprocessing(features, encode)


def shakespeare(sequence_length: int) -> Preprocessing:
    """Next character: every snippet cut into windows of `sequence_length` + 1 tokens.

    A snippet's bytes become ids from 1 by their place in TFF's vocabulary (other bytes, also
    those of non-ASCII characters, become out of vocabulary), between a beginning and an
    end of sentence, padded with 0 to whole windows. Windows do not overlap, so the first
    token of each is never a target, and a last window may hold no target at all: its only
    token is the end of the sentence. TFF has them too, so the numbers of examples agree.
    """
    vocabulary = SHAKESPEARE
    ids = np.full(256, vocabulary.oov, np.int32)
    for index, character in enumerate(vocabulary.entries, start=1):
        ids[ord(character)] = index
    length = sequence_length + 1

    def encode(examples):
        windows = [np.zeros((0, length), np.int32)]
        for example in examples:
            characters = ids[np.frombuffer(example["snippets"], np.uint8)]
            tokens = np.concatenate([[vocabulary.bos], characters, [vocabulary.eos]])
            padded = np.zeros(-(-len(tokens) // length) * length, np.int32)
            padded[: len(tokens)] = tokens
            windows.append(padded.reshape(-1, length))
        return {"tokens": np.concatenate(windows)}

    return Preprocessing({"snippets": Feature("bytes")}, encode)


def stackoverflow(vocabulary: text.Vocabulary, sequence_length: int) -> Preprocessing:
    """Next word: every sentence as `sequence_length` + 1 tokens.

    A beginning of sentence, the sentence's first `sequence_length` words (split at every
    single space, so two in a row enclose an empty word, which is out of vocabulary), an end
    of sentence only where there were fewer words, and padding (0).
    """
    ids = {
        word.encode(errors=_ERRORS): index for index, word in enumerate(vocabulary.entries, start=1)
    }

    def encode(examples):
        tokens = np.zeros((len(examples), sequence_length + 1), np.int32)
        for row, example in zip(tokens, examples):
            words = example["tokens"].split(b" ", sequence_length)[:sequence_length]
            sentence = [vocabulary.bos, *(ids.get(word, vocabulary.oov) for word in words)]
            if len(words) < sequence_length:
                sentence.append(vocabulary.eos)
            row[: len(sentence)] = sentence
        return {"tokens": tokens}

    return Preprocessing(STACKOVERFLOW_FEATURES, encode)


def word_counts(clients: Iterable[Sequence[Example]]) -> collections.Counter[bytes]:
    """How many clients use each word, as in TFF's `stackoverflow.load_word_counts`.

    Args:
      clients: the examples of each client.
    """
    counts = collections.Counter()
    for examples in clients:
        counts.update({word for example in examples for word in example["tokens"].split(b" ")})
    del counts[b""]
    return counts


def most_frequent(counts: Mapping[bytes, int], size: int) -> text.Vocabulary:
    """The `size` most frequent words, the first in the order of bytes where counts agree."""
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return text.Vocabulary(tuple(word.decode(errors=_ERRORS) for word in ranked[:size]))


def read_word_counts(lines: Iterable[bytes], size: int, path) -> text.Vocabulary:
    """The first `size` words of TFF's word count file: "word count" lines, most first.

    Args:
      lines: of the file.
      size: of the vocabulary; fewer where the file is shorter.
      path: for errors.
    """
    words = []
    for line in lines:
        fields = line.split()
        if len(fields) != 2 or not fields[1].isdigit():
            raise UserError(
                f"{path}, line {len(words) + 1}: expected a word and its count, "
                f"got {line[:80]!r}: fetch the file again"
            )
        words.append(fields[0].decode(errors=_ERRORS))
        if len(words) == size:
            break
    return text.Vocabulary(tuple(words))


def _stack(arrays: Sequence[np.ndarray], shape: tuple[int, ...], dtype) -> np.ndarray:
    return np.stack(arrays) if arrays else np.zeros((0, *shape), dtype)


def _labels(examples: Sequence[Example], num_classes: int) -> np.ndarray:
    labels = np.array([example["label"] for example in examples], np.int64)
    if ((labels < 0) | (labels >= num_classes)).any():
        raise UserError(
            f"labels must lie in 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}: "
            "is it another data set?"
        )
    return labels.astype(np.int32)
