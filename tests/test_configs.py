"""Every shipped config: it builds at its own size, does what it says, and trains at a tiny size.

Configs are found by their files, so a new one is tested without a line here. Data that must be
downloaded is replaced by small files in the true format.
"""

import functools
import importlib
import itertools
import json
import math
import pathlib
import re
import sqlite3

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags
from ml_collections import config_flags
from tensorflow_datasets.proto import tf_example_generated_pb2

import fedlite.data
from experiments.build import build
from fedlite.federated import training
from fedlite.federated.workdir import Workdir
from fedlite.methods import Keys, server_view
from fedlite.models import backbone
from scripts import tables
from scripts.tables.harness import plan, tiny

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "configs").glob("*/*.py")
    if path.name != "__init__.py"
)

# TFF's files: splits, and what an example holds.
TFF = {
    "emnist_all.sqlite": (
        ("all_train", "all_test", "digits_only_train", "digits_only_test"),
        lambda rng: {"label": [int(rng.integers(10))], "pixels": rng.random(784)},
    ),
    "cifar100.sqlite": (
        ("train", "test"),
        lambda rng: {
            "image": rng.integers(0, 256, 3072),
            "label": [int(rng.integers(100))],
            "coarse_label": [int(rng.integers(20))],
        },
    ),
    "shakespeare.sqlite": (("train", "test"), lambda rng: {"snippets": b"To be, or not to be."}),
    "stackoverflow.sqlite": (
        ("train", "heldout", "test"),
        lambda rng: {"tokens": b"w1 w2 w3 w9999 never heard of"},
    ),
}
# As many as a config has in a round.
CLIENTS = 100
# LibriSpeech's subsets that configs and tables name, and how many speakers each has here.
SPEAKERS = {
    **{"train-clean-100": 126, "train-clean-360": 2, "train-other-500": 4},
    **{"dev-clean": 2, "dev-other": 2, "test-clean": 2, "test-other": 2},
}


def write_librispeech(root):
    """Archives as they were extracted: an utterance of a speaker."""
    # There the extra "speech" is needed.
    from tests.data import test_librispeech

    speakers = itertools.count(1)
    for subset, count in SPEAKERS.items():
        for speaker in itertools.islice(speakers, count):
            test_librispeech.write(root, subset, str(speaker), "1", ["A"])


def write_tff(path, splits, make):
    """A file of clients with 4 examples each in TFF's format."""
    rng = np.random.default_rng(0)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(
            "CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL, "
            "serialized_example_proto BLOB NOT NULL)"
        )
        connection.execute(
            "CREATE TABLE client_metadata (client_id TEXT NOT NULL, split_name TEXT NOT NULL, "
            "num_examples INTEGER NOT NULL)"
        )
        for split in splits:
            for client in range(CLIENTS):
                rows = [(split, f"f{client:04}", serialize(make(rng))) for _ in range(4)]
                connection.executemany("INSERT INTO examples VALUES (?, ?, ?)", rows)
                connection.execute(
                    "INSERT INTO client_metadata VALUES (?, ?, 4)", (f"f{client:04}", split)
                )
    connection.close()


def serialize(features) -> bytes:
    message = tf_example_generated_pb2.Example()
    for name, value in features.items():
        feature = message.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif np.asarray(value).dtype.kind == "f":
            feature.float_list.value.extend(value)
        else:
            feature.int64_list.value.extend(int(v) for v in value)
    return message.SerializeToString()


@pytest.fixture(scope="module", autouse=True)
def data_files(tmp_path_factory):
    """The files, where configs look for them; every data set is loaded once."""
    home = tmp_path_factory.mktemp("home")
    (home / ".tff").mkdir()
    for file, (splits, make) in TFF.items():
        write_tff(home / ".tff" / file, splits, make)
    counts = "".join(f"w{i} {20_000 - i}\n" for i in range(10_000))
    (home / ".tff" / "stackoverflow.word_count").write_text(counts)
    load = fedlite.data.load

    @functools.cache
    def load_once(name, options):
        if name == "librispeech" and not (home / "LibriSpeech").exists():
            write_librispeech(home / "LibriSpeech")
        if name == "speech":
            # Speakers are as many as there are; what they say takes long to be said.
            options = {**dict(options), "utterances": min(dict(options)["utterances"], 4)}
        # At its own size a data set of TFDS has more clients than the mock data examples.
        with tfds.testing.mock_data(num_examples=2000):
            return load(name, **dict(options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("FEDLITE_CACHE", str(home / "cache"))
        patch.setattr(
            fedlite.data, "load", lambda name, **o: load_once(name, tuple(sorted(o.items())))
        )
        yield


def module(path):
    return importlib.import_module(path.removesuffix(".py").replace("/", "."))


def shrunk(path):
    config = module(path).get_config()
    config.update_from_flattened_dict(tiny.overrides(config))
    return config


def size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def params_of_client(experiment):
    """Numbers of the server's parameters and of those that a client trains."""
    params = jax.eval_shape(experiment.init_params)

    def trained(params):
        view = server_view(params)
        key = jax.random.key(0)
        state = experiment.method.init(key, view)
        mine = experiment.method.init_client(key, view)
        view, _ = experiment.method.select(state, mine, Keys(key, key), view)
        return {path: part.value for path, part in view.trained.items()}

    return size(params), size(jax.eval_shape(trained, params))


def test_configs_are_found():
    assert "configs/fedavg/mnist5k_cnn.py" in CONFIGS and len(CONFIGS) > 20


@pytest.mark.parametrize("path", CONFIGS)
def test_builds_at_its_own_size_and_tells_the_truth(path):
    experiment = build(module(path).get_config())
    text = " ".join(module(path).__doc__.split())
    assert f"python -m experiments.train --config={path} " in text.replace("\\ ", "")
    total, trained = params_of_client(experiment)
    for said, of in re.findall(r"(?:([\d,]+) of )?([\d,]+) parameters", text):
        assert int(of.replace(",", "")) == total
        assert not said or int(said.replace(",", "")) == trained
    for said in re.findall(r"(\d+\.\d+) times fewer bytes each way", text):
        assert said == f"{total / trained:.1f}"
    for said in re.findall(r"(0\.\d+) of FedAvg's bytes each way", text):
        assert said == f"{trained / total:.3f}"


@pytest.mark.parametrize("path", CONFIGS)
def test_trains_at_a_tiny_size(path, tmp_path):
    experiment = build(shrunk(path))
    summary = training.train(experiment, Workdir(tmp_path / "run"))
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rounds"] == 2 and math.isfinite(summary["final"]["loss"])
    assert 0 < summary["client"]["trained_params"] <= summary["client"]["params"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rounds = [line["round"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert rounds == [1, 2]


@pytest.mark.parametrize(
    ("name", "scale"),
    [(name, scale) for name in tables.names() for scale in tables.load(name).scales],
)
def test_rows_of_tables_build(name, scale, tmp_path):
    scale = tables.load(name).scales[scale]
    for wanted in scale.backbones:
        config = plan.load_config(wanted.config)
        config.update_from_flattened_dict({**wanted.overrides, **tiny.overrides(config)})
        # Not trained: tests/scripts/test_reproduce_table.py does that.
        params = build(config).init_params()
        backbone.save(plan.backbone_directory(tmp_path, wanted.name), params, {})
    for run in plan.plan(scale, tmp_path, seeds=1, small=True):
        values = flags.FlagValues()
        argv = ["train", *run.flags]
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        values(argv)
        assert build(values["config"].value).rounds == 2
