"""The binary that personalises a run."""

import json
import subprocess
import sys

import pytest

from tests.experiments import cli


def _personalize(*arguments):
    command = [sys.executable, "-m", "experiments.personalize", *map(str, arguments)]
    return subprocess.run(command, cwd=cli.ROOT, capture_output=True, text=True, check=False)


def test_a_run_is_personalised_from_its_directory(tmp_path):
    options = (
        "--config.rounds=2",
        "--config.local_validation=0.3",
        "--config.personalization.epochs=2",
    )
    assert cli.run(f"--config={cli.TINY}", f"--workdir={tmp_path}", *options).code == 0
    done = _personalize(f"--workdir={tmp_path}", "--epochs=2")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "personalization.json").read_text())
    assert json.loads(done.stdout) == result
    assert (result["round"], result["epochs"], result["clients"]) == (2, 2, 12)
    for when in ("before", "after"):
        assert 0 <= result[when]["worst_decile"] <= result[when]["mean"] <= 1
    assert result["before"] != result["after"]
    # The run itself did the same at its end.
    summary = json.loads((tmp_path / "summary.json").read_text())["personalization"]
    assert summary == {key: result[key] for key in ("clients", "before", "after")}


@pytest.mark.parametrize(
    ("config", "words"),
    [(None, "config.json is missing"), ("{", "is damaged"), ('{"a": 1}', "is damaged")],
)
def test_no_run(tmp_path, config, words):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    done = _personalize(f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") == 1
