"""What a config's parameters begin with."""

import numpy as np
import pytest

from configs import common
from experiments.build import build
from fedlite.errors import UserError
from fedlite.models import backbone
from tests.experiments import cli, tiny


def _films(**changes):
    config = common.base(
        "rotten_tomatoes",
        "transformer_classifier",
        "fedavg",
        dataset_options={"vocabulary_size": 50},
        model_options={"vocabulary_size": 60, "embed": 8, "heads": 2, "ffn": 8},
    )
    config.update(changes)
    return config


def test_an_embedding_begins_with_word_vectors(tmp_path):
    file = tmp_path / "vectors.txt"
    file.write_text("the " + " ".join(["0.5"] * 8) + "\nof " + " ".join(["-0.5"] * 8) + "\n")
    fresh = build(_films())
    words = fresh.dataset.vocabulary
    given = build(_films(word_vectors=str(file))).init_params()
    table = np.asarray(given["embed/embedding"])
    np.testing.assert_array_equal(table[words.index("the")], 0.5)
    np.testing.assert_array_equal(table[words.index("of")], -0.5)
    # Other rows, also those without a word, are drawn at the same scale.
    assert 0.3 < table[words.index("of") + 1 :].std() < 0.7
    for path, value in fresh.init_params().items():
        assert path == "embed/embedding" or np.array_equal(value, given[path])


def test_word_vectors_of_another_size_are_refused(tmp_path):
    file = tmp_path / "vectors.txt"
    file.write_text("the 1 2 3\n")
    with pytest.raises(UserError, match="needs a word and 8 numbers"):
        build(_films(word_vectors=str(file)))


def test_parameters_of_a_backbone_are_taken_and_the_rest_is_fresh(tmp_path):
    params = build(tiny.get_config()).init_params()
    trained = {path: value + 1 for path, value in params.items()}
    digest = backbone.save(tmp_path / "b", trained, {})["digest"]
    config = tiny.get_config()
    config.backbone.path = str(tmp_path / "b")
    config.backbone.digest = digest
    config.backbone.skip = "logits/.*"
    with pytest.raises(UserError, match=r"no seed makes dense1/bias, .* set it to 'sent'"):
        build(config)
    config.partial_training.origin = "sent"
    taken = build(config).init_params()
    for path, value in taken.items():
        source = params if path.startswith("logits/") else trained
        np.testing.assert_array_equal(value, source[path])
    config.backbone.digest = "0" * 64
    with pytest.raises(UserError, match="has the digest"):
        build(config)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"NPROC": "3"}, 3),
        ({"NPROC": "3", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, 2),
        ({"NPROC": "3", "JAX_NUM_CPU_DEVICES": "4"}, 4),
    ],
)
def test_a_cpu_is_as_many_devices_as_cores(environment, expected):
    code = "import jax; from experiments.binary import use_all_cores as use; use(); use()"
    show = "; print(jax.device_count()); use()"
    outcome = cli.finish(cli.start(program=("-c", code + show), **environment))
    assert (outcome.code, outcome.stdout) == (0, f"{expected}\n"), outcome.stderr
