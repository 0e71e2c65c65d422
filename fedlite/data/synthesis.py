"""Speech that espeak-ng says: speakers, what they say, and how it is recorded.

A speaker is one of espeak-ng's 8 English accents in one of its voice variants, with a pitch, a rate
and a microphone of its own (white noise at 10 to 30 dB below the speech, if wished, and the early
reflections of a room). No two speakers share accent and variant. Variants that people can hardly
understand are left out: the whispers, the robots of robosoft, Demonic, UniRobot, Gene and ed. What
is said are strings of 3 to 6 digits, or commands of a grammar of 51 words.

A corpus is a pure function of its recipe and of espeak-ng's version.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fedlite.data import espeak
from fedlite.data import partition as partitions
from fedlite.errors import UserError

# Raised when a recipe gives other utterances, so that caches of older ones are not believed.
VERSION = 1

RATE = 8000
ACCENTS = (
    *("en", "en-029", "en-gb-scotland", "en-gb-x-gbclan"),
    *("en-gb-x-gbcwmd", "en-gb-x-rp", "en-us", "en-us-nyc"),
)
_LEFT_OUT = re.compile(r"whisper.*|robosoft.*|Demonic|UniRobot|Gene|ed")

_PITCH, _WORDS_PER_MINUTE, _SNR_DB = (25, 75), (120, 185), (10.0, 30.0)
_REFLECTIONS, _REFLECTION_SECONDS, _REFLECTION_GAIN = 6, (0.002, 0.060), 0.5

# What generators are for, beside those of the other modules.
_VOICES, _SPEAKER, _SENTENCES, _NOISE = range(30, 34)

# Sentences of a grammar: each place has alternatives; a sentence takes one of each.
_DIGIT = "zero one two three four five six seven eight nine"
_ROOM = "kitchen bedroom bathroom garden hall"
GRAMMARS = {
    "digits": tuple((_DIGIT,) * count for count in range(3, 7)),
    "commands": (
        ("turn", "on off", "the", _ROOM, "light lamp fan heater radio"),
        ("open close lock", "the", _ROOM, "door window"),
        ("set", "the", "timer alarm", "to", "two three four five ten twenty thirty", "minutes"),
        ("set", "the", _ROOM, "heater", "to", "ten twenty thirty"),
        ("play stop pause", "the", "music news radio"),
        ("call", "my", "mother father sister brother doctor", "today tomorrow now"),
        ("what", "is", "the", "weather time temperature", "today tomorrow now"),
    ),
}

# Of noise that no sample of 16 bits shows.
_SILENT_DB = 300.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that a corpus depends on, besides the versions of the code.

    Speakers and utterances have numbers; the first of a larger corpus are those of a smaller one.

    Attributes:
      grammar: a key of `GRAMMARS`.
      speakers: their number.
      utterances: of each speaker.
      room: add the early reflections of a room, each speaker's own.
      noise: add noise, at each speaker's own level.
      seed: of all draws.
    """

    grammar: str = "digits"
    speakers: int = 200
    utterances: int = 30
    room: bool = False
    seed: int = 0
    noise: bool = True

    def __post_init__(self):
        if self.grammar not in GRAMMARS:
            raise UserError(f"grammar must be one of {', '.join(GRAMMARS)}, got {self.grammar!r}")
        for name in ("speakers", "utterances"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")

    def identity(self) -> dict[str, Any]:
        """The recipe and the versions of what carries it out, plain JSON."""
        return {**dataclasses.asdict(self), "version": VERSION, "espeakng_loader": espeak.version()}


class Speaker(NamedTuple):
    """A speaker.

    Attributes:
      name: unique in a corpus; fit for a file.
      accent: one of `ACCENTS`.
      variant: of espeak-ng's voices.
      pitch: 0 to 99, in espeak-ng's units.
      rate: words a minute.
      snr: energy of the speech over that of the noise, in dB.
      delays: of the room's reflections, in samples at `RATE`, each at least 1.
      gains: of the reflections, relative to the direct sound.
    """

    name: str
    accent: str
    variant: str
    pitch: int
    rate: int
    snr: float
    delays: tuple[int, ...]
    gains: tuple[float, ...]


class Utterance(NamedTuple):
    """A recorded sentence: the number of its speaker, its words, int16 [samples] at `RATE`."""

    speaker: int
    transcript: str
    pcm: np.ndarray


def words(grammar: str) -> tuple[str, ...]:
    """The words of a grammar, sorted."""
    return tuple(
        sorted({word for form in GRAMMARS[grammar] for place in form for word in place.split()})
    )


def speakers(recipe: Recipe) -> list[Speaker]:
    """The speakers of a corpus, in the order of their numbers.

    Raises:
      UserError: espeak-ng is not installed, or has not as many voices.
    """
    variants = [variant for variant in espeak.variants() if not _LEFT_OUT.fullmatch(variant)]
    voices = [(accent, variant) for accent in ACCENTS for variant in variants]
    if recipe.speakers > len(voices):
        raise UserError(
            f"{recipe.speakers} speakers are more than the {len(voices)} voices of espeak-ng: "
            "take fewer"
        )
    order = partitions.generator(recipe.seed, _VOICES).permutation(len(voices))
    return [_speaker(number, *voices[order[number]], recipe) for number in range(recipe.speakers)]


def _speaker(number: int, accent: str, variant: str, recipe: Recipe) -> Speaker:
    rng = partitions.generator(recipe.seed, _SPEAKER, number)
    pitch, rate = (int(rng.integers(low, high + 1)) for low, high in (_PITCH, _WORDS_PER_MINUTE))
    snr = float(rng.uniform(*_SNR_DB))
    delays = np.sort(rng.uniform(*_REFLECTION_SECONDS, _REFLECTIONS if recipe.room else 0))
    # Later reflections have gone further and lost more; walls turn the sign of some.
    gains = _REFLECTION_GAIN * np.exp(-delays / _REFLECTION_SECONDS[1])
    signs = rng.choice([-1.0, 1.0], len(delays))
    return Speaker(
        name=f"{number:03d}_{accent}_{variant}".replace(" ", "-"),
        accent=accent,
        variant=variant,
        pitch=pitch,
        rate=rate,
        snr=snr if recipe.noise else _SILENT_DB,
        delays=tuple(int(delay) for delay in np.rint(delays * RATE)),
        gains=tuple(float(gain) for gain in signs * gains),
    )


def sentences(recipe: Recipe, speaker: int) -> list[str]:
    """What a speaker says: a form of the grammar and its words, each drawn uniformly."""
    rng = partitions.generator(recipe.seed, _SENTENCES, speaker)
    forms = GRAMMARS[recipe.grammar]
    return [
        " ".join(str(rng.choice(place.split())) for place in forms[rng.integers(len(forms))])
        for _ in range(recipe.utterances)
    ]


def utterances(recipe: Recipe, numbers: Iterable[int], workers: int = 0) -> Iterator[Utterance]:
    """Says and records all that the speakers of these numbers say, one after another.

    Args:
      recipe: of the corpus.
      numbers: of speakers.
      workers: processes; 0 for one a core. The utterances do not depend on it.

    Raises:
      UserError: espeak-ng is not installed or fails.
    """
    everyone, numbers = speakers(recipe), list(numbers)
    said = [sentences(recipe, number) for number in numbers]
    scripts = [_script(everyone[number], texts) for number, texts in zip(numbers, said)]
    spoken = espeak.say(scripts, workers)
    for number, texts, sounds in zip(numbers, said, spoken, strict=True):
        for index, (text, dry) in enumerate(zip(texts, sounds, strict=True)):
            rng = partitions.generator(recipe.seed, _NOISE, number, index)
            yield Utterance(number, text, record(dry, everyone[number], rng))


def _script(speaker: Speaker, texts: Iterable[str]) -> list[espeak.Request]:
    voice = f"{speaker.accent}+{speaker.variant}"
    return [
        espeak.Request(text, voice, speaker.pitch, speaker.rate, seed=index + 1)
        for index, text in enumerate(texts)
    ]


def record(dry: np.ndarray, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """What the speaker's microphone makes of a sound.

    Args:
      dry: int16 [samples] at 22,050 Hz.
      speaker: whose room and noise.
      rng: of the noise.

    Returns:
      int16 at `RATE`: y[n] = x[n] + sum_k gain_k x[n - delay_k], where x is the sound resampled
      by a polyphase filter and halved, and white Gaussian noise of the energy of y less `snr` dB.
    """
    # Slow to import, and needed only where a corpus is made.
    from scipy import signal

    # 8000 / 22050 = 160 / 441.
    direct = signal.resample_poly(dry.astype(np.float64), 160, 441)
    # Some voices fill the range, and noise is added to them.
    direct *= 0.5
    heard = direct.copy()
    for delay, gain in zip(speaker.delays, speaker.gains):
        heard[delay:] += gain * direct[:-delay]
    noise = np.sqrt(np.mean(heard**2) / 10 ** (speaker.snr / 10))
    heard += noise * rng.standard_normal(len(heard))
    return np.clip(np.rint(heard), -32768, 32767).astype(np.int16)
