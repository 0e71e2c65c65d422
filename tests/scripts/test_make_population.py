"""Tests of scripts/make_population.py: what it says, and that nothing half-made is left."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fedlite import data
from fedlite.data import population
from tests.program import Program

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ("--source=digits", "--examples_per_client=2", "--seed=3")
PROGRAM = Program("scripts.make_population")
make_population, run = PROGRAM.module, PROGRAM.run


def load(directory, clients):
    return data.load(
        "population",
        clients=clients,
        source="digits",
        examples_per_client=2,
        seed=3,
        data_dir=str(directory),
    )


def test_a_population_is_made_as_it_says(tmp_path, capsys, monkeypatch):
    assert run("--clients=300", f"--out={tmp_path}", *SMALL) == 0
    out = capsys.readouterr().out
    assert out.startswith("300 clients, ")
    assert out.endswith(
        f" --config.dataset.clients=300 --config.dataset.source=digits "
        f"--config.dataset.examples_per_client=2 --config.dataset.seed=3 "
        f"--config.dataset.data_dir={tmp_path}\n"
    )
    # Its options find it: it is not written again.
    monkeypatch.setattr(population, "_blocks", None)
    train = load(tmp_path, 300).splits["train"]
    assert f"300 clients, {train.num_examples} examples, " in out
    assert run("--clients=300", f"--out={tmp_path}", *SMALL) == 0


def test_an_interrupted_one_is_made_anew(tmp_path):
    """Killed while it writes: nothing looks finished, and the next start is not disturbed."""
    command = [sys.executable, "-m", "scripts.make_population", f"--out={tmp_path}", *SMALL]
    process = subprocess.Popen([*command, "--clients=50000000"], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 60
        while not list(tmp_path.glob(".population-*.tmp-new/x.npy")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        process.kill()
        process.communicate()
    assert not list(tmp_path.glob("population-*"))
    assert run("--clients=20", f"--out={tmp_path}", *SMALL) == 0
    assert load(tmp_path, 20).splits["train"].num_clients == 20


def test_the_same_files_on_every_run(tmp_path):
    for name in ("a", "b"):
        assert run("--clients=20", f"--out={tmp_path / name}", *SMALL) == 0
    one, other = (load(tmp_path / name, 20).splits["train"].arrays for name in ("a", "b"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out=x"], "--clients is needed"),
        (["--clients=5"], "--out is needed"),
        (["--clients=0", "--out=x"], "clients"),
        (["--clients=5", "--out=x", "--alpha=0"], "alpha must be"),
        (["--clients=5", "--out=x", "--source=emnist"], "emnist"),
        (["--clients=5", "--out=/proc/x"], "cannot write population"),
    ],
)
def test_bad_flags_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("error: ") and message in err[-1]
    assert not [path for path in tmp_path.rglob("*.npy")]


def test_the_directory_is_its_own(tmp_path):
    """A population beside another one, and beside foreign files."""
    (tmp_path / "notes.txt").write_text("mine")
    for clients in (20, 30):
        assert run(f"--clients={clients}", f"--out={tmp_path}", *SMALL) == 0
    assert {load(tmp_path, n).splits["train"].num_clients for n in (20, 30)} == {20, 30}
    assert (tmp_path / "notes.txt").read_text() == "mine" and os.path.isdir(tmp_path)
