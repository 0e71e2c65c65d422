"""LibriSpeech (Panayotov et al. 2015) by speaker, from its archives as they are published.

`data_dir` holds the extracted subsets (or the folder LibriSpeech/ that the archives make):

  SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac    16 kHz, one channel
  SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt         "SPEAKER-CHAPTER-UTTERANCE WORDS" a line

The first load converts audio to log-mel features in the cache (`fedlite.data.cache`), which later
ones map; it takes a core some ten seconds an hour of audio, and no more than a batch of utterances
is in memory. On disk every utterance takes the frames of the longest: at most 20 s and 80 mels,
320 kB, which is 9 GB for the 100 hours of train-clean-100 and 90 GB for all 960. The cache follows
changes of transcripts and of which files there are; a file whose samples were changed in place
goes unnoticed.

What cannot be used is left out, counted and said at every load: corrupt, empty, silent or very
short audio, audio without a transcript and the reverse, transcripts that are empty or have
characters besides A to Z, apostrophe and space.
"""

import importlib.util
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from fedlite.data import cache
from fedlite.data import librispeech_files as files
from fedlite.data.federated import FederatedDataset, Split
from fedlite.data.speech import CHARACTERS, encode
from fedlite.errors import UserError

# Raised when the conversion changes, so that caches of an older one are not believed.
_VERSION = 1


def librispeech(
    *,
    data_dir: str = "",
    train: str = "train-clean-100",
    validation: str = "dev-clean",
    test: str = "test-clean",
    max_seconds: float = 20.0,
    max_examples_per_client: int = 0,
    vocabulary: str = "characters",
    mels: int = 80,
    cache_dir: str = "",
) -> FederatedDataset:
    """Loads LibriSpeech: features, their real frames, and transcripts in lower case.

    Splits have "x", float16 [utterances, max_frames, mels], "frames", int32 [utterances], and
    "y", int32 [utterances, max_labels]; a client is a speaker, and its id that of LibriSpeech.

    Args:
      data_dir: where the subsets lie; "" for `~/LibriSpeech`.
      train: subsets joined by "+", such as "train-clean-100+train-clean-360".
      validation: likewise; "" for no validation split.
      test: likewise.
      max_seconds: longer utterances are left out of every split, since all are padded to the
        longest. The training subsets have none of more than 25 s, the others up to 36 s: what
        is left out of a test is no part of its word error rate, and its number is said.
      max_examples_per_client: only the first utterances of each training speaker; 0 for all.
      vocabulary: "characters" (space, apostrophe, a to z).
      mels: channels of the features, see `fedlite.data.audio`.
      cache_dir: see `fedlite.data.cache`.

    Raises:
      UserError: a subset or soundfile (the extra "speech") is missing, audio is not at 16 kHz,
        nothing is left of a split, or an option is out of range.
    """
    if vocabulary != "characters":
        raise UserError(f"vocabulary of librispeech must be 'characters', got {vocabulary!r}")
    if not max_seconds > 0:
        raise UserError(f"max_seconds must be above 0, got {max_seconds}")
    if max_examples_per_client < 0:
        raise UserError(
            f"max_examples_per_client must be 0 (no cap) or more, got {max_examples_per_client}"
        )
    if importlib.util.find_spec("soundfile") is None:
        raise UserError("soundfile is not installed: pip install -e '.[speech]'")
    # JAX, which the data sets without audio do not need.
    from fedlite.data import audio

    frontend = audio.Frontend(files.RATE, mels)
    audio.mel_filterbank(frontend)
    root = pathlib.Path(data_dir or "~/LibriSpeech").expanduser()
    parts = {"train": train, "validation": validation, "test": test}
    chapters = {part: files.chapters(root, named) for part, named in parts.items() if named}
    for part in ("train", "test"):
        if part not in chapters:
            raise UserError(f"{part} is empty: name a subset, such as {part}-clean")
    limits = {"train": max_examples_per_client}

    def convert(writer: cache.Writer) -> dict[str, Any]:
        found, dropped = {}, {}
        for part in chapters:
            dropped[part] = files.Dropped()
            found[part] = files.scan(
                chapters[part], max_seconds, limits.get(part, 0), dropped[part]
            )
            if not found[part]:
                raise UserError(_nothing(parts[part], dropped[part]))
        said = [utterance for utterances in found.values() for utterance in utterances]
        seconds = sum(utterance.samples for utterance in said) / files.RATE
        logging.warning(
            "converting %.3g hours of LibriSpeech to features in %s, once",
            seconds / 3600,
            cache.directory(cache_dir),
        )
        shape = (
            int(frontend.frames(max(utterance.samples for utterance in said))),
            max(len(utterance.transcript) for utterance in said),
        )
        clients = {
            part: _write(writer, part, found[part], frontend, shape, dropped[part])
            for part in found
        }
        facts = {part: dropped[part].facts() for part in dropped}
        return {"clients": clients, "dropped": facts}

    entry = cache.load(
        "librispeech",
        options={
            "version": _VERSION,
            "audio": audio.VERSION,
            "path": str(root.resolve()),
            "parts": parts,
            "max_seconds": max_seconds,
            "max_examples": max_examples_per_client,
            "mels": mels,
        },
        # Of files by the folder that lists them: there are a quarter of a million.
        sources=[cache.stamp(path) for part in chapters.values() for path in files.sources(part)],
        convert=convert,
        cache_dir=cache_dir,
    )
    splits = {}
    for part, clients in entry.facts["clients"].items():
        arrays = {name: entry.arrays[f"{part}.{name}"] for name in ("x", "frames", "y")}
        splits[part] = Split(arrays, entry.arrays[f"{part}.offsets"], tuple(clients))
        if dropped := entry.facts["dropped"][part]:
            number = splits[part].num_examples
            what = files.describe(dropped)
            logging.warning("librispeech: %s has %d utterances; left out: %s", part, number, what)
    return FederatedDataset(
        name="librispeech",
        splits=splits,
        num_classes=len(CHARACTERS),
        kind="speech",
        vocabulary=CHARACTERS,
        separator="",
        unusable={
            part: files.total(dropped)
            for part, dropped in entry.facts["dropped"].items()
            if dropped
        },
        sample_rate=files.RATE,
    )


