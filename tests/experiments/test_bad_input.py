"""Bad input ends in one line that names it and the remedy, code 2, nothing compiled or written."""

import errno
import importlib.util

import jax
import pytest
from ml_collections import ConfigDict

from fedlite.federated import training
from tests.experiments import cli, tiny


@pytest.fixture
def refused(tmp_path):
    """refused(*fragments, args=..., config=...): the run is refused with such a line."""

    def check(*fragments, args=(), config=cli.TINY):
        outcome = cli.run(f"--config={config}", *args, f"--workdir={tmp_path}/run")
        assert outcome.code == 2, outcome
        assert outcome.stdout == ""
        (line,) = outcome.stderr.splitlines()
        assert line.startswith("error: ")
        for fragment in fragments:
            assert fragment in line
        # Seeding a key compiles a trifle that does not matter.
        assert not (cli.INIT | cli.TRAINING) & set(outcome.compiled)
        assert not (tmp_path / "run").exists()

    return check


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
        ["the config lacks dataset.alpha", "configs.common.base()"],
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
        ["--config.model.name=resnet18"],
        ["model.name = 'resnet18' is unknown", "did you mean resnet18_gn?"],
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
        ["client_weighting must be one of examples, uniform"],
    ),
    "unknown_participation": (
        ["--config.participation=random"],
        ["participation must be one of uniform, poisson, cyclic"],
    ),
    "unknown_schedule": (
        ["--config.client_optimizer.schedule=linear"],
        ["client_optimizer.schedule must be one of constant, cosine"],
    ),
    "validation_of_everything": (
        ["--config.local_validation=1.0"],
        ["local_validation = 1.0 is out of range"],
    ),
    "personalization_without_validation": (
        ["--config.personalization.epochs=1"],
        ["personalization.epochs", "local_validation"],
    ),
    "unknown_adapter": (
        ["--config.adapters.kind=prefix"],
        ["adapters.kind", "'prefix'", "parallel, series, lora"],
    ),
    "adapters_nowhere": (
        ["--config.adapters.kind=parallel", "--config.adapters.places=(('conv9', 0),)"],
        ["adapters.places", "'conv9'"],
    ),
    "no_backbone": (
        ["--config.backbone.path=nowhere"],
        ["nowhere holds no backbone", "experiments.pretrain"],
    ),
    "word_vectors_of_images": (
        ["--config.word_vectors=vectors.txt"],
        ["word_vectors needs a data set of words"],
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
    "unknown_flag": (["--rounds=3"], ["unknown option --rounds", "--config.KEY"]),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_override(case, refused):
    args, fragments = OVERRIDES[case]
    refused(*fragments, args=args)


def _keys(section, path=""):
    for key, value in section.items():
        yield path + key
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{path}{key}.")


def test_no_key_takes_nonsense(tmp_path, monkeypatch):
    """Every key with every value: accepted, or refused in one line."""
    monkeypatch.setattr(training, "train", lambda *_: None)
    refusals = 0
    for key in _keys(tiny.get_config()):
        for value in ("-1", "nan", "", "x y", "(1,)"):
            outcome = cli.run(
                f"--config={cli.TINY}", f"--config.{key}={value}", f"--workdir={tmp_path}/run"
            )
            assert outcome.code in (0, 2), (key, value)
            if outcome.code == 2:
                refusals += 1
                (line,) = outcome.stderr.splitlines()
                assert line.startswith("error: ")
                assert key.partition(".")[0] in line
    assert refusals > 200
    assert not list(tmp_path.iterdir())


BASE = "from configs import common\ndef get_config():\n    config = "
DIGITS = BASE + "common.base('digits', 'mlp', 'fedavg')\n"
FILES = {
    "syntax_error": ("def get_config(:\n", [":1: invalid syntax", "mend the file"]),
    "no_get_config": ("config = {}\n", ["has no function get_config()", "mnist5k_cnn.py"]),
    "get_config_is_a_dict": ("get_config = {}\n", ["has no function get_config()"]),
    "returns_nothing": ("def get_config():\n    pass\n", ["returns NoneType", "common.base()"]),
    "returns_a_dict": ("def get_config():\n    return {}\n", ["returns dict", "common.base()"]),
    "raises": ("def get_config():\n    return 1 / 0\n", [":2: ZeroDivisionError: division by"]),
    "raises_when_loaded": (
        "import no_such_module\n",
        [":1: ModuleNotFoundError", "no_such_module"],
    ),
    "raises_an_os_error": ("open('/no/such')\n", [":1: FileNotFoundError", "mend the file"]),
    "raises_a_key_error": ("raise KeyError('key')\n", [":1: KeyError: key"]),
    "empty_config": (
        "import ml_collections as m\ndef get_config():\n    return m.ConfigDict()\n",
        ["the config needs dataset.name", "configs.common.base()"],
    ),
    "unknown_dataset": (
        BASE + "common.base('digitz', 'mlp', 'fedavg')\n",
        [":3: unknown data set 'digitz'", "mnist5k"],
    ),
    "unknown_section": (
        DIGITS + "    config.federated_dropuot.rates = ()\n",
        [":4: AttributeError", "federated_dropuot", "federated_dropout"],
    ),
    "wrong_type": (
        DIGITS + "    config.rounds = 'many'\n",
        [":4: TypeError", "rounds"],
    ),
    "unknown_key": (
        DIGITS + "    config.fedprox.moo = 1.0\n    return config\n",
        ["unknown config key fedprox.moo", "fedprox has mu"],
    ),
    "unknown_key_at_the_top": (
        DIGITS + "    config.learning_rate = 1.0\n    return config\n",
        ["unknown config key learning_rate", "client_optimizer"],
    ),
    "missing_key": (
        DIGITS + "    del config.client_optimizer.momentum\n    return config\n",
        ["the config lacks client_optimizer.momentum", "configs.common.base()"],
    ),
    "missing_section": (
        DIGITS + "    del config.dataset\n    return config\n",
        ["the config needs dataset.name"],
    ),
    "section_by_a_scalar": (
        DIGITS + "    del config.task\n    config.task = 3\n    return config\n",
        ["task is a section, not 3"],
    ),
    "value_by_none": (
        DIGITS + "    config.rounds = None\n    return config\n",
        ["rounds must be of type int", "None"],
    ),
    "not_for_json": (
        DIGITS + "    config.method = 'federated_dropout'\n"
        "    config.federated_dropout.rates = ((b'x', 0.5),)\n    return config\n",
        ["a value that config.json cannot hold", "bytes"],
    ),
    "text_model_on_images": (
        BASE + "common.base('digits', 'char_lstm', 'fedavg')\n    return config\n",
        ["config.model", "reads integer tokens", "choose a text data set or another model"],
    ),
    "image_model_on_text": (
        BASE + "common.base('shakespeare', 'emnist_cnn', 'fedavg')\n    return config\n",
        [
            "config.model: emnist_cnn reads float images",
            "choose an image data set or another model",
        ],
    ),
    "images_too_small": (
        BASE + "common.base('digits', 'emnist_cnn', 'fedavg')\n"
        "    config.task.crop = 5\n    return config\n",
        ["emnist_cnn needs images of at least 6x6, got 5x5", "choose another"],
    ),
    "crop_of_text": (
        BASE + "common.base('shakespeare', 'char_lstm', 'fedavg')\n"
        "    config.task.crop = 5\n    return config\n",
        ["task.crop is for images", "unset it"],
    ),
    "missing_tff_file": (
        BASE + "common.base('emnist', 'emnist_cnn', 'fedavg')\n"
        "    config.dataset.data_dir = '/no/such'\n    return config\n",
        ["/no/such/emnist_all.sqlite is not there", "download https://", "set data_dir"],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_config_file(case, refused, tmp_path):
    text, fragments = FILES[case]
    file = tmp_path / "config.py"
    file.write_text(text)
    refused(*fragments, config=file)


def test_config_is_elsewhere(refused, tmp_path):
    refused("is not there; see configs/", str(tmp_path / "no.py"), config=tmp_path / "no.py")
    refused("is a directory; name a file", config=tmp_path)
    refused("ValueError: invalid literal for int()", "tiny.py:", config=f"{cli.TINY}:many")


def test_flags_that_are_missing(tmp_path):
    for args, fragment in (
        ([f"--workdir={tmp_path}/run"], "--config is needed"),
        ([f"--workdir={tmp_path}/run", "--config.rounds=3"], "--config.rounds needs a --config"),
        ([f"--config={cli.TINY}"], "--workdir is needed"),
        ([f"--config={cli.TINY}", "--workdir="], "--workdir is needed"),
    ):
        outcome = cli.run(*args)
        assert outcome.code == 2
        (line,) = outcome.stderr.splitlines()
        assert fragment in line
    assert not list(tmp_path.iterdir())


def test_data_package_is_missing(refused, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    refused("config.dataset", "'sklearn' is not installed", "pip install scikit-learn")


def test_no_such_platform(tmp_path, monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda':\nno such thing")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    outcome = cli.run(f"--config={cli.TINY}", f"--workdir={tmp_path}/run")
    assert outcome.code == 2
    (line,) = outcome.stderr.splitlines()
    assert "JAX_PLATFORMS cuda (Unable to initialize backend 'cuda': no such thing)" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"),
            2,
            "error: [Errno 28] No space left on device: 'metrics.jsonl': make room and run the "
            "same command again, which resumes",
        ),
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes or begins again"),
    ],
)
def test_ends_that_are_no_fault_of_the_input(error, code, line, tmp_path, monkeypatch):
    def train(*_):
        raise error

    monkeypatch.setattr(training, "train", train)
    outcome = cli.run(f"--config={cli.TINY}", f"--workdir={tmp_path}/run")
    assert (outcome.code, outcome.stderr) == (code, line + "\n")


def test_in_a_process_of_its_own(tmp_path):
    arguments = f"--config={cli.TINY}", f"--workdir={tmp_path}/run"
    processes = {
        "error: unknown config key round: did you mean rounds?": cli.start(
            *arguments, "--config.round=3"
        ),
        "error: JAX finds no device with JAX_PLATFORMS tin": cli.start(
            *arguments, JAX_PLATFORMS="tin"
        ),
    }
    for message, process in processes.items():
        outcome = cli.finish(process)
        assert outcome.code == 2
        assert outcome.stdout == ""
        (line,) = outcome.stderr.splitlines()
        assert line.startswith(message)
    assert not list(tmp_path.iterdir())
