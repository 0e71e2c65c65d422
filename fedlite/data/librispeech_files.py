"""LibriSpeech's files: which utterances there are, what is said in them, and their samples.

What cannot be used is left out and counted by reason; see `fedlite.data.librispeech`.
"""

import collections
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fedlite.data.speech import CHARACTERS
from fedlite.errors import UserError

RATE = 16000
_DOWNLOADS = "https://www.openslr.org/resources/12"


class Utterance(NamedTuple):
    """What is known of an utterance before its audio is decoded."""

    path: pathlib.Path
    speaker: str
    transcript: str
    samples: int


class Dropped:
    """Counts what is left out of a split, by reason, with the first file of each."""

    def __init__(self):
        self._counts = collections.Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, path: pathlib.Path):
        """Counts a file."""
        self._counts[reason] += 1
        self._first.setdefault(reason, str(path))

    def facts(self) -> list[tuple[str, int, str]]:
        """(reason, how many, the first of them), plain JSON."""
        return [(reason, count, self._first[reason]) for reason, count in self._counts.items()]


def describe(facts: Sequence[tuple[str, int, str]]) -> str:
    """The facts of `Dropped` in words; "" where nothing was left out."""
    return ", ".join(f"{count} with {why} (first: {path})" for why, count, path in facts)


def total(facts: Sequence[tuple[str, int, str]]) -> int:
    """How many files the facts of `Dropped` count."""
    return sum(count for _, count, _ in facts)


def chapters(root: pathlib.Path, named: str) -> list[pathlib.Path]:
    """The chapters' folders of subsets, by the numbers of speaker and chapter.

    Args:
      root: has the subsets, or a folder LibriSpeech that has them.
      named: subsets joined by "+".

    Raises:
      UserError: a subset is missing, empty or named twice.
    """
    subsets = named.split("+")
    if len(set(subsets)) < len(subsets):
        raise UserError(f"{named!r} names a subset twice: name each once")
    found = []
    for subset in subsets:
        places = [place for place in (root, root / "LibriSpeech") if (place / subset).is_dir()]
        if not places:
            raise UserError(
                f"LibriSpeech's {subset} is not in {root}: extract {_DOWNLOADS}/{subset}.tar.gz "
                "and set data_dir to the folder LibriSpeech that it makes"
            )
        found += [path for path in (places[0] / subset).glob("*/*") if path.is_dir()]
    if not found:
        raise UserError(
            f"LibriSpeech's {named} in {root} has no SPEAKER/CHAPTER folders: extract it anew"
        )
    return sorted(found, key=lambda path: (_natural(path.parent.name), _natural(path.name)))


def _natural(name: str) -> tuple[int, str]:
    """Numbers in their order, and before other names."""
    return (int(name), name) if name.isdecimal() else (2**62, name)


def _transcripts_file(chapter: pathlib.Path) -> pathlib.Path:
    return chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"


def sources(chapters: Sequence[pathlib.Path]) -> Iterator[pathlib.Path]:
    """What changes where an utterance comes, goes or gets another transcript."""
    for chapter in chapters:
        yield chapter
        if _transcripts_file(chapter).exists():
            yield _transcripts_file(chapter)


def scan(
    chapters: Sequence[pathlib.Path], max_seconds: float, most: int, dropped: Dropped
) -> list[Utterance]:
    """The utterances of chapters that can be used, as far as that shows without decoding.

    Args:
      chapters: of one speaker after another.
      max_seconds: longer ones are left out.
      most: utterances of each speaker; 0 for all.
      dropped: gets what is left out for another reason than `most`.
    """
    found, count = [], collections.Counter()
    for chapter in chapters:
        speaker, transcripts = chapter.parent.name, _read_transcripts(chapter)
        for path in sorted(chapter.glob("*.flac")):
            transcript = transcripts.pop(path.stem, None)
            if most and count[speaker] >= most:
                continue
            samples, reason = 0, _transcript_fault(transcript)
            if not reason:
                samples, reason = _header(path)
            if not reason and samples > max_seconds * RATE:
                reason = f"more than {max_seconds:g} s"
            if reason:
                dropped.add(reason, path)
                continue
            count[speaker] += 1
            found.append(Utterance(path, speaker, transcript, samples))
        for name in transcripts:
            dropped.add("a transcript but no audio", chapter / f"{name}.flac")
    return found


def _read_transcripts(chapter: pathlib.Path) -> dict[str, str]:
    """Transcripts in lower case by the name of their file, without its suffix."""
    try:
        text = _transcripts_file(chapter).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return {name: " ".join(words).lower() for name, *words in lines}


def _transcript_fault(transcript: str | None) -> str:
    if transcript is None:
        return "no transcript"
    if not transcript:
        return "an empty transcript"
    if set(transcript) - set(CHARACTERS):
        return "characters outside the alphabet"
    return ""


def _header(path: pathlib.Path) -> tuple[int, str]:
    """Samples of a file, and what is wrong with it, if anything."""
    import soundfile

    try:
        header = soundfile.info(path)
    except (OSError, RuntimeError):
        return 0, "corrupt audio"
    if (header.samplerate, header.channels) != (RATE, 1):
        raise UserError(
            f"{path} has {header.samplerate} Hz and {header.channels} channel(s), LibriSpeech "
            f"{RATE} Hz and one: extract its archive anew, or convert the file"
        )
    return header.frames, ""


def decode(utterance: Utterance) -> np.ndarray | None:
    """The samples, int16, or None where the file does not hold what its header says."""
    import soundfile

    try:
        pcm, _ = soundfile.read(utterance.path, dtype="int16")
    except (OSError, RuntimeError):
        return None
    return pcm if len(pcm) == utterance.samples else None
