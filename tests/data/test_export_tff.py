"""Tests of scripts/export_tff.py; those marked `tff` run TensorFlow Federated itself.

They are skipped where its environment cannot be had (no uv, no network and nothing cached);
FEDLITE_REQUIRE_TFF=1 makes that a failure.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sqlite3
import subprocess
import sys
import types

import numpy as np
import pytest

from fedlite.data import tff, tff_preprocessing, tff_sqlite
from fedlite.data.tff_sqlite import Feature
from scripts import export_tff

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "export_tff.py"
MINUTES = 60


def error_of(capsys, *arguments):
    """The one line that the script prints about bad arguments."""
    assert export_tff.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_bad_arguments_are_one_line(capsys, tmp_path):
    assert "unknown --dataset=mnist: use module:function or one of emnist," in error_of(
        capsys, "--dataset=mnist", "--out=a.sqlite"
    )
    assert "required: --dataset" in error_of(capsys)
    assert "unrecognized arguments: --colour" in error_of(capsys, "--dataset=emnist", "--colour")
    assert "nothing to do: set --out" in error_of(capsys, "--dataset=emnist")
    nowhere = f"--out={tmp_path / 'nowhere' / 'a.sqlite'}"
    assert "in a directory that exists" in error_of(capsys, "--dataset=emnist", nowhere)
    taken = tmp_path / "taken.sqlite"
    taken.write_bytes(b"precious")
    assert "exists: choose another or add --overwrite" in error_of(
        capsys, "--dataset=emnist", f"--out={taken}"
    )
    assert taken.read_bytes() == b"precious"


def test_without_tff_the_script_says_how_to_run_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_federated", None)
    line = error_of(capsys, "--dataset=emnist_synthetic", f"--out={tmp_path / 'a.sqlite'}")
    assert "run `uv run scripts/export_tff.py ...`" in line
    assert list(tmp_path.iterdir()) == []


class ClientData:
    """Stands for TFF's class."""


TFF = types.SimpleNamespace(
    simulation=types.SimpleNamespace(datasets=types.SimpleNamespace(ClientData=ClientData))
)


def load(dataset, split=""):
    options = types.SimpleNamespace(dataset=dataset, split=split, data_dir="")
    return export_tff.load(options, TFF)


def test_a_users_function_names_the_splits(monkeypatch):
    data, other = ClientData(), ClientData()
    module = types.ModuleType("users_sets")
    module.one = lambda: data
    module.two = lambda: {"train": data, "dev": other}
    monkeypatch.setitem(sys.modules, "users_sets", module)
    assert load("users_sets:one") == {"train": data}
    assert load("users_sets:one", "validation") == {"validation": data}
    assert load("users_sets:two") == {"train": data, "dev": other}
    assert load("users_sets:two", "dev") == {"dev": other}
    with pytest.raises(export_tff.ExportError, match="no split 'test': use one of train, dev"):
        load("users_sets:two", "test")


def test_a_bad_function_is_named(monkeypatch):
    module = types.ModuleType("users_sets")
    module.number = lambda: 3
    module.mixed = lambda: {"train": "x"}
    module.broken = lambda: 1 / 0
    monkeypatch.setitem(sys.modules, "users_sets", module)
    for name, message in {
        "users_sets:missing": "cannot find users_sets:missing",
        "no_such_module:f": "cannot find no_such_module:f .No module named",
        "users_sets:number": r"must return a ClientData or a dict of them, got 3",
        "users_sets:mixed": r"must map split names to ClientData, got 'train': 'x'",
        "users_sets:broken": r"failed with ZeroDivisionError",
    }.items():
        with pytest.raises(export_tff.ExportError, match=message):
            load(name)


def _unavailable(reason):
    if os.environ.get("FEDLITE_REQUIRE_TFF") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def export():
    """Runs the script in TFF's environment: a function of its arguments and the directory."""
    beside = pathlib.Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        _unavailable("uv is not installed, so TFF's environment cannot be built")
    python = [f"--python={sys.executable}"] if sys.version_info[:2] == (3, 11) else []
    variables = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}

    def run(*command, **options):
        return subprocess.run(
            [uv, *command], env=variables, capture_output=True, text=True, check=False, **options
        )

    try:
        built = run("sync", *python, "--script", str(SCRIPT), timeout=10 * MINUTES)
    except subprocess.TimeoutExpired:
        _unavailable("TFF's environment was not built in ten minutes")
    if built.returncode:
        _unavailable(f"uv cannot build TFF's environment: {built.stderr.strip()[-500:]}")

    def export(*arguments, cwd=ROOT):
        command = ("run", *python, "--script", str(SCRIPT), *arguments)
        return run(*command, cwd=cwd, timeout=5 * MINUTES)

    return export


