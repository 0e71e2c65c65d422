"""A finished run, made once."""

import pytest

from tests.experiments import cli


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The directory of an undisturbed run of the tiny config; not to be changed."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    outcome = cli.run(f"--config={cli.TINY}", f"--workdir={directory}")
    assert outcome.code == 0, outcome.stderr
    # Other tests say that these were not compiled.
    assert cli.INIT | cli.TRAINING <= set(outcome.compiled), outcome.compiled
    return directory
