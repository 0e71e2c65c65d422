"""Tests of LibriSpeech on a small tree in its published format."""

import importlib.util
import pathlib
import shutil

import numpy as np
import pytest

from fedlite import data
from fedlite.data import audio, librispeech_files
from fedlite.errors import UserError

soundfile = pytest.importorskip("soundfile", reason="the extra 'speech' is not installed")

RATE, MELS = 16000, 20
# Transcripts by subset, speaker and chapter; utterances are numbered from 0.
TREE = {
    "train-clean-100": {
        ("103", "1240"): ["CHAPTER ONE", "MISSUS RACHEL LYNDE'S HOUSE"],
        ("19", "227"): ["A B"],
        ("19", "198"): ["NORTHANGER ABBEY", "TO THE READER", "OF JANE"],
    },
    "train-other-500": {("20", "205"): ["AND SO ON"]},
    "dev-clean": {("84", "121123"): ["GO"]},
    "test-clean": {("61", "70968"): ["HE BEGAN", "A CONFUSED COMPLAINT"]},
}


def samples(*seed, seconds=None):
    """Noise of 0.1 to 0.3 s, or of the given length, quieter from utterance to utterance."""
    rng = np.random.default_rng(seed)
    count = int(RATE * (seconds or rng.uniform(0.1, 0.3)))
    return (rng.standard_normal(count) * rng.uniform(500, 3000)).astype(np.int16)


def path_of(root, subset, speaker, chapter, number):
    return root / subset / speaker / chapter / f"{speaker}-{chapter}-{number:04d}.flac"


