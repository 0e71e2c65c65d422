"""Tests of the bundled speech: what is said, how it is recorded, and the data set of it."""

import collections
import dataclasses
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedlite
from fedlite import data
from fedlite.data import audio, cache, espeak, speech, synthesis
from fedlite.errors import UserError

pytest.importorskip("espeakng_loader", reason="the extra 'speech' is not installed")

SIZES = {"speakers": 2, "validation_speakers": 1, "test_speakers": 1, "utterances": 3}
RECIPE = synthesis.Recipe(speakers=4, utterances=3)
CLEAN = synthesis.Speaker("a", "en", "m1", 50, 150, snr=300.0, delays=(), gains=())


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def digits(directory):
    return data.load("speech", **SIZES, cache_dir=directory)


@pytest.fixture(scope="module")
def corpus(digits, directory):
    """Its recordings, which `digits` has made."""
    return speech.load_corpus(RECIPE, directory)


def spoken(loaded, part):
    """What the utterances of a split say."""
    return [
        loaded.separator.join(loaded.vocabulary[token] for token in row if token)
        for row in loaded.splits[part].arrays["y"]
    ]


# Sentences and speakers.


@settings(max_examples=20)
@given(st.sampled_from(list(synthesis.GRAMMARS)), st.integers(0, 1000), st.integers(0, 719))
def test_sentences_are_of_the_grammar(grammar, seed, speaker):
    recipe = synthesis.Recipe(grammar, utterances=5, seed=seed)
    said = synthesis.sentences(recipe, speaker)
    for sentence in said:
        forms = [form for form in synthesis.GRAMMARS[grammar] if fits(sentence.split(), form)]
        assert forms, sentence
    longer = dataclasses.replace(recipe, utterances=7, speakers=9)
    assert synthesis.sentences(longer, speaker)[:5] == said


def fits(words, form):
    return len(words) == len(form) and all(
        word in place.split() for word, place in zip(words, form)
    )


def test_digit_strings_have_all_lengths_and_all_digits():
    said = synthesis.sentences(synthesis.Recipe(utterances=400), 0)
    lengths = collections.Counter(len(sentence.split()) for sentence in said)
    assert sorted(lengths) == [3, 4, 5, 6] and min(lengths.values()) > 60
    counts = collections.Counter(" ".join(said).split())
    assert set(counts) == set(synthesis.words("digits")) and min(counts.values()) > 100


def test_words_of_commands():
    words = synthesis.words("commands")
    assert len(words) == 51 and words[:3] == ("alarm", "bathroom", "bedroom")
    assert set("turn on the kitchen light".split()) < set(words)


def test_speakers_are_different_voices_within_their_ranges():
    everyone = synthesis.speakers(synthesis.Recipe(speakers=720))
    assert len({(who.accent, who.variant) for who in everyone}) == 720
    assert len({who.name for who in everyone}) == 720
    assert {who.accent for who in everyone} == set(synthesis.ACCENTS)
    assert len({who.variant for who in everyone}) == 90
    left_out = {"whisper", "whisperf", "robosoft", "robosoft8", "Demonic", "UniRobot", "Gene", "ed"}
    assert not left_out & {who.variant for who in everyone}
    assert {"Gene2", "edward"} < {who.variant for who in everyone}
    for values, low, high in (
        ([who.pitch for who in everyone], 25, 75),
        ([who.rate for who in everyone], 120, 185),
        ([who.snr for who in everyone], 10, 30),
    ):
        assert low <= min(values) < low + 1 and high - 1 < max(values) <= high
    assert all(who.delays == () for who in everyone)
    assert all(name.replace("_", "-").replace("-", "").isalnum() for name, *_ in everyone)


def test_the_first_speakers_of_a_larger_corpus_are_those_of_a_smaller_one():
    few = synthesis.speakers(synthesis.Recipe(speakers=3))
    assert synthesis.speakers(synthesis.Recipe(speakers=9))[:3] == few
    assert synthesis.speakers(synthesis.Recipe(speakers=3, seed=1)) != few


# Recording.


def tone(hz, samples=22050):
    return (16000 * np.sin(2 * np.pi * hz * np.arange(samples) / espeak.RATE)).astype(np.int16)