def _nothing(subset: str, dropped: files.Dropped) -> str:
    why = files.describe(dropped.facts()) or "there is none"
    return f"LibriSpeech's {subset} has no utterance that can be used ({why}): extract it anew"


def _write(
    writer: cache.Writer,
    part: str,
    utterances: Sequence[files.Utterance],
    frontend: Any,
    shape: tuple[int, int],
    dropped: files.Dropped,
) -> list[str]:
    """Writes a split's arrays, one speaker after another; returns the speakers.

    Args:
      writer: gets "PART.x", "PART.frames", "PART.y" and "PART.offsets".
      part: of the data set.
      utterances: those of a speaker follow each other.
      frontend: of the features.
      shape: max_frames and max_labels.
      dropped: gets the utterances whose samples cannot be used.
    """
    from fedlite.data import audio

    max_frames, max_labels = shape
    speakers: dict[str, list[files.Utterance]] = {}
    for utterance in utterances:
        speakers.setdefault(utterance.speaker, []).append(utterance)
    clients, offsets = [], [0]
    for speaker, theirs in speakers.items():
        kept: list[str] = []

        def recordings(theirs=theirs, kept=kept) -> Iterator[np.ndarray]:
            for utterance in theirs:
                pcm = files.decode(utterance)
                reason = "corrupt audio" if pcm is None else audio.fault(pcm, frontend)
                if reason:
                    dropped.add(reason, utterance.path)
                else:
                    kept.append(utterance.transcript)
                    yield pcm

        for x, frames in audio.featurize(recordings(), frontend, max_frames):
            writer.append(f"{part}.x", x)
            writer.append(f"{part}.frames", frames)
        if kept:
            writer.append(f"{part}.y", encode(kept, CHARACTERS, "", max_labels))
            clients.append(speaker)
            offsets.append(offsets[-1] + len(kept))
    if not clients:
        raise UserError(_nothing(part, dropped))
    writer.append(f"{part}.offsets", np.array(offsets, np.int64))
    return clients
