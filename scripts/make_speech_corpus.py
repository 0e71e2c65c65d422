"""Writes the bundled speech corpus as WAV files, to listen to or for other programs.

    python -m scripts.make_speech_corpus --speakers=N --out=DIR \
        [--utterances=30] [--grammar={digits,commands}] [--room] [--nonoise] [--seed=0]

DIR gets SPEAKER/SPEAKER-UTTERANCE.wav (8 kHz, 16 bits), SPEAKER.trans.txt with a line
"SPEAKER-UTTERANCE WORDS" for each, and at last manifest.json: the recipe, the speakers and the
SHA-256 of every file. These are the recordings that the data set `speech` is made of; its test
speakers come first, then those for validation, then those that train.

A speaker's folder is there when it is whole, and the corpus when there is a manifest. The same
command resumes where it was stopped, and mends what was damaged; another recipe in the same DIR is
refused.

Exit code: 0, 2 for bad input, 130 where it was interrupted.
"""

import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from absl import app, flags
from rich import progress as bars
from rich.console import Console

from experiments import binary
from fedlite.data import synthesis
from fedlite.errors import UserError

_SPEAKERS = flags.DEFINE_integer("speakers", None, "Their number, at most 720.", 1)
_OUT = flags.DEFINE_string("out", None, "Where the corpus goes.")
_UTTERANCES = flags.DEFINE_integer("utterances", 30, "Of each speaker.", 1)
_GRAMMAR = flags.DEFINE_enum("grammar", "digits", list(synthesis.GRAMMARS), "What is said.")
_ROOM = flags.DEFINE_bool("room", False, "Add the early reflections of each speaker's room.")
_NOISE = flags.DEFINE_bool("noise", True, "Add noise, at each speaker's own level.")
_SEED = flags.DEFINE_integer("seed", 0, "Of all draws.", 0)

_MANIFEST = "manifest.json"
# Says what is being made before the manifest says what there is.
_UNFINISHED = "unfinished.json"


def main(_):
    """Makes the corpus of the flags."""
    binary.require(speakers=_SPEAKERS.value, out=_OUT.value)
    if importlib.util.find_spec("soundfile") is None:
        raise UserError("soundfile is not installed: pip install -e '.[speech]'")
    recipe = synthesis.Recipe(
        grammar=_GRAMMAR.value,
        speakers=_SPEAKERS.value,
        utterances=_UTTERANCES.value,
        room=_ROOM.value,
        seed=_SEED.value,
        noise=_NOISE.value,
    )
    speakers = synthesis.speakers(recipe)
    out = pathlib.Path(_OUT.value)
    files = _claim(out, recipe)
    missing = [
        number for number, speaker in enumerate(speakers) if not _whole(out, speaker.name, files)
    ]
    count = f"{len(speakers)} speakers, {len(speakers) * recipe.utterances} utterances"
    if files and not missing:
        print(f"The corpus is there already, and whole: {out} ({count})")
        return
    if len(missing) < len(speakers):
        print(f"{len(speakers) - len(missing)} of {len(speakers)} speakers are there already.")
    _make(out, recipe, speakers, missing)
    manifest = {
        "recipe": recipe.identity(),
        "rate": synthesis.RATE,
        "speakers": [speaker._asdict() for speaker in speakers],
        "sha256": {
            str(path.relative_to(out)): _sha256(path)
            for speaker in speakers
            for path in _files(out, speaker.name)
        },
    }
    _write_json(out / _MANIFEST, manifest)
    (out / _UNFINISHED).unlink(missing_ok=True)
    print(f"Wrote {out} ({count})")


def _claim(out: pathlib.Path, recipe: synthesis.Recipe) -> dict[str, str]:
    """Makes DIR this recipe's; the digests of its manifest, none where it is not finished.

    Raises:
      UserError: DIR cannot be written, or holds something else.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (_MANIFEST, _UNFINISHED):
            if (out / name).exists():
                said = _read_json(out / name)
                _check_recipe(out, said.get("recipe"), recipe.identity())
                return said.get("sha256", {})
        if any(out.iterdir()):
            raise UserError(f"--out={out} holds files of another kind; name a new directory")
        _write_json(out / _UNFINISHED, {"recipe": recipe.identity()})
    except OSError as error:
        raise UserError(
            f"--out={out} cannot be used ({error.strerror}): name another directory"
        ) from error
    return {}


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): name a new directory") from error
    if not isinstance(said, dict):
        raise UserError(f"{path} is damaged: name a new directory")
    return said


def _check_recipe(out: pathlib.Path, there: Any, wanted: dict[str, Any]):
    there = there if isinstance(there, dict) else {}
    for key, value in wanted.items():
        if there.get(key) != value:
            raise UserError(
                f"--out={out} has a corpus with {key} {there.get(key)!r}, not {value!r}: name "
                "another directory"
            )


def _whole(out: pathlib.Path, speaker: str, files: dict[str, str]) -> bool:
    """Whether a speaker is finished and, where the manifest knows its files, undamaged."""
    folder = out / speaker
    if not files:
        return folder.is_dir()
    mine = {
        path: digest
        for path, digest in files.items()
        if path == f"{speaker}.trans.txt" or path.startswith(f"{speaker}/")
    }
    return bool(mine) and all(
        (out / path).is_file() and _sha256(out / path) == digest for path, digest in mine.items()
    )


def _make(
    out: pathlib.Path,
    recipe: synthesis.Recipe,
    speakers: Sequence[synthesis.Speaker],
    missing: Sequence[int],
):
    """Says and writes the missing speakers, one after another."""
    said = synthesis.utterances(recipe, missing)
    console = Console(stderr=True)
    columns = (bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("utterances", total=len(missing) * recipe.utterances)
        for number in missing:
            theirs = (next(said) for _ in range(recipe.utterances))
            _write_speaker(out, speakers[number].name, theirs)
            bar.advance(task, recipe.utterances)


def _write_speaker(out: pathlib.Path, speaker: str, utterances: Iterator[synthesis.Utterance]):
    """Writes a speaker's files; the folder gets its name when they are complete."""
    import soundfile

    folder, unfinished = out / speaker, out / f".{speaker}.unfinished"
    for leftover in (folder, unfinished):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir()
    lines = []
    for number, utterance in enumerate(utterances):
        name = f"{speaker}-{number:04d}"
        soundfile.write(unfinished / f"{name}.wav", utterance.pcm, synthesis.RATE, "PCM_16")
        lines.append(f"{name} {utterance.transcript}\n")
    (out / f"{speaker}.trans.txt").write_text("".join(lines), encoding="utf-8")
    os.rename(unfinished, folder)


def _files(out: pathlib.Path, speaker: str) -> list[pathlib.Path]:
    return [out / f"{speaker}.trans.txt", *sorted((out / speaker).iterdir())]


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: pathlib.Path, contents: dict[str, Any]):
    """Writes a file that is whole whenever it has its name."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


if __name__ == "__main__":
    app.run(binary.guarded(main), flags_parser=binary.parse_flags)
