"""Two processes with two devices each, against one process with one device or four."""

import json
import os
import pathlib
import socket
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlite.errors import UserError
from fedlite.federated import devices, processes
from fedlite.federated.cohort import lay_out
from tests import toy
from tests.experiments import cli

# Beside those of all tests.
FLAGS = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={{}}"
# The rounds of each method's run, FedOBD's two stages among them.
ROUNDS = 10
METHODS = {
    "fedavg": {},
    "partial_training": {"partial_training": {"freeze": (("dense1/.*", True),)}},
    "federated_dropout": {"federated_dropout": {"rates": (("dense1", 0.5),)}},
    "quantize+fedobd": {
        "quantize": {"up": "nnadq0.001"},
        "fedobd": {"dropout_rate": 0.3, "stage1_rounds": 6, "stage2_rounds": 4},
    },
    "scaffold": {},
}

# ------------------------------------------------------------- how it was launched


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"FEDLITE_COORDINATOR": "auto"}, {}),
        (
            {
                "FEDLITE_COORDINATOR": "node1:1234",
                "FEDLITE_PROCESSES": "3",
                "FEDLITE_PROCESS": "2",
            },
            {"coordinator_address": "node1:1234", "num_processes": 3, "process_id": 2},
        ),
        (
            {
                "FEDLITE_COORDINATOR": "node1:1234",
                "FEDLITE_PROCESSES": "1",
                "FEDLITE_PROCESS": "0",
            },
            None,
        ),
        # A batch script sees the job's tasks, but is no task of a step.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, {}),
        # A task a node has all of its GPUs; a task a GPU has what JAX gives it.
        (
            {
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_STEP_NUM_NODES": "2",
                "SLURM_GPUS_ON_NODE": "4",
            },
            {"local_device_ids": [0, 1, 2, 3]},
        ),
        (
            {
                "SLURM_STEP_NUM_TASKS": "8",
                "SLURM_STEP_NUM_NODES": "2",
                "SLURM_GPUS_ON_NODE": "4",
            },
            {},
        ),
        (
            {
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_STEP_NUM_NODES": "2",
                "SLURM_GPUS_ON_NODE": "4",
                "JAX_LOCAL_DEVICE_IDS": "0",
            },
            {},
        ),
    ],
)
def test_launch(environ, expected):
    assert processes.launch(environ) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("node1:1234", None, None), "FEDLITE_PROCESSES, FEDLITE_PROCESS is not"),
        (("auto", "2", None), "FEDLITE_PROCESS is not"),
        ((None, "2", "0"), "FEDLITE_COORDINATOR is not"),
        (("node1", "2", "0"), "FEDLITE_COORDINATOR=node1 is not HOST:PORT"),
        (("node1:1234", "2", "2"), "FEDLITE_PROCESS=2 is not one of FEDLITE_PROCESSES=2"),
        (("node1:1234", "two", "0"), "FEDLITE_PROCESSES=two is no number"),
    ],
)
def test_a_launch_that_makes_no_sense(values, message):
    names = (processes.COORDINATOR, processes.PROCESSES, processes.PROCESS)
    environ = {name: value for name, value in zip(names, values) if value is not None}
    with pytest.raises(UserError, match=message):
        processes.launch(environ)


def test_one_process_agrees_with_itself():
    assert (processes.count(), processes.index()) == (1, 0)
    assert processes.agree(5, False) == (5, False)
    assert processes.broadcast(b"bytes") == b"bytes"
    with pytest.raises(UserError, match=r"^mine$"), processes.together():
        raise UserError("mine")
    assert not processes.settled()


# ------------------------------------------------------------- how clients are divided


class _Device(NamedTuple):
    id: int
    process_index: int


def test_devices_of_a_process_are_beside_each_other():
    # As JAX lists those of two hosts of a TPU slice.
    listed = [_Device(id, process) for id, process in enumerate([0, 0, 1, 1, 0, 0, 1, 1])]
    assert [device.id for device in devices.by_process(listed)] == [0, 1, 4, 5, 2, 3, 6, 7]
    with pytest.raises(UserError, match="process 1 has 3 devices and process 0 has 4: give all"):
        devices.by_process(listed[:-1])


