"""The bundled speech: sentences that espeak-ng says, recognised as characters or words.

Clients are speakers, and those for training, validation and the test are different ones. The corpus
(`fedlite.data.synthesis`) is made once, in half a minute on two cores at the default size, and
kept in the cache as samples; features (`fedlite.data.audio`) of one choice of options are another
entry, which is mapped into memory.

What speech data sets share is here too: the alphabet, and transcripts as token ids. Id 0 is padding
and the blank of CTC (Graves et al. 2006) at once.
"""

import string
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import logging

from fedlite.data import cache, synthesis
from fedlite.data.federated import FederatedDataset, Split
from fedlite.errors import UserError

BLANK = ""
CHARACTERS = (BLANK, " ", "'", *string.ascii_lowercase)


def encode(
    transcripts: Sequence[str], vocabulary: Sequence[str], separator: str, max_labels: int = 0
) -> np.ndarray:
    """Transcripts as token ids.

    Args:
      transcripts: each made of tokens of the vocabulary, joined by the separator.
      vocabulary: tokens by id, the blank first.
      separator: "" where tokens are characters, " " where they are words.
      max_labels: to which transcripts are padded; 0 for the longest of them.

    Returns:
      int32 [transcripts, max_labels], padded with 0.

    Raises:
      UserError: a transcript has something else than the vocabulary's tokens.
    """
    ids = {token: number for number, token in enumerate(vocabulary) if token != BLANK}
    tokens = [transcript.split() if separator else transcript for transcript in transcripts]
    encoded = np.zeros((len(tokens), max_labels or max(map(len, tokens), default=0)), np.int32)
    for row, transcript in zip(encoded, tokens):
        for place, token in enumerate(transcript):
            if token not in ids:
                raise UserError(
                    f"the transcript {separator.join(transcript)!r} has {token!r}, which is not "
                    "in the vocabulary: leave the utterance out"
                )
            row[place] = ids[token]
    return encoded


def speech(
    *,
    grammar: str = "digits",
    speakers: int = 120,
    validation_speakers: int = 40,
    test_speakers: int = 40,
    utterances: int = 30,
    room: bool = False,
    noise: bool = True,
    vocabulary: str = "characters",
    mels: int = 40,
    max_frames: int = 0,
    seed: int = 0,
    cache_dir: str = "",
) -> FederatedDataset:
    """Loads the bundled speech at 8 kHz: features, their real frames, and transcripts.

    Splits have "x", float16 [utterances, max_frames, mels], "frames", int32 [utterances], and
    "y", int32 [utterances, max_labels]. Another number of test or validation speakers gives
    other training speakers; more training speakers leave the first ones as they were.

    Args:
      grammar: what is said, "digits" (strings of 3 to 6) or "commands".
      speakers: for training; all speakers together are at most 720.
      validation_speakers: 0 for no validation split.
      test_speakers: at least one.
      utterances: of each speaker.
      room: add the early reflections of a room, each speaker's own.
      noise: add white noise, 10 to 30 dB below the speech, by speaker.
      vocabulary: "characters", or "words" for those of the grammar.
      mels: channels of the features, see `fedlite.data.audio`.
      max_frames: of 10 ms; longer utterances are left out, and their number is said. 0 for as
        many as the longest utterance has.
      seed: of the corpus.
      cache_dir: see `fedlite.data.cache`.

    Raises:
      UserError: an option is out of range, or espeak-ng (the extra "speech") is not installed.
    """
    for name, value, least in (
        ("speakers", speakers, 1),
        ("validation_speakers", validation_speakers, 0),
        ("test_speakers", test_speakers, 1),
        ("max_frames", max_frames, 0),
    ):
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}")
    if vocabulary not in ("characters", "words"):
        raise UserError(f"vocabulary must be 'characters' or 'words', got {vocabulary!r}")
    everyone = test_speakers + validation_speakers + speakers
    recipe = synthesis.Recipe(grammar, everyone, utterances, room, seed, noise)
    corpus = load_corpus(recipe, cache_dir)
    features = _load_features(recipe, corpus, mels, max_frames, cache_dir)
    kept = features.arrays["kept"]
    tokens = CHARACTERS if vocabulary == "characters" else (BLANK, *synthesis.words(grammar))
    separator = "" if vocabulary == "characters" else " "
    transcripts = [corpus.facts["transcripts"][utterance] for utterance in kept]
    arrays = {
        "x": features.arrays["x"],
        "frames": features.arrays["frames"],
        "y": encode(transcripts, tokens, separator),
    }
    bounds = np.cumsum([0, test_speakers, validation_speakers, speakers])
    names, owners = corpus.facts["speakers"], corpus.arrays["speaker"][kept]
    splits, unusable = {}, {}
    for part, first, last in zip(("test", "validation", "train"), bounds, bounds[1:]):
        if last > first:
            splits[part] = _split(arrays, owners, names, first, last)
            if not splits[part].num_examples:
                raise UserError(f"max_frames {max_frames} leaves nothing of {part}: raise it")
            if left_out := int(last - first) * utterances - splits[part].num_examples:
                unusable[part] = left_out
    return FederatedDataset(
        name="speech",
        splits={part: splits[part] for part in ("train", "validation", "test") if part in splits},
        num_classes=len(tokens),
        kind="speech",
        vocabulary=tokens,
        separator=separator,
        unusable=unusable,
        sample_rate=synthesis.RATE,
    )