def test_a_recording_is_resampled_to_8_khz_and_halved():
    heard = synthesis.record(tone(1000), CLEAN, np.random.default_rng(0))
    assert heard.dtype == np.int16 and len(heard) == 8000
    expected = 8000 * np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    # Away from the ends, where the filter sees less than its length.
    np.testing.assert_allclose(heard[200:-200], expected[200:-200], atol=20)
    # What 8 kHz cannot hold does not come back as another tone.
    assert np.abs(synthesis.record(tone(6000), CLEAN, np.random.default_rng(0))[200:-200]).max() < 9


def test_noise_has_the_speakers_distance_from_the_speech():
    dry = tone(500)
    clean = synthesis.record(dry, CLEAN, np.random.default_rng(0)).astype(float)
    quiet = synthesis.speakers(dataclasses.replace(RECIPE, noise=False))[0]
    assert quiet == synthesis.speakers(RECIPE)[0]._replace(snr=quiet.snr)
    without = synthesis.record(dry, CLEAN._replace(snr=quiet.snr), np.random.default_rng(0))
    np.testing.assert_array_equal(
        without, synthesis.record(dry, CLEAN._replace(snr=quiet.snr), np.random.default_rng(1))
    )
    for snr in (10.0, 30.0):
        noisy = synthesis.record(dry, CLEAN._replace(snr=snr), np.random.default_rng(0))
        ratio = np.mean(clean**2) / np.mean((noisy - clean) ** 2)
        assert 10 * np.log10(ratio) == pytest.approx(snr, abs=0.2)


def test_a_room_adds_delayed_copies():
    dry = tone(500)
    dry[3000:] = 0
    direct = synthesis.record(dry, CLEAN, np.random.default_rng(0)).astype(float)
    room = CLEAN._replace(delays=(100, 400), gains=(0.5, -0.25))
    heard = synthesis.record(dry, room, np.random.default_rng(0))
    expected = direct.copy()
    expected[100:] += 0.5 * direct[:-100]
    expected[400:] -= 0.25 * direct[:-400]
    np.testing.assert_allclose(heard, expected, atol=2)


def test_speakers_have_rooms_of_their_own():
    plain = synthesis.speakers(RECIPE)
    rooms = synthesis.speakers(dataclasses.replace(RECIPE, room=True))
    assert len({who.delays for who in rooms}) == 4
    for who, bare in zip(rooms, plain):
        assert who._replace(delays=(), gains=()) == bare
        assert len(who.delays) == len(who.gains) == 6
        assert list(who.delays) == sorted(who.delays) and 16 <= who.delays[0]
        assert who.delays[-1] <= 480 and 0.18 < min(np.abs(who.gains)) < 0.5


# espeak-ng.


def test_two_makings_give_the_same_bytes(corpus):
    """In other processes, in another order and with other numbers of them."""
    offsets = corpus.arrays["offsets"]
    for numbers, workers in (((3, 1), 1), ((1, 3), 2)):
        found = list(synthesis.utterances(RECIPE, numbers, workers))
        assert [utterance.speaker for utterance in found] == list(np.repeat(numbers, 3))
        for index, utterance in enumerate(found):
            place = 3 * utterance.speaker + index % 3
            assert utterance.transcript == corpus.facts["transcripts"][place]
            made = corpus.arrays["pcm"][offsets[place] : offsets[place + 1]]
            assert utterance.pcm.tobytes() == made.tobytes()


ONE = espeak.Request("one", "en+m1", 50, 150, 1)


def test_a_script_decides_the_samples():
    scripts = [[ONE, ONE], [ONE._replace(rate=185)], [ONE._replace(pitch=70)], [ONE]]
    (plain, later), (fast,), (high,), (again,) = espeak.say(scripts, workers=1)
    np.testing.assert_array_equal(plain, again)
    assert plain.dtype == np.int16 and 0.2 < len(plain) / espeak.RATE < 1
    assert len(fast) < 0.95 * len(plain)
    for other in (later, high):
        # The second time in a process is another one, which is why each script has its own.
        assert len(other) != len(plain) or (other != plain).any()


