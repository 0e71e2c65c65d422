"""The one in-memory form of a federated data set.

Examples of all clients of a split lie one client after another in flat arrays; `offsets`
says where a client begins. The arrays may be `numpy.memmap`, so a split may be larger
than memory.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from fedlite.errors import UserError


@dataclasses.dataclass(frozen=True)
class ClientNumbers(Sequence):
    """Ids of clients without names: their numbers, of equal width, made when they are asked for.

    A tuple of a million strings takes 60 MB and most of a second.

    Attributes:
      clients: their number.
    """

    clients: int

    def __len__(self) -> int:
        return self.clients

    def __getitem__(self, index):
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self.clients)))
        return f"{range(self.clients)[index]:0{len(str(self.clients - 1))}d}"


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One split of a federated data set.

    Attributes:
      arrays: named arrays, each [examples, ...]. Every task reads "x" and "y". Images are
        uint8 [examples, height, width, channels] and labels int32 [examples]; text is
        int32 tokens [examples, length] with "y" the token that follows each "x". Speech is
        float16 features [examples, max_frames, mels] with "frames", int32 [examples], how
        many are real, and "y", int32 token ids [examples, max_labels], padded with 0; all
        splits of a set have the same max_frames and max_labels.
      offsets: int64 [clients + 1]; client `i` owns examples `offsets[i]:offsets[i + 1]`.
      client_ids: one string a client, unique, in the order of `offsets`: a tuple, or
        `ClientNumbers` for large populations.
    """

    arrays: Mapping[str, np.ndarray]
    offsets: np.ndarray
    client_ids: Sequence[str]

    def __post_init__(self):
        examples = {name: len(array) for name, array in self.arrays.items()}
        if not examples or len(set(examples.values())) != 1:
            raise UserError(f"a split's arrays must be of one length, got {examples}")
        if len(self.offsets) != len(self.client_ids) + 1:
            raise UserError(
                f"{len(self.client_ids)} client ids need {len(self.client_ids) + 1} offsets, "
                f"got {len(self.offsets)}"
            )
        sizes = np.diff(self.offsets)
        if self.offsets[0] != 0 or (sizes < 0).any() or self.offsets[-1] != self.num_examples:
            raise UserError(
                f"offsets must rise from 0 to the number of examples ({self.num_examples}), "
                f"got {self.offsets[0]} to {self.offsets[-1]}"
            )
        numbered = isinstance(self.client_ids, ClientNumbers)
        if not numbered and len(set(self.client_ids)) != len(self.client_ids):
            raise UserError("client ids must be unique")

    @property
    def num_clients(self) -> int:
        """The number of clients."""
        return len(self.client_ids)

    @property
    def num_examples(self) -> int:
        """The number of examples of all clients."""
        return len(next(iter(self.arrays.values())))

    @property
    def sizes(self) -> np.ndarray:
        """Examples of each client, int64 [clients]."""
        return np.diff(self.offsets)

    def client(self, index: int) -> dict[str, np.ndarray]:
        """The examples of client `index`, each [examples of the client, ...]."""
        begin, end = self.offsets[index], self.offsets[index + 1]
        return {name: array[begin:end] for name, array in self.arrays.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class FederatedDataset:
    """A named federated data set.

    Attributes:
      name: as in a config's `dataset.name`.
      splits: "train" and "test", and "validation" where the source has one. The clients of
        a split need not be those of another.
      num_classes: labels, or the size of the vocabulary.
      kind: "image" (classification of uint8 images), "text" (classification of token
        sequences), "language" (the next token) or "speech" (transcription).
      vocabulary: the tokens by id where there are any, else empty. That of speech begins with
        "", the blank of CTC, which is also padding.
      ignored_tokens: ids that a language task leaves out of accuracy (padding, out of
        vocabulary, end of sentence); id 0 is always padding and carries no loss.
      separator: joins the tokens of a transcript: "" for characters, " " for words.
      unusable: by split, how many examples of the source are left out of it (corrupt, silent, too
        long ...); a split of which none is may be missing.
      sample_rate: of the audio that the features are of, in Hz; 0 where there is none.
    """

    name: str
    splits: Mapping[str, Split]
    num_classes: int
    kind: str = "image"
    vocabulary: tuple[str, ...] = ()
    ignored_tokens: tuple[int, ...] = ()
    separator: str = ""
    unusable: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sample_rate: int = 0
