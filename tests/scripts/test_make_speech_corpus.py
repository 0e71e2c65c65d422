"""Tests of scripts/make_speech_corpus.py."""

import hashlib
import importlib.util
import json

import numpy as np
import pytest

from fedlite.data import synthesis
from tests.program import Program

soundfile = pytest.importorskip("soundfile", reason="the extra 'speech' is not installed")
pytest.importorskip("espeakng_loader", reason="the extra 'speech' is not installed")

PROGRAM = Program("scripts.make_speech_corpus")
make_speech_corpus = PROGRAM.module
RECIPE = synthesis.Recipe("commands", speakers=2, utterances=2)


def run(out, *arguments, speakers=2):
    """The program in this process; its exit code."""
    wanted = (f"--speakers={speakers}", "--utterances=2", "--grammar=commands")
    return PROGRAM.run(f"--out={out}", *wanted, *arguments)


def contents(out):
    """Digests of all files but the manifest, by path."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus."""
    out = tmp_path_factory.mktemp("corpus") / "there"
    assert run(out) == 0
    return out


def test_the_corpus_is_what_the_speakers_say(made):
    names = [who.name for who in synthesis.speakers(RECIPE)]
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["recipe"] == RECIPE.identity() and manifest["rate"] == 8000
    assert [who["name"] for who in manifest["speakers"]] == names
    files = contents(made)
    assert manifest["sha256"] == files and len(files) == 2 * (2 + 1)
    said = list(synthesis.utterances(RECIPE, range(2)))
    for number, name in enumerate(names):
        lines = (made / f"{name}.trans.txt").read_text().splitlines()
        for index, line in enumerate(lines):
            utterance = said[2 * number + index]
            assert line == f"{name}-{index:04d} {utterance.transcript}"
            pcm, rate = soundfile.read(made / name / f"{name}-{index:04d}.wav", dtype="int16")
            assert rate == 8000
            np.testing.assert_array_equal(pcm, utterance.pcm)


def test_what_is_whole_is_not_made_again(made, monkeypatch, capsys):
    monkeypatch.setattr(synthesis, "utterances", None)
    before = contents(made)
    assert run(made) == 0
    assert f"is there already, and whole: {made} (2 speakers, 4" in capsys.readouterr().out
    assert contents(made) == before


@pytest.mark.parametrize("damage", ["changed", "gone", "transcripts"])
def test_what_is_damaged_is_mended(made, damage, capsys):
    before = contents(made)
    first, second = synthesis.speakers(RECIPE)
    sound = made / first.name / f"{first.name}-0001.wav"
    kept = (made / second.name).stat().st_ino
    if damage == "changed":
        sound.write_bytes(sound.read_bytes()[:-100])
    elif damage == "gone":
        sound.unlink()
    else:
        (made / f"{first.name}.trans.txt").write_text("")
    assert run(made) == 0
    assert "1 of 2 speakers are there already" in capsys.readouterr().out
    assert contents(made) == before
    assert (made / second.name).stat().st_ino == kept


def test_an_interrupted_corpus_is_not_believed_and_resumed(made, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new"
    write, written = soundfile.write, []

    def interrupted(*arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(write(*arguments))

    monkeypatch.setattr(soundfile, "write", interrupted)
    assert run(out) == 130
    assert not (out / "manifest.json").exists()
    first, second = synthesis.speakers(RECIPE)
    assert (out / first.name).is_dir() and not (out / second.name).exists()
    inode = (out / first.name).stat().st_ino
    # Another recipe does not take it over.
    assert run(out, "--room") == 2
    assert "has a corpus with room False, not True" in capsys.readouterr().err
    monkeypatch.setattr(soundfile, "write", write)
    assert run(out) == 0
    assert "1 of 2 speakers are there already" in capsys.readouterr().out
    assert (out / first.name).stat().st_ino == inode
    assert contents(out) == contents(made)
    assert (out / "manifest.json").read_text() == (made / "manifest.json").read_text()


def test_bad_input_is_one_line(made, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    for out, arguments, message in (
        (made, ["--seed=1"], "has a corpus with seed 0, not 1: name another directory"),
        (tmp_path / "mine", [], "holds files of another kind; name a new directory"),
        (tmp_path / "mine" / "notes.txt", [], "cannot be used (File exists): name another"),
        (tmp_path / "broken", [], "manifest.json is damaged"),
        (tmp_path / "none", ["--speakers=721"], "721 speakers are more than the 720 voices"),
        (tmp_path / "none", ["--grammar=poems"], "should be one of <digits|commands>"),
        ("", [], "--out is needed"),
    ):
        assert run(out, *arguments) == 2, message
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(tmp_path / "none") == 2
    assert "soundfile is not installed: pip install -e '.[speech]'" in capsys.readouterr().err