def test_reading_may_stop_early():
    said = espeak.say([[ONE], [ONE._replace(text="two")], [ONE]], workers=2)
    assert next(said)[0].any()
    said.close()


def test_what_cannot_be_said_is_named():
    said = espeak.say([[ONE], [ONE, ONE._replace(voice="xx+f1")]], workers=1)
    assert next(said)[0].any()
    with pytest.raises(UserError, match=r"fails at .*'one', voice='xx\+f1'.* no such voice; its"):
        next(said)
    with pytest.raises(UserError, match=r"fails at .*text='\.'.* silence; its"):
        next(espeak.say([[ONE._replace(text=".")]]))


def test_workers_never_import_jax():
    script = "import sys, fedlite.data.espeak; print({'jax', 'scipy'} & set(sys.modules))"
    root = os.path.dirname(os.path.dirname(fedlite.__file__))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout == "set()\n"


def test_without_espeak_there_is_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"espeakng-loader.* not installed: pip install -e '\.\[sp"):
        data.load("speech", **SIZES, cache_dir=str(tmp_path))
    assert not any(tmp_path.iterdir())


# The data set.


def test_the_data_set_by_its_contract(digits):
    assert (digits.name, digits.kind, digits.separator) == ("speech", "speech", "")
    assert digits.vocabulary == ("", " ", "'", *"abcdefghijklmnopqrstuvwxyz")
    assert digits.num_classes == 29
    assert list(digits.splits) == ["train", "validation", "test"]
    assert [split.num_clients for split in digits.splits.values()] == [2, 1, 1]
    widths = set()
    for split in digits.splits.values():
        x, frames, y = (split.arrays[name] for name in ("x", "frames", "y"))
        assert (x.dtype, frames.dtype, y.dtype) == (np.float16, np.int32, np.int32)
        assert split.sizes.tolist() == [3] * split.num_clients
        widths.add((x.shape[1:], y.shape[1]))
        # Normalised over the real frames, 0 beyond them; labels, then padding.
        for features, count, labels in zip(x, frames, y):
            real = features[:count].astype(np.float32)
            np.testing.assert_allclose(real.mean(axis=0), 0, atol=2e-3)
            np.testing.assert_allclose(real.std(axis=0), 1, atol=2e-3)
            assert not features[count:].any()
            assert (labels > 0).sum() == len(np.trim_zeros(labels, "b")) > 0
    ((features, _),) = widths
    longest = max(split.arrays["frames"].max() for split in digits.splits.values())
    assert features == (longest, 40)


def test_speakers_say_their_sentences_in_one_split_each(digits):
    names = [who.name for who in synthesis.speakers(RECIPE)]
    parts = {part: list(split.client_ids) for part, split in digits.splits.items()}
    assert parts == {"test": names[:1], "validation": names[1:2], "train": names[2:]}
    for part, numbers in (("test", [0]), ("validation", [1]), ("train", [2, 3])):
        expected = [text for number in numbers for text in synthesis.sentences(RECIPE, number)]
        assert spoken(digits, part) == expected


def test_features_are_of_the_recordings(digits, corpus):
    begin, end = corpus.arrays["offsets"][4:6]
    pcm = corpus.arrays["pcm"][begin:end]
    frontend = audio.Frontend(8000, 40)
    energies = np.asarray(audio.log_mel(pcm, frontend))
    expected = (energies - energies.mean(axis=0)) / energies.std(axis=0)
    x, frames = (digits.splits["validation"].arrays[name][1] for name in ("x", "frames"))
    assert frames == len(energies)
    np.testing.assert_allclose(x[:frames], expected, atol=5e-3)


