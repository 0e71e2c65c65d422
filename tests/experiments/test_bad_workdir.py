"""A work directory that cannot be used is refused in one line and left as it is."""

import fcntl
import json
import os
import shutil

import pytest

from fedlite import data
from tests.experiments import cli


def _contents(directory):
    if not os.path.isdir(directory):
        return os.path.exists(directory)
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


def _refused(workdir, *fragments, args=()):
    before = _contents(workdir)
    outcome = cli.run(f"--config={cli.TINY}", *args, f"--workdir={workdir}")
    assert outcome.code == 2, outcome
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: ")
    for fragment in fragments:
        assert fragment in line
    assert not cli.TRAINING & set(outcome.compiled)
    assert _contents(workdir) == before


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_is_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("text")
    _refused(file, f"--workdir={file} is a file", "name a directory")
    _refused(file / "run", f"{file} cannot be written", "name another directory")


def test_is_remote():
    _refused("gs://bucket/run", "--workdir=gs://bucket/run is no local directory")


def test_name_is_too_long(tmp_path):
    _refused(tmp_path / ("x" * 300), "File name too long", "name another directory")


def test_is_not_writable(tmp_path, monkeypatch):
    # Permissions do not bind root, so they are not set but told.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    _refused(tmp_path / "run", f"{tmp_path} cannot be written", "name another directory")


def test_holds_another_config(workdir):
    _refused(workdir, "seed was 0 and is 1", "use another --workdir", args=["--config.seed=1"])
    _refused(
        workdir,
        "quantize.up was 'uniform8' and is 'uniform4'",
        args=["--config.quantize.up=uniform4"],
    )


@pytest.mark.parametrize("text", ["", "{'single': 'quotes'}", "[1]", '{"cut": '])
def test_config_is_no_json(workdir, text):
    (workdir / "config.json").write_text(text)
    _refused(workdir, "config.json is no JSON object", "restore it, or use another --workdir")


def test_config_is_missing(workdir):
    (workdir / "config.json").unlink()
    _refused(workdir, "has a run but no config.json", "use another --workdir")


def test_files_of_another_kind(workdir):
    (workdir / "summary.json").unlink()
    (workdir / "summary.json").mkdir()
    _refused(workdir, "summary.json is not a file")
    shutil.rmtree(workdir / "summary.json")
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").write_text("")
    _refused(workdir, "checkpoints is not a directory")


def test_is_in_use(workdir):
    with open(workdir / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _refused(workdir, "is in use by another process", "use another --workdir")


def test_checkpoints_of_another_run(workdir):
    config = json.loads((workdir / "config.json").read_text())
    config["server_optimizer"]["name"] = "momentum"
    (workdir / "config.json").write_text(json.dumps(config))
    _refused(
        workdir,
        "the checkpoint of round 30 is of another model or method",
        ".opt_state[0].count int32[]",
        ".opt_state[0].trace['dense1/kernel'] float32[8, 8, 1, 16]",
        "use another --workdir",
        args=["--config.server_optimizer.name=momentum"],
    )


def test_no_checkpoint_can_be_read(workdir):
    for file in (workdir / "checkpoints").rglob("*"):
        if file.is_file() and file.name != "commit_success.txt":
            os.truncate(file, file.stat().st_size // 2)
    _refused(workdir, "none of the 3 checkpoints can be read", "use another --workdir")


def test_data_changed(workdir, monkeypatch):
    load = data.load

    def changed(name, **options):
        dataset = load(name, **options)
        dataset.splits["train"].arrays["y"][7] += 1
        return dataset

    monkeypatch.setattr(data, "load", changed)
    _refused(workdir, "the data of 'digits' changed", "use another --workdir")


def test_newest_checkpoint_cannot_be_read(workdir, finished):
    for file in (workdir / "checkpoints" / "30").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    (workdir / "summary.json").unlink()
    outcome = cli.run(f"--config={cli.TINY}", f"--workdir={workdir}")
    assert outcome.code == 0
    assert "The checkpoint of round 30 cannot be read" in outcome.stderr
    assert "resuming from that of round 28" in outcome.stderr
    # A resumed run is the same program, so it is not compiled again.
    assert "jit(run_rounds)" in outcome.compiled and outcome.kept == 0
    cli.assert_same_run(workdir, finished)