def read_digests(path, split, dtypes):
    """What `--digest` writes of a split, computed from this project's own reader.

    `dtypes` has TFF's type of each feature and its shape.
    """
    kinds = {"bytes": "bytes", "float32": "float"}
    features = {
        name: Feature(kinds.get(dtype, "int64"), shape) for name, (dtype, shape) in dtypes.items()
    }

    def digest(name, value):
        dtype, shape = dtypes[name]
        contents = value if dtype == "bytes" else np.asarray(value).astype(dtype).tobytes()
        header = f"{dtype} {json.dumps(list(shape))} ".encode()
        return hashlib.sha256(header + contents).hexdigest()

    return {
        client: [{name: digest(name, value) for name, value in e.items()} for e in examples]
        for client, examples in tff_sqlite.read_clients(path, split, features)
    }


EMNIST = {"label": ("int32", ()), "pixels": ("float32", (28, 28))}


@pytest.mark.tff
def test_every_example_of_synthetic_emnist_is_what_tff_reads(export, tmp_path):
    path, digests = tmp_path / "emnist_all.sqlite", tmp_path / "digests.json"
    result = export("--dataset=emnist_synthetic", f"--out={path}", f"--digest={digests}")
    assert result.returncode == 0, result.stderr
    assert sorted(tmp_path.iterdir()) == [digests, path]
    read_by_tff = json.loads(digests.read_text())
    assert set(read_by_tff) == {"all_train", "all_test", "digits_only_train", "digits_only_test"}
    for split, clients in read_by_tff.items():
        read_here = read_digests(path, split, EMNIST)
        assert list(read_here) == list(clients) == ["synthetic1", "synthetic2"]
        assert read_here == clients
        assert [len(examples) for examples in read_here.values()] == [10, 10]

    # The loader finds the file under the name that it was given.
    dataset = tff.emnist(data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    images = dataset.splits["train"].arrays["x"].astype(np.float32) / 255
    features = tff_preprocessing.emnist(62, False).features
    clients = tff_sqlite.read_clients(path, "all_train", features)
    pixels = np.stack([e["pixels"] for _, examples in clients for e in examples])
    np.testing.assert_allclose(images[..., 0], pixels, atol=0.5 / 255 + 1e-6)
    assert dataset.splits["train"].arrays["y"].tolist() == [*range(10)] * 2


USERS_MODULE = """
import collections
import numpy as np
import tensorflow_federated as tff

def splits():
    sets = tff.simulation.datasets
    names = ["emnist", "cifar100", "shakespeare", "stackoverflow"]
    clients = {
        client: collections.OrderedDict(
            text=[f"{client} é 漢".encode(), b"", b"\\xff\\x00"],
            number=np.array([[1.5, -2], [3, 4], [5, np.inf]], np.float32),
            big=np.array([-(2**63), 2**63 - 1, 0]),
        )
        for client in ["z", "Ünïcødé 漢字", "", "a b"]
    }
    return {name: getattr(sets, name).get_synthetic() for name in names} | {
        "odd split": sets.TestClientData(clients)
    }
"""
OTHERS = {
    "emnist": EMNIST,
    "cifar100": {
        "coarse_label": ("int64", ()),
        "image": ("uint8", (32, 32, 3)),
        "label": ("int64", ()),
    },
    "shakespeare": {"snippets": ("bytes", ())},
    "stackoverflow": {
        **dict.fromkeys(("creation_date", "tags", "title", "tokens", "type"), ("bytes", ())),
        "score": ("int64", ()),
    },
    "odd split": {"text": ("bytes", ()), "number": ("float32", (2,)), "big": ("int64", ())},
}


@pytest.mark.tff
def test_every_kind_of_example_is_what_tff_reads(export, tmp_path):
    (tmp_path / "users_sets.py").write_text(USERS_MODULE, encoding="utf-8")
    result = export(
        "--dataset=users_sets:splits", "--out=all.sqlite", "--digest=digests.json", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert "odd split: 4" in result.stdout
    read_by_tff = json.loads((tmp_path / "digests.json").read_text())
    assert set(read_by_tff) == set(OTHERS)
    for split, dtypes in OTHERS.items():
        read_here = read_digests(tmp_path / "all.sqlite", split, dtypes)
        assert list(read_here) == list(read_by_tff[split]), split
        assert read_here == read_by_tff[split], split
    with sqlite3.connect(tmp_path / "all.sqlite") as connection:
        ((indices,),) = connection.execute("SELECT count(*) FROM sqlite_master WHERE type='index'")
    connection.close()
    assert indices == 1
