"""Central training of a backbone, and its binary."""

import json

import jax
import numpy as np
import pytest

from experiments import pretrain
from fedlite import models
from fedlite.errors import UserError
from fedlite.federated.evaluation import Evaluator
from fedlite.models import backbone, units
from fedlite.models.normalization import RATE
from fedlite.tasks import Classification
from tests import toy
from tests.experiments import cli


@pytest.fixture(scope="module")
def task():
    return toy.make_task(hidden=(24,))


def _train(task, lines=None, **options):
    options = pretrain.Options(**{"epochs": 30, "batch_size": 8, "learning_rate": 0.02, **options})
    report = (lines if lines is not None else []).append
    return pretrain.train(task, toy.make_params(task), toy.make_split(), options, 0, report)


def test_learns_and_is_deterministic(task):
    lines = []
    params = _train(task, lines)
    before, after = (
        Evaluator(task, toy.make_split())(values) for values in (toy.make_params(task), params)
    )
    assert after["accuracy"] > 0.75 > 0.4 > before["accuracy"]
    assert len(lines) == 30 and lines[-1].startswith("epoch 30 of 30: loss 0.")
    toy.assert_same_bits(_train(task), params)


def test_a_step_of_sgd_is_that_of_the_formula():
    """Momentum adds up, decay is outside of it, and the rate falls along a cosine."""
    options = pretrain.Options(optimizer="sgd", learning_rate=0.1, momentum=0.5, weight_decay=0.01)
    optimizer = options.make(steps=2)
    w = {"w": np.float32(2)}
    state = optimizer.init(w)
    first, state = optimizer.update({"w": np.float32(1)}, state, w)
    second, state = optimizer.update({"w": np.float32(3)}, state, w)
    np.testing.assert_allclose(first["w"], -0.1 * (1 + 0.01 * 2), rtol=1e-6)
    np.testing.assert_allclose(second["w"], -0.05 * (0.5 * 1 + 3 + 0.01 * 2), rtol=1e-6)


def test_running_statistics_follow_the_batches():
    """And not Adam, which would step by the learning rate whatever they lack."""
    model = models.build("densenet", num_classes=4, growth=2, block_layers=(1,), norm="running")
    task = Classification(model, units.unit_axes(model, toy.EXAMPLE))
    params, path = toy.make_params(task), "block1_layer1/norm1/running_var"
    split = toy.make_split()
    options = pretrain.Options(epochs=5, batch_size=split.num_examples, learning_rate=1e-9)
    moved = pretrain.train(task, params, split, options, 0, lambda line: None)
    mask = np.ones(split.num_examples)
    gradient = jax.grad(task.loss)(params, split.arrays, mask, jax.random.key(0))
    batch = params[path] - gradient[path] / RATE
    np.testing.assert_allclose(moved[path], batch + (1 - RATE) ** 5 * (1 - batch), rtol=1e-4)


def test_divergence_is_told(task):
    with pytest.raises(UserError, match="epoch 1: the loss is not finite; lower --learning_rate"):
        _train(task, optimizer="sgd", learning_rate=1e30, epochs=1)


def test_the_binary(tmp_path):
    process = cli.start(
        f"--config={cli.TINY}",
        f"--workdir={tmp_path / 'b'}",
        "--epochs=6",
        "--learning_rate=0.02",
        program=("-m", "experiments.pretrain"),
    )
    outcome = cli.finish(process)
    assert outcome.code == 0, outcome.stderr
    assert "mlp on digits: accuracy 0." in outcome.stdout and "epoch 6 of 6" in outcome.stdout
    facts = json.loads((tmp_path / "b" / "backbone.json").read_text())
    assert facts["config"]["dataset"]["name"] == "digits" and facts["training"]["epochs"] == 6
    assert 0.5 < facts["test"]["accuracy"] <= 1
    taken = backbone.load(tmp_path / "b", facts["shapes"], facts["digest"])
    assert {path: list(value.shape) for path, value in taken.items()} == facts["shapes"]
    # Again in the same place: one line, before anything is trained.
    process = cli.start(
        f"--config={cli.TINY}",
        f"--workdir={tmp_path / 'b'}",
        program=("-m", "experiments.pretrain"),
    )
    outcome = cli.finish(process)
    assert outcome.code == 2 and "already holds a backbone" in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("flag", ["--epochs=0", "--optimizer=lion", "--learning_rate=-1"])
def test_bad_flags(flag):
    with pytest.raises(pretrain.flags.IllegalFlagValueError):
        pretrain.flags.FLAGS[flag.split("=")[0].removeprefix("--")].parse(flag.split("=")[1])