def test_the_corpus_is_made_once(digits, directory, monkeypatch):
    def fail(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(synthesis, "utterances", fail)
    again = data.load("speech", **SIZES, cache_dir=directory)
    for part, split in digits.splits.items():
        for name, array in split.arrays.items():
            np.testing.assert_array_equal(array, again.splits[part].arrays[name])
    # Another vocabulary or frontend is of the same recordings.
    words = data.load("speech", **SIZES, vocabulary="words", mels=20, cache_dir=directory)
    assert words.splits["test"].arrays["x"].shape[2] == 20
    assert words.vocabulary == ("", *sorted("zero one two three four five six seven eight nine"
                                            .split()))  # fmt: skip
    assert (words.num_classes, words.separator) == (11, " ")
    for part in digits.splits:
        assert spoken(words, part) == spoken(digits, part)
    # Another recipe is not.
    with pytest.raises(AssertionError, match="made again"):
        data.load("speech", **{**SIZES, "utterances": 4}, cache_dir=directory)


def test_longer_utterances_are_left_out_and_counted(digits, directory, caplog):
    frames = np.concatenate([split.arrays["frames"] for split in digits.splits.values()])
    most = int(np.sort(frames)[-2])
    short = data.load("speech", **SIZES, max_frames=most, cache_dir=directory)
    longer = int((frames > most).sum())
    said = f"{longer} of 12 utterances are longer than max_frames {most} and left out"
    assert said in caplog.text
    for part, split in digits.splits.items():
        kept = split.arrays["frames"] <= most
        arrays = short.splits[part].arrays
        np.testing.assert_array_equal(arrays["x"], split.arrays["x"][kept][:, :most])
        assert spoken(short, part) == list(np.array(spoken(digits, part))[kept])
        assert short.splits[part].sizes.sum() == kept.sum()
        assert short.unusable.get(part, 0) == (~kept).sum()
    assert sum(short.unusable.values()) == longer and not digits.unusable
    with pytest.raises(UserError, match="max_frames 2 leaves nothing of"):
        data.load("speech", **SIZES, max_frames=2, cache_dir=directory)


def test_a_speaker_without_utterances_is_no_client():
    arrays = {"x": np.arange(4)}
    split = speech._split(arrays, np.array([0, 2, 2, 3]), ["a", "b", "c", "d"], 1, 4)
    assert split.client_ids == ("c", "d")
    assert split.sizes.tolist() == [2, 1]
    np.testing.assert_array_equal(split.arrays["x"], [1, 2, 3])


def test_silent_recordings_are_refused(tmp_path):
    silent = cache.Entry(
        {"pcm": np.zeros(900, np.int16), "offsets": np.array([0, 900])}, {"transcripts": ["one"]}
    )
    with pytest.raises(UserError, match="the corpus has silent audio for 'one'"):
        speech._load_features(RECIPE, silent, 20, 0, str(tmp_path))


def test_encoding_by_hand():
    letters = speech.encode(["it's", "a b"], speech.CHARACTERS, "")
    np.testing.assert_array_equal(letters, [[11, 22, 2, 21], [3, 1, 4, 0]])
    words = speech.encode(["b a b", ""], ("", "a", "b"), " ", max_labels=4)
    np.testing.assert_array_equal(words, [[2, 1, 2, 0], [0, 0, 0, 0]])
    assert letters.dtype == words.dtype == np.int32
    with pytest.raises(UserError, match="'caf\xe9' has '\xe9', which is not in the vocabulary"):
        speech.encode(["caf\xe9"], speech.CHARACTERS, "")
    with pytest.raises(UserError, match="'a c' has 'c', which is not"):
        speech.encode(["a c"], ("", "a", "b"), " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grammar": "poems"}, "grammar must be one of digits, commands, got 'poems'"),
        ({"vocabulary": "bytes"}, "vocabulary must be 'characters' or 'words', got 'bytes'"),
        ({"speakers": 0}, "speakers must be at least 1, got 0"),
        ({"test_speakers": 0}, "test_speakers must be at least 1"),
        ({"validation_speakers": -1}, "validation_speakers must be at least 0"),
        ({"utterances": 0}, "utterances must be at least 1"),
        ({"max_frames": -1}, "max_frames must be at least 0"),
        ({"speakers": 900}, "902 speakers are more than the 720 voices"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"mels": 500}, "mels=500 is too fine for 8000 Hz"),
    ],
)
def test_bad_options(options, message, directory, digits):
    with pytest.raises(UserError, match=message):
        data.load("speech", **{**SIZES, **options}, cache_dir=directory)