def write(root, subset, speaker, chapter, transcripts):
    folder = root / subset / speaker / chapter
    folder.mkdir(parents=True)
    lines = []
    for number, transcript in enumerate(transcripts):
        path = path_of(root, subset, speaker, chapter, number)
        pcm = samples(int(speaker), int(chapter), number)
        soundfile.write(path, pcm, RATE, subtype="PCM_16")
        lines.append(f"{path.stem} {transcript}\n")
    (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder in which archives were extracted: they all bring a folder LibriSpeech."""
    base = tmp_path_factory.mktemp("data")
    for subset, chapters in TREE.items():
        for (speaker, chapter), transcripts in chapters.items():
            write(base / "LibriSpeech", subset, speaker, chapter, transcripts)
    (base / "LibriSpeech" / "SPEAKERS.TXT").write_text("not a subset\n")
    return base


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def load(root, directory, **options):
    return data.load(
        "librispeech", data_dir=str(root), mels=MELS, cache_dir=str(directory), **options
    )


@pytest.fixture(scope="module")
def loaded(root, directory):
    return load(root, directory)


@pytest.fixture
def own(root, tmp_path):
    """A copy of the tree, to be damaged."""
    shutil.copytree(root / "LibriSpeech", tmp_path / "tree")
    return tmp_path / "tree"


def spoken(loaded, part):
    return [
        "".join(loaded.vocabulary[token] for token in row if token)
        for row in loaded.splits[part].arrays["y"]
    ]


def test_the_data_set_by_its_contract(loaded):
    assert (loaded.name, loaded.kind, loaded.separator) == ("librispeech", "speech", "")
    assert loaded.vocabulary == ("", " ", "'", *"abcdefghijklmnopqrstuvwxyz")
    assert loaded.num_classes == 29
    frames = [split.arrays["frames"].max() for split in loaded.splits.values()]
    for split in loaded.splits.values():
        x, y = split.arrays["x"], split.arrays["y"]
        assert x.shape[1:] == (max(frames), MELS) and x.dtype == np.float16
        assert y.shape[1] == len("MISSUS RACHEL LYNDE'S HOUSE") and y.dtype == np.int32
        assert split.arrays["frames"].dtype == np.int32


def test_speakers_are_clients_in_the_order_of_their_numbers(loaded):
    ids = {part: split.client_ids for part, split in loaded.splits.items()}
    assert ids == {"train": ("19", "103"), "validation": ("84",), "test": ("61",)}
    assert loaded.splits["train"].sizes.tolist() == [4, 2]
    # Chapters by their numbers too.
    assert spoken(loaded, "train") == [
        *("northanger abbey", "to the reader", "of jane", "a b"),
        *("chapter one", "missus rachel lynde's house"),
    ]
    assert spoken(loaded, "validation") == ["go"]
    assert spoken(loaded, "test") == ["he began", "a confused complaint"]


def test_features_are_those_of_the_samples(loaded):
    frontend = audio.Frontend(RATE, MELS)
    expected = [samples(19, 198, number) for number in range(3)] + [samples(19, 227, 0)]
    arrays = loaded.splits["train"].client(0)
    for x, frames, pcm in zip(arrays["x"], arrays["frames"], expected, strict=True):
        energies = np.asarray(audio.log_mel(pcm, frontend))
        assert frames == len(energies) == 1 + (len(pcm) - 400) // 160
        normal = (energies - energies.mean(axis=0)) / energies.std(axis=0)
        np.testing.assert_allclose(x[:frames], normal, atol=6e-3)
        assert not x[frames:].any()


def test_files_are_converted_once_and_again_when_they_change(own, tmp_path, monkeypatch):
    first, scans = load(own, tmp_path), []
    scan = librispeech_files.scan
    monkeypatch.setattr(
        librispeech_files, "scan", lambda *arguments: scans.append(1) or scan(*arguments)
    )
    again = load(own, tmp_path)
    assert not scans
    for part, split in first.splits.items():
        for name, array in split.arrays.items():
            np.testing.assert_array_equal(array, again.splits[part].arrays[name])
    transcripts = own / "dev-clean" / "84" / "121123" / "84-121123.trans.txt"
    transcripts.write_text("84-121123-0000 GO ON\n")
    assert spoken(load(own, tmp_path), "validation") == ["go on"]
    path_of(own, "test-clean", "61", "70968", 0).unlink()
    assert spoken(load(own, tmp_path), "test") == ["a confused complaint"]


def test_subsets_are_joined_and_clients_capped(root, tmp_path):
    both = load(
        root / "LibriSpeech",
        tmp_path,
        train="train-clean-100+train-other-500",
        validation="",
        max_examples_per_client=2,
    )
    assert list(both.splits) == ["train", "test"]
    assert both.splits["train"].client_ids == ("19", "20", "103")
    assert both.splits["train"].sizes.tolist() == [2, 1, 2]
    assert spoken(both, "train")[:2] == ["northanger abbey", "to the reader"]
    assert both.splits["test"].num_examples == 2


def test_what_cannot_be_used_is_left_out_and_counted(own, tmp_path, caplog):
    """A speaker with a file of every fault, between two good utterances."""
    said = ["FIRST", "A", "B", "C", "D", "E", "F", "G\u00c9", "", "LONG", "LAST"]
    write(own, "train-clean-100", "7", "1", said)
    paths = [path_of(own, "train-clean-100", "7", "1", number) for number in range(len(said))]
    paths[1].write_bytes(b"no flac at all")
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[: len(whole) // 2])
    soundfile.write(paths[3], np.zeros(0, np.int16), RATE)
    soundfile.write(paths[4], np.zeros(3000, np.int16), RATE)
    soundfile.write(paths[5], samples(1)[:399], RATE)
    paths[6].unlink()
    soundfile.write(paths[9], samples(2, seconds=0.6), RATE)
    soundfile.write(paths[0].with_stem("7-1-0099"), samples(3), RATE)
    loaded = load(own, tmp_path, max_seconds=0.5)
    train = loaded.splits["train"]
    assert train.client_ids == ("7", "19", "103")
    assert train.sizes.tolist() == [2, 4, 2]
    assert spoken(loaded, "train")[:2] == ["first", "last"]
    # What is kept is not displaced by what is not.
    alone = np.asarray(audio.log_mel(samples(7, 1, 10), audio.Frontend(RATE, MELS)))
    assert train.arrays["frames"][1] == len(alone)
    normal = (alone - alone.mean(axis=0)) / alone.std(axis=0)
    np.testing.assert_allclose(train.arrays["x"][1, : len(alone)], normal, atol=6e-3)
    (line,) = [
        record.getMessage() for record in caplog.records if "left out" in record.getMessage()
    ]
    assert line.startswith("librispeech: train has 8 utterances; left out: ")
    for fault, count, first in (
        # The last of them is a file without samples, which FLAC cannot be.
        ("corrupt audio", 3, paths[1]),
        ("silent audio", 1, paths[4]),
        ("audio shorter than a frame", 1, paths[5]),
        ("a transcript but no audio", 1, paths[6]),
        ("characters outside the alphabet", 1, paths[7]),
        ("an empty transcript", 1, paths[8]),
        ("more than 0.5 s", 1, paths[9]),
        ("no transcript", 1, paths[0].with_stem("7-1-0099")),
    ):
        assert f"{count} with {fault} (first: {first})" in line
    assert line.count("first: ") == 8
    assert loaded.unusable == {"train": 10}
    # It is said again when the cache is believed.
    caplog.clear()
    assert load(own, tmp_path, max_seconds=0.5).unusable == {"train": 10}
    assert line in caplog.text


@pytest.mark.parametrize("shape", [(8000, 1), (16000, 2)])
def test_another_format_is_refused(shape, own, tmp_path):
    rate, channels = shape
    path = path_of(own, "dev-clean", "84", "121123", 0)
    soundfile.write(path, np.tile(samples(0)[:, None], channels), rate)
    with pytest.raises(UserError, match=f"{path} has {rate} Hz and {channels} channel"):
        load(own, tmp_path / "cache")


@pytest.mark.parametrize("damage", ["header", "samples"])
def test_a_split_of_which_nothing_is_left_is_refused(damage, own, tmp_path):
    path = path_of(own, "dev-clean", "84", "121123", 0)
    if damage == "header":
        path.write_bytes(b"")
    else:
        soundfile.write(path, np.zeros(5000, np.int16), RATE)
    reason = {"header": "corrupt audio", "samples": "silent audio"}[damage]
    with pytest.raises(UserError, match=rf"has no utterance that can be used \(1 with {reason}"):
        load(own, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("librispeech*"))


def test_chapters_without_transcripts(own, tmp_path):
    (own / "dev-clean" / "84" / "121123" / "84-121123.trans.txt").unlink()
    with pytest.raises(UserError, match=r"dev-clean .*\(1 with no transcript"):
        load(own, tmp_path / "cache")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "train-clean-360"}, "train-clean-360 is not in .*: extract https://.*-360.tar"),
        ({"train": "dev-clean+dev-clean"}, "names a subset twice"),
        ({"train": ""}, "train is empty: name a subset"),
        ({"test": ""}, "test is empty: name a subset"),
        ({"max_seconds": 0.0}, "max_seconds must be above 0"),
        ({"max_seconds": float("nan")}, "max_seconds must be above 0"),
        ({"max_examples_per_client": -1}, "max_examples_per_client must be 0"),
        ({"vocabulary": "words"}, "vocabulary of librispeech must be 'characters'"),
    ],
)
def test_bad_options(options, message, root, tmp_path):
    with pytest.raises(UserError, match=message):
        load(root, tmp_path, **options)
    assert not any(tmp_path.iterdir())


def test_an_empty_subset_is_refused(root, tmp_path):
    (tmp_path / "dev-clean" / "84").mkdir(parents=True)
    with pytest.raises(UserError, match=r"dev-clean in .* has no SPEAKER/CHAPTER folders"):
        librispeech_files.chapters(tmp_path, "dev-clean")


def test_the_default_place_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    place = pathlib.Path(tmp_path / "LibriSpeech")
    with pytest.raises(UserError, match=f"train-clean-100 is not in {place}: extract"):
        data.load("librispeech")


def test_without_soundfile_there_is_a_remedy(monkeypatch, root, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"soundfile is not installed: pip install -e '\.\[speech"):
        load(root, tmp_path)
