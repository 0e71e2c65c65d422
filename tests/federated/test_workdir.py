import fcntl
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlite.errors import UserError
from fedlite.federated.workdir import Workdir, finite, write_atomically

CONFIG = {"seed": 0, "method": "fedavg", "dataset": {"name": "toy", "alpha": 0.5}, "rates": [[1]]}


@pytest.fixture
def claimed(tmp_path):
    workdir = Workdir(tmp_path / "deep" / "run")
    workdir.claim(CONFIG)
    yield workdir
    workdir.release()


def test_check_writes_nothing(tmp_path):
    Workdir(tmp_path / "deep" / "run").check(CONFIG)
    assert not list(tmp_path.iterdir())


def test_claim_writes_the_config(claimed):
    assert json.loads((claimed.path / "config.json").read_text()) == CONFIG
    text = (claimed.path / "config.json").read_text()
    claimed.release()
    # The same config in another order is the same config.
    Workdir(claimed.path).claim(dict(reversed(CONFIG.items())))
    assert (claimed.path / "config.json").read_text() == text


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"dataset": {"name": "toy", "alpha": 0.6}}, "dataset.alpha was 0.5 and is 0.6"),
        ({"dataset": {"name": "toy"}}, "dataset.alpha = 0.5 is gone"),
        ({"clip": {"norm": 1.0}}, "clip = {'norm': 1.0} is new"),
        ({"dataset": 3}, "dataset was {'alpha': 0.5, 'name': 'toy'} and is 3"),
        ({"rates": [[2]]}, "rates was [[1]] and is [[2]]"),
    ],
)
def test_another_config_is_refused_by_name(claimed, changes, difference):
    claimed.release()
    for refuse in (Workdir(claimed.path).check, Workdir(claimed.path).claim):
        with pytest.raises(UserError) as error:
            refuse({**CONFIG, **changes})
        assert f"another config: {difference};" in str(error.value)
    # The refused claim let go of the directory.
    Workdir(claimed.path).claim(CONFIG)


def test_one_claims_at_a_time(claimed):
    other = Workdir(claimed.path)
    for refuse in (other.check, other.claim):
        with pytest.raises(UserError, match="is in use by another process"):
            refuse(CONFIG)
    claimed.release()
    other.check(CONFIG)
    other.claim(CONFIG)
    other.release()


def test_a_dead_process_holds_nothing(tmp_path):
    program = (
        "import os, sys; from fedlite.federated.workdir import Workdir;"
        f"w = Workdir({str(tmp_path)!r}); w.claim({CONFIG!r}); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert (tmp_path / "config.json").exists()
    Workdir(tmp_path).claim(CONFIG)


def test_a_run_that_slips_in_is_seen(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.check(CONFIG)
    other = Workdir(tmp_path)
    other.claim({**CONFIG, "seed": 1})
    other.release()
    with pytest.raises(UserError, match="seed was 1 and is 0"):
        workdir.claim(CONFIG)


def test_no_locks_on_the_file_system(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    workdir = Workdir(tmp_path)
    workdir.claim(CONFIG)
    workdir.release()
    assert (tmp_path / "config.json").exists()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    with pytest.raises(UserError, match=r"cannot be used .File exists: .*; name another directory"):
        Workdir(tmp_path / "link").claim(CONFIG)


def test_metrics_and_rewind(claimed):
    for number in (1, 2, 3):
        claimed.append(number, "train", {"loss": number / 2, "bytes": 10**12})
    claimed.append(2, "eval", {"accuracy": float("nan"), "deep": {"q": [float("inf")]}})
    lines = (claimed.path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[2]) == {"round": 3, "kind": "train", "loss": 1.5, "bytes": 10**12}
    # NaN is no JSON.
    assert json.loads(lines[3]) == {
        "round": 2,
        "kind": "eval",
        "accuracy": None,
        "deep": {"q": [None]},
    }
    claimed.rewind(2)
    assert (claimed.path / "metrics.jsonl").read_text().splitlines() == [*lines[:2], lines[3]]
    claimed.rewind(-1)
    assert claimed.metrics() == []


@pytest.mark.parametrize("torn", ['{"round": 2, "ki', "3", "[]", '{"kind": "train"}', "\xff\x00"])
def test_a_torn_line_is_left_out(claimed, torn):
    claimed.append(1, "train", {})
    with open(claimed.path / "metrics.jsonl", "a", encoding="latin-1") as file:
        file.write(torn)
    assert claimed.metrics() == [{"round": 1, "kind": "train"}]
    claimed.rewind(5)
    claimed.append(2, "train", {})
    assert [line["round"] for line in claimed.metrics()] == [1, 2]


def test_writing_is_atomic(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_atomically(file, "old")

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, "new, and longer")
    assert file.read_text() == "old"
    monkeypatch.undo()
    # What the dead one left is written over.
    write_atomically(file, "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "new")]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_finite_values_are_json(value):
    text = json.dumps(finite(value), allow_nan=False)
    if "null" not in text:
        assert json.loads(text) == value
