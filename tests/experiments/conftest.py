"""Runs the train binary: in this process, or in one of its own."""

import contextlib
import io
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest
from absl import flags, logging
from absl.testing import flagsaver

ROOT = pathlib.Path(__file__).parents[2]
TINY = pathlib.Path(__file__).with_name("tiny.py")


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch):
    """run(*arguments) -> Outcome of the train binary's whole path, in this process."""
    from experiments import binary, train

    def run_train(*arguments) -> Outcome:
        argv = ["train", *map(str, arguments)]
        # ml_collections reads the overrides there.
        monkeypatch.setattr(sys, "argv", argv)
        saved, verbosity = flagsaver.save_flag_values(flags.FLAGS), logging.get_verbosity()
        flags.FLAGS.unparse_flags()
        out, err = io.StringIO(), io.StringIO()
        code = 0
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                binary.guarded(train.main)(binary.parse_flags(argv))
        except SystemExit as exit_:
            code = exit_.code
        finally:
            flagsaver.restore_flag_values(saved, flags.FLAGS)
            logging.set_verbosity(verbosity)
        return Outcome(code, out.getvalue(), err.getvalue())

    return run_train


@pytest.fixture
def start():
    """start(*arguments, **environment) -> Popen of the train binary; killed at the end."""
    started = []

    def start_train(*arguments, program=("-m", "experiments.train"), **environment):
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start_train
    for process in started:
        process.kill()
        process.communicate()
