"""Bad input ends in one line that names it and the remedy, code 2, nothing compiled or written."""

import errno
import importlib.util
import json
import shutil
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import config_dict

from fedlite import data
from fedlite.data.federated import FederatedDataset, Split
from fedlite.federated.workdir import Workdir
from tests.experiments.conftest import TINY

# What a training run compiles; seeding a key compiles a trifle that does not matter.
PROGRAMS = {"jit(run_rounds)", "jit(_score)", "jit(step)", "jit(<lambda>)", "pmap(run_rounds)"}


@pytest.fixture(scope="module")
def compiled():
    """Names of the programs that were compiled since the list was cleared."""
    names = []

    def listen(event, duration, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def refused(run, tmp_path, compiled):
    """refused(*fragments, args=..., workdir=...): the run is refused with such a line."""

    def check(*fragments, args=(), config=TINY, workdir=tmp_path / "run"):
        compiled.clear()
        before = _contents(workdir)
        outcome = run(f"--config={config}", *args, f"--workdir={workdir}")
        assert outcome.code == 2, outcome
        assert outcome.stdout == ""
        (line,) = outcome.stderr.splitlines()
        assert line.startswith("error: ")
        for fragment in fragments:
            assert fragment in line
        assert not PROGRAMS & set(compiled)
        assert _contents(workdir) == before

    return check


def _contents(directory):
    if not directory.is_dir():
        return directory.exists()
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


MNIST_TO_TEXT = ["--config.model.name=char_lstm"]

OVERRIDES = {
    "unknown_key": (["--config.round=3"], ["unknown config key round", "did you mean rounds?"]),
    "unknown_nested_key": (
        ["--config.server_optimizer.lr=1"],
        ["unknown config key server_optimizer.lr", "learning_rate"],
    ),
    "unknown_method_option": (
        ["--config.federated_dropout.rate=0.5"],
        ["unknown config key federated_dropout.rate", "did you mean rates?"],
    ),
    "unknown_section": (["--config.fedpt.freeze=()"], ["unknown config key fedpt"]),
    "key_below_a_value": (["--config.rounds.x=1"], ["rounds.x", "rounds is a value"]),
    "wrong_type": (["--config.rounds=many"], ["rounds must be of type int", "'many'"]),
    "fraction_for_int": (["--config.batch_size=2.5"], ["batch_size must be of type int", "'2.5'"]),
    "wrong_type_bool": (["--config.unroll=perhaps"], ["unroll must be of type bool"]),
    "wrong_type_tuple": (
        ["--config.federated_dropout.rates=((1, 2"],
        ["federated_dropout.rates must be of type tuple"],
    ),
    "empty_number": (["--config.rounds="], ["rounds must be of type int", "''"]),
    "section_by_a_scalar": (["--config.dataset=5"], ["dataset is a section", "KEY"]),
    "section_by_a_dict": (
        ["--config.dataset={'name': 'digits'}"],
        ["the config lacks dataset.clients", "configs.common.base()"],
    ),
    "zero_rounds": (["--config.rounds=0"], ["rounds = 0 is out of range", "1 to"]),
    "negative_seed": (["--config.seed=-1"], ["seed = -1 is out of range", "0 to"]),
    "negative_batch": (["--config.batch_size=-20"], ["batch_size = -20", "1 to"]),
    "no_learning_rate": (
        ["--config.client_optimizer.learning_rate=0"],
        ["client_optimizer.learning_rate must be above 0"],
    ),
    "nan": (
        ["--config.client_optimizer.learning_rate=nan"],
        ["client_optimizer.learning_rate = nan is no finite number", "default is 0.1"],
    ),
    "inf": (
        ["--config.server_optimizer.learning_rate=inf"],
        ["server_optimizer.learning_rate = inf is no finite number"],
    ),
    "momentum_of_one": (
        ["--config.client_optimizer.momentum=1.0"],
        ["client_optimizer.momentum = 1.0 is out of range"],
    ),
    "empty_method": (["--config.method="], ["config.method", "unknown method ''"]),
    "unknown_method": (["--config.method=fedavgg"], ["config.method", "'fedavgg'", "fedavg"]),
    "method_twice": (["--config.method=clip+clip"], ["config.method", "names a method twice"]),
    "option_of_another_method": (
        ["--config.method=quantize", "--config.partial_training.freeze=()", "--config.clip.norm=3"],
        ["clip.norm is set", "does not run clip", "quantize+clip"],
    ),
    "unknown_dataset": (
        ["--config.dataset.name=digit"],
        ["dataset.name = 'digit' is unknown", "did you mean digits?"],
    ),
    "unknown_model": (
        ["--config.model.name=resnet"],
        ["model.name = 'resnet' is unknown", "did you mean resnet18_gn?"],
    ),
    "unknown_server_optimizer": (
        ["--config.server_optimizer.name=adamw"],
        ["server_optimizer.name must be one of", "'adamw'"],
    ),
    "unknown_codec": (["--config.quantize.up=int8"], ["quantize", "unknown codec 'int8'"]),
    "too_many_bits": (["--config.quantize.up=uniform32"], ["quantize", "2 to 16 bits"]),
    "unknown_aggregation": (
        ["--config.federated_dropout.aggregation=mean"],
        ["federated_dropout", "aggregation must be one of count, zero"],
    ),
    "unknown_partition": (
        ["--config.dataset.partition=random"],
        ["config.dataset", "unknown partition 'random'", "iid"],
    ),
    "unknown_weighting": (
        ["--config.client_weighting=size"],
        ["client_weighting must be examples or uniform"],
    ),
    "rate_of_one": (
        ["--config.federated_dropout.rates=(('.*', 1.0),)"],
        ["federated_dropout.rates", "1.0", "below 1"],
    ),
    "negative_rate": (
        ["--config.federated_dropout.rates=(('.*', -0.1),)"],
        ["federated_dropout.rates", "-0.1", "at least 0"],
    ),
    "pattern_of_nothing": (
        ["--config.partial_training.freeze=(('conv.*', True),)"],
        ["partial_training.freeze", "'conv.*'", "dense1/kernel"],
    ),
    "pattern_is_no_regex": (
        ["--config.partial_training.freeze=(('dense(', True),)"],
        ["partial_training.freeze", "'dense('", "not a regular expression"],
    ),
    "rules_are_no_pairs": (
        ["--config.partial_training.freeze=('dense1/.*',)"],
        ["partial_training.freeze", "pairs (pattern, bool)"],
    ),
    "freeze_everything": (
        ["--config.partial_training.freeze=(('.*', True),)"],
        ["partial_training.freeze leaves nothing to train"],
    ),
    "more_clients_than_there_are": (
        ["--config.clients_per_round=13"],
        ["clients_per_round = 13", "12 clients"],
    ),
    "no_clients": (["--config.dataset.clients=0"], ["config.dataset", "clients"]),
    "alpha_of_zero": (["--config.dataset.alpha=0"], ["config.dataset", "alpha"]),
    "crop_too_large": (["--config.task.crop=9"], ["task.crop = 9", "(8, 8)"]),
    "no_hidden_layers": (["--config.model.hidden=()"], ["config.model", "'hidden' is empty"]),
    "zero_width": (["--config.model.hidden=(0, 3)"], ["config.model", "'hidden'", "at least 1"]),
    "more_devices_than_there_are": (
        ["--config.devices=99"],
        ["devices = 99", "xla_force_host_platform_device_count"],
    ),
    "unexpected_argument": (["fast"], ["unexpected argument 'fast'", "--help"]),
    "unknown_flag": (["--rounds=3"], ["'rounds'"]),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_override(case, refused, capsys):
    args, fragments = OVERRIDES[case]
    refused(*fragments, args=args)