def load_corpus(recipe: synthesis.Recipe, cache_dir: str = "") -> cache.Entry:
    """The recordings of a recipe, made where the cache has none.

    Returns:
      Arrays "pcm", int16 [samples], of one utterance after another, "offsets", int64
      [utterances + 1], where each begins, and "speaker", int32 [utterances]; facts
      "transcripts" and "speakers" (names).
    """

    def convert(writer: cache.Writer) -> Mapping[str, list[str]]:
        logging.warning(
            "making the speech corpus of %d utterances: once, half a minute for 6000 on two cores",
            recipe.speakers * recipe.utterances,
        )
        names = [speaker.name for speaker in synthesis.speakers(recipe)]
        offsets, owners, transcripts = [0], [], []
        for utterance in synthesis.utterances(recipe, range(recipe.speakers)):
            writer.append("pcm", utterance.pcm)
            offsets.append(offsets[-1] + len(utterance.pcm))
            owners.append(utterance.speaker)
            transcripts.append(utterance.transcript)
        writer.append("offsets", np.array(offsets, np.int64))
        writer.append("speaker", np.array(owners, np.int32))
        return {"transcripts": transcripts, "speakers": names}

    return cache.load(
        "speech", options=recipe.identity(), sources=[], convert=convert, cache_dir=cache_dir
    )


def _load_features(
    recipe: synthesis.Recipe, corpus: cache.Entry, mels: int, max_frames: int, cache_dir: str
) -> cache.Entry:
    """Arrays "x", "frames" and "kept", int64, which utterances they are of."""
    # JAX, which making the corpus does not need.
    from fedlite.data import audio

    frontend = audio.Frontend(synthesis.RATE, mels)
    audio.mel_filterbank(frontend)
    offsets = corpus.arrays["offsets"]
    frames = frontend.frames(np.diff(offsets))
    width = max_frames or int(frames.max())
    kept = np.flatnonzero(frames <= width)
    if len(kept) < len(frames):
        logging.warning(
            "speech: %d of %d utterances are longer than max_frames %d and left out",
            len(frames) - len(kept),
            len(frames),
            max_frames,
        )

    def recordings() -> Iterator[np.ndarray]:
        for utterance in kept:
            pcm = corpus.arrays["pcm"][offsets[utterance] : offsets[utterance + 1]]
            if reason := audio.fault(pcm, frontend):
                said = corpus.facts["transcripts"][utterance]
                raise UserError(f"the corpus has {reason} for {said!r}: take another seed")
            yield pcm

    def convert(writer: cache.Writer) -> dict[str, str]:
        # There are arrays even where nothing is kept.
        writer.append("x", np.zeros((0, width, mels), np.float16))
        writer.append("frames", np.zeros(0, np.int32))
        for x, real in audio.featurize(recordings(), frontend, width):
            writer.append("x", x)
            writer.append("frames", real)
        writer.append("kept", kept)
        return {}

    return cache.load(
        "speech_features",
        options={
            "corpus": recipe.identity(),
            "audio": audio.VERSION,
            "mels": mels,
            "max_frames": max_frames,
        },
        sources=[],
        convert=convert,
        cache_dir=cache_dir,
    )


def _split(
    arrays: Mapping[str, np.ndarray],
    owners: np.ndarray,
    names: Sequence[str],
    first: int,
    last: int,
) -> Split:
    """The split of speakers `first` to before `last`, but for those who have no utterance."""
    begin, end = np.searchsorted(owners, [first, last])
    present, sizes = np.unique(owners[begin:end], return_counts=True)
    return Split(
        # Slices, so that what is mapped stays mapped.
        arrays={name: array[begin:end] for name, array in arrays.items()},
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        client_ids=tuple(names[speaker] for speaker in present),
    )