@given(st.integers(1, 64), st.integers(1, 200))
def test_no_device_more_than_shortens_a_round(available, clients):
    def longest(count):
        return -(-clients // count)

    count = devices.enough(available, clients)
    assert longest(count) == longest(available)
    assert count == 1 or longest(count - 1) > longest(count)


def test_work_is_divided_not_the_number_of_clients():
    # Steps 9, 8 | 7, 3 | 2, 1 as lay_out has them: 18 and 12 in all.
    sizes = np.array([2, 7, 9, 1, 8, 3])
    layout = lay_out(np.arange(6), sizes, 10 * sizes, devices=2, clients_per_chunk=1, batch_size=1)
    assert layout.cohort.steps.tolist() == [[9, 7, 2], [8, 3, 1]]
    found = devices.balanced(layout)
    # 7 goes to the device that has 8, then 2 to the one that has 12.
    assert found.cohort.steps.tolist() == [[9, 3, 2], [8, 7, 1]]
    assert found.cohort.ids[..., 0].tolist() == [[2, 5, 0], [4, 1, 3]]
    assert (found.cohort.starts == 10 * found.cohort.sizes).all()
    assert found[1:] == layout[1:]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 3))
def test_dividing_keeps_every_client(sizes, count, per_chunk):
    sizes = np.array(sizes)
    ids = np.arange(len(sizes))
    layout = lay_out(ids, sizes, ids, devices=count, clients_per_chunk=per_chunk, batch_size=4)
    found = devices.balanced(layout)
    for leaf, before in zip(found.cohort, layout.cohort):
        assert leaf.shape == before.shape and leaf.dtype == before.dtype
    real = found.cohort.ids >= 0
    assert sorted(found.cohort.ids[real]) == ids.tolist()
    assert (found.cohort.sizes[real] == sizes[found.cohort.ids[real]]).all()
    assert (found.cohort.steps == np.max(-(-found.cohort.sizes // 4), axis=2)).all()
    loads = [steps.sum(axis=1) for steps in (found.cohort.steps, layout.cohort.steps)]
    assert loads[0].max() <= loads[1].max()


# ------------------------------------------------------------- helpers


def _pair(arguments, programs=(("-m", "experiments.train"),) * 2, more=((), ()), timeout=60):
    """Starts two processes of two devices; what became of them, in order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = [
        cli.start(
            *arguments,
            *more[i],
            program=programs[i],
            FEDLITE_COORDINATOR=address,
            FEDLITE_PROCESSES="2",
            FEDLITE_PROCESS=str(i),
            FEDLITE_TIMEOUT=str(timeout),
            XLA_FLAGS=FLAGS.format(2),
        )
        for i in range(2)
    ]
    return [cli.finish(process) for process in started]


# ------------------------------------------------------------- the same model


def train_all(out: str):
    """Trains with each method; process 0 keeps parameters, losses, traffic, numbers of programs."""
    task = toy.make_task(hidden=(6,))
    params = toy.make_params(task)
    compiled = []

    def listen(event, _, fun_name="", **__):
        # Of one device, of several.
        if "backend_compile" in event and fun_name in ("jit(run_rounds)", "jit(_fun)"):
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    for name, sections in METHODS.items():
        context = toy.make_context(task, rounds=ROUNDS)
        method = toy.make_method(task, name, context, **sections)
        # Streamed for one of them: each process then reads the examples of its own clients.
        more = {"resident_bytes": 0} if name == "fedavg" else {}
        engine = toy.make_engine(
            task, method, clients=5, epochs=1, devices=0, clients_per_chunk=1, **more
        )
        compiled.clear()
        server, results = toy.run(engine, params, ROUNDS)
        if processes.index() == 0:
            losses = [result.loss for result in results]
            traffic = [n for r in results for n in (*r.ids, *r.down, *r.up)]
            facts = {"losses": losses, "traffic": traffic, "programs": len(compiled)}
            np.savez(f"{out}/{name}.npz", **server.params, **facts)
        if name == "scaffold":
            states = engine.store.gather(np.arange(8))
            leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(states))}
            np.savez(f"{out}/states{processes.index()}.npz", **leaves)


def agree_on_all(out: str):
    """What the processes tell each other, from data that differs between them."""
    here = processes.index()
    found = {
        "gather": processes.gather(np.int32([here, 7])).tolist(),
        "agree": [processes.agree(3 + here, False), processes.agree(3 + here, here == 1)],
        "json": processes.broadcast_json({"from": here}),
    }
    rng = np.random.default_rng(5)
    large = rng.integers(0, 256, 2 * processes._PIECE_BYTES + 3, np.uint8)
    assert processes.broadcast(b"" if here else large.tobytes()) == large.tobytes()
    # Bits that a sum of floats would lose.
    odd = np.array([-0.0, np.nan, 1e-45, 3], np.float32)
    sent = processes.broadcast_array(np.zeros(4, np.float32) if here else odd)
    assert sent.tobytes() == odd.tobytes()
    for name, failing in (("one", [1]), ("both", [0, 1])):
        try:
            with processes.together():
                if here in failing:
                    raise UserError(f"the disk of {here}")
        except processes.AgreedError as error:
            found[name] = str(error)
    processes.check_alike(config={"seed": 1})
    try:
        processes.check_alike(config={"seed": 1}, data=[here])
    except processes.AgreedError as error:
        found["alike"] = str(error)
    pathlib.Path(f"{out}/agreed{here}.json").write_text(json.dumps(found))


_WORK = """
import sys
from fedlite.federated import processes
processes.start()
from tests.federated import test_processes
if processes.count() > 1:
    test_processes.agree_on_all(sys.argv[1])
test_processes.train_all(sys.argv[1])
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directories of one device, of four, and of two processes with two each."""
    one, four, pair = (tmp_path_factory.mktemp(name) for name in ("one", "four", "pair"))
    started = [
        cli.start(out, program=("-c", _WORK), XLA_FLAGS=FLAGS.format(count))
        for out, count in ((one, 1), (four, 4))
    ]
    outcomes = [cli.finish(process, timeout=300) for process in started]
    for outcome in outcomes + _pair([pair], [("-c", _WORK)] * 2):
        assert outcome.code == 0, outcome.stderr
    return {"one": one, "four": four, "pair": pair}


@pytest.mark.parametrize("layout", ["four", "pair"])
@pytest.mark.parametrize("name", METHODS)
def test_the_same_model_on_four_devices(trained, layout, name):
    expected, found = (dict(np.load(trained[k] / f"{name}.npz")) for k in ("one", layout))
    assert found.pop("traffic").tolist() == expected.pop("traffic").tolist()
    # One a stage: what is compiled beforehand is what runs.
    stages = 2 if "fedobd" in name else 1
    assert (found.pop("programs"), expected.pop("programs")) == (stages, stages)
    assert len(expected["losses"]) == ROUNDS
    np.testing.assert_allclose(found.pop("losses"), expected.pop("losses"), rtol=1e-5)
    toy.assert_close(found, expected)
    fresh = toy.make_params(toy.make_task(hidden=(6,)))
    assert any(np.abs(found[path] - np.asarray(fresh[path])).max() > 1e-2 for path in fresh)


def test_all_processes_know_all_clients_states(trained):
    expected = dict(np.load(trained["one"] / "states0.npz"))
    first, second = (dict(np.load(trained["pair"] / f"states{i}.npz")) for i in range(2))
    toy.assert_same_bits(first, second)
    toy.assert_close(first, expected, rtol=1e-4)
    assert any(np.any(leaf) for leaf in expected.values())


def test_processes_agree(trained):
    first, second = (
        json.loads((trained["pair"] / f"agreed{i}.json").read_text()) for i in range(2)
    )
    assert first == second
    assert first == {
        "gather": [[0, 7], [1, 7]],
        "agree": [[3, False], [3, True]],
        "json": {"from": 0},
        "one": "process 1: the disk of 1",
        "both": "the disk of 0",
        "alike": "process 1: data differs from that of process 0: give all processes the same "
        "command and the same data",
    }


# ------------------------------------------------------------- whole runs

CONFIG = """
from configs import common

def get_config():
    config = common.base(
        "digits", "mlp", "scaffold",
        dataset_options={"clients": 12}, model_options={"hidden": (8,)},
    )
    config.rounds = 16
    config.clients_per_round = 4
    config.eval_every = 8
    config.checkpoint_every = 4
    return config
"""
HOOKED = """
import os, runpy, signal, sys
from fedlite.federated.workdir import {cls}
append = {cls}.append
def hooked(self, number, kind, values):
    append(self, number, kind, values)
    if (number, kind) == ({round}, "train"):
        os.kill(os.getpid(), signal.{signal})
{cls}.append = hooked
sys.argv[0] = "train"
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""
PLAIN = ("-m", "experiments.train")


def _hooked(process: int, round_number: int, signal: str):
    """The programs of a pair of which one sends itself a signal in a round."""
    cls = ("Workdir", "UnwrittenWorkdir")[process]
    hook = ("-c", HOOKED.format(cls=cls, round=round_number, signal=signal))
    return [hook if i == process else PLAIN for i in range(2)]


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_stopped_killed_and_resumed_by_one_process(tmp_path):
    """SIGTERM to one of two, kill -9 of either; the rest is done by one process on one device."""
    config, workdir, straight = tmp_path / "config.py", tmp_path / "run", tmp_path / "straight"
    config.write_text(CONFIG)
    arguments = f"--config={config}", f"--workdir={workdir}"

    outcomes = _pair(arguments, _hooked(1, 5, "SIGTERM"))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    told = ["Stopped by a signal" in outcome.stdout for outcome in outcomes]
    assert told == [True, False]
    assert (workdir / "checkpoints" / "5").exists()
    assert not (workdir / "summary.json").exists()

    first, second = _pair(arguments, _hooked(1, 9, "SIGKILL"))
    assert (first.code, second.code) == (1, -9), first
    (line,) = [text for text in first.stderr.splitlines() if text.startswith("error: ")]
    assert "process 0 of 2: a computation over all processes failed" in line
    assert "resumes" in line
    assert max(line["round"] for line in _lines(workdir)) == 9
    assert (workdir / "checkpoints" / "8").exists()

    # Process 0 coordinates: where it is gone, JAX itself may end the others.
    first, second = _pair(arguments, _hooked(0, 10, "SIGKILL"), timeout=20)
    assert first.code == -9
    assert second.code not in (0, -9, None)
    assert "another process ended" in second.stderr or "another task died" in second.stderr

    assert cli.run(*arguments).code == 0
    assert cli.run(f"--config={config}", f"--workdir={straight}").code == 0
    for found, expected in zip(_lines(workdir), _lines(straight), strict=True):
        assert found.keys() == expected.keys()
        assert (found["round"], found["kind"]) == (expected["round"], expected["kind"])
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-4)
    toy.assert_close(cli.last_checkpoint(workdir), cli.last_checkpoint(straight))


def test_an_error_of_one_process_ends_all(tmp_path):
    arguments = f"--config={cli.TINY}", f"--workdir={tmp_path}/run", "--config.devices=0"
    outcomes = _pair(arguments, more=((), ("--config.rounds=0",)))
    assert [outcome.code for outcome in outcomes] == [2, 2]
    errors = [text for o in outcomes for text in o.stderr.splitlines() if "error" in text]
    (line,) = errors
    assert line.startswith("error: process 1: rounds = 0")
    assert line in outcomes[0].stderr
    assert not (tmp_path / "run").exists()


def test_a_process_that_waits_in_vain(tmp_path):
    outcome = cli.finish(
        cli.start(
            f"--config={cli.TINY}",
            f"--workdir={tmp_path}/run",
            FEDLITE_COORDINATOR="127.0.0.1:9",
            FEDLITE_PROCESSES="2",
            FEDLITE_PROCESS="1",
            FEDLITE_TIMEOUT="1",
        )
    )
    assert outcome.code == 1
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: the processes did not find each other within FEDLITE_TIMEOUT=1")
    assert not list(tmp_path.iterdir())
