"""Runs the train binary: in this process, or in one of its own."""

import contextlib
import io
import json
import logging as std_logging
import os
import pathlib
import struct
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags, logging
from absl.testing import flagsaver
from tensorboardX.proto import event_pb2

from experiments import binary, train

ROOT = pathlib.Path(__file__).parents[2]
# What initialisation compiles, and what rounds, evaluation and the measurement of costs do.
INIT, TRAINING = {"jit(<lambda>)"}, {"jit(run_rounds)", "jit(_score)", "jit(step)"}
TINY = pathlib.Path(__file__).with_name("tiny.py")


class Outcome(NamedTuple):
    """How a run ended."""

    code: int
    stdout: str
    stderr: str
    # Names of the programs that were compiled or read from the cache of compiled programs, and
    # how many were compiled that were worth keeping there.
    compiled: list[str]
    kept: int


def run(*arguments) -> Outcome:
    """The train binary's whole path, in this process."""
    argv, before = ["train", *map(str, arguments)], sys.argv
    saved, verbosity = flagsaver.save_flag_values(flags.FLAGS), logging.get_verbosity()
    out, err, compiled = io.StringIO(), io.StringIO(), []

    def listen(event, _, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(fun_name)

    kept = []

    def count(event, **_):
        if event == "/jax/compilation_cache/cache_misses":
            kept.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.monitoring.register_event_listener(count)
    code = 0
    # absl writes to the stream that was there when it was imported.
    log = std_logging.StreamHandler(err)
    std_logging.getLogger("absl").addHandler(log)
    try:
        # ml_collections looks for overrides there.
        sys.argv = argv
        flags.FLAGS.unparse_flags()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            binary.guarded(train.main)(binary.parse_flags(argv))
    except SystemExit as exit_:
        code = exit_.code
    finally:
        sys.argv = before
        flagsaver.restore_flag_values(saved, flags.FLAGS)
        logging.set_verbosity(verbosity)
        std_logging.getLogger("absl").removeHandler(log)
        jax.monitoring.unregister_event_duration_listener(listen)
        jax.monitoring.unregister_event_listener(count)
    return Outcome(code, out.getvalue(), err.getvalue(), compiled, len(kept))


def start(*arguments, program=("-m", "experiments.train"), **environment) -> subprocess.Popen:
    """The train binary in a process of its own, or another program with its arguments."""
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = 120.0) -> Outcome:
    """Waits for a process; kills it where it takes too long."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Outcome(process.returncode, out, err, [], 0)


def assert_same_run(one: pathlib.Path, other: pathlib.Path):
    """Both runs ended alike: every line of metrics, every bit of the last checkpoint."""
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    assert (one / "config.json").read_text() == (other / "config.json").read_text()
    summaries = [json.loads((path / "summary.json").read_text()) for path in (one, other)]
    for summary in summaries:
        # Times differ, and so does what is computed from them, and memory.
        for measured in ("seconds", "clients_per_second", "peak_host_memory_bytes"):
            del summary[measured]
    assert summaries[0] == summaries[1]
    arrays = [last_checkpoint(path) for path in (one, other)]
    assert arrays[0].keys() == arrays[1].keys()
    for name, array in arrays[0].items():
        assert array.dtype == arrays[1][name].dtype
        assert array.tobytes() == arrays[1][name].tobytes()


def last_checkpoint(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """The server's arrays (parameters, optimiser, method) as orbax reads them."""
    with ocp.CheckpointManager(workdir.absolute() / "checkpoints", item_names=("arrays",)) as all_:
        loaded = all_.restore(
            all_.latest_step(), args=ocp.args.Composite(arrays=ocp.args.StandardRestore())
        )
    return {name: np.asarray(value) for name, value in loaded["arrays"].items()}


def tensorboard_steps(directory: pathlib.Path) -> dict[str, list[int]]:
    """The steps of every tag that TensorBoard shows of a run's event files."""
    shown = {}
    for file in sorted(directory.iterdir()):
        data, position = file.read_bytes(), 0
        while position < len(data):
            # A record is its length, a checksum, the event and another checksum.
            (length,) = struct.unpack_from("<Q", data, position)
            event = event_pb2.Event.FromString(data[position + 12 : position + 12 + length])
            position += length + 16
            if event.session_log.status == event_pb2.SessionLog.START:
                shown = {tag: [s for s in steps if s < event.step] for tag, steps in shown.items()}
            for value in event.summary.value:
                shown.setdefault(value.tag, []).append(event.step)
    return shown
