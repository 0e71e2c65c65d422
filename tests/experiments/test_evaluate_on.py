"""The binary that scores a run's model on other data."""

import json
import subprocess
import sys

import pytest

from experiments import binary
from tests.experiments import cli


def _run(workdir, *arguments):
    command = [sys.executable, "-m", "experiments.evaluate_on", f"--workdir={workdir}", *arguments]
    return subprocess.run(command, cwd=cli.ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def workdir(finished, tmp_path):
    """A directory with what the finished run left."""
    for name in ("config.json", "summary.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    (tmp_path / "checkpoints").symlink_to(finished / "checkpoints")
    return tmp_path


def test_data_of_the_run_gives_its_own_score_and_other_data_another(workdir):
    accuracy = json.loads((workdir / "summary.json").read_text())["final"]["accuracy"]
    # Who the training clients are changes no test.
    done = _run(workdir, "--data=clients=6", "--out=same")
    assert done.returncode == 0, done.stderr
    same = json.loads((workdir / "same.json").read_text())
    assert same["accuracy"] == accuracy and f"accuracy {accuracy:.4f}" in done.stdout
    assert same["dataset"]["clients"] == 6 and same["round"] == 30


def test_values_are_of_the_type_of_their_option():
    pairs = [(False, "true"), (True, "False"), (3, "4"), (0.5, "1"), ("", "commands")]
    found = [binary.value_like(default, text) for default, text in pairs]
    assert found == [True, False, 4, 1.0, "commands"]
    assert [type(value) for value in found] == [type(default) for default, _ in pairs]
    for default, text in ((False, "0"), (3, "many"), (3, "")):
        with pytest.raises(ValueError):
            binary.value_like(default, text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=grammar=digits"], "--data: the data set has no 'grammar'; use "),
        (["--data=clients=many"], "--data: clients cannot be 'many'"),
        (["--out=summary"], "--out='summary' cannot name a file"),
        (["--out=clients_test"], "--out='clients_test' cannot name a file"),
    ],
)
def test_bad_input_is_one_line(workdir, arguments, message):
    done = _run(workdir, *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (workdir / "source.json").exists()
