"""The binary that measures how much widths matter."""

import ast
import json
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from configs.federated_dropout import mnist5k_cnn
from experiments import importance, restore
from fedlite.errors import UserError
from fedlite.federated.evaluation import Evaluator
from fedlite.models import sizes
from tests import toy


def _run(monkeypatch, *arguments):
    """The binary's main in this process."""
    argv = ["importance", *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", argv)
    saved = flagsaver.save_flag_values(flags.FLAGS)
    flags.FLAGS.unparse_flags()
    try:
        importance.binary.guarded(importance.main)(importance.binary.parse_flags(argv))
    finally:
        flagsaver.restore_flag_values(saved, flags.FLAGS)


@pytest.fixture
def workdir(finished, tmp_path):
    """A directory with what the finished run left."""
    (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
    (tmp_path / "checkpoints").symlink_to(finished / "checkpoints")
    return tmp_path


def test_a_layer_is_what_holds_the_units_of_its_width():
    task = toy.make_task(hidden=(6, 5))
    initial = {path: np.asarray(value) for path, value in toy.make_params(task).items()}
    params = {path: value + 1 for path, value in initial.items()}
    back = importance.reset(task.axes, params, initial, "dense2")
    layer = {"dense2/kernel", "dense2/bias", "logits/kernel"}
    assert {path for path in params if (back[path] == initial[path]).all()} == layer
    toy.assert_same_bits(
        {path: back[path] for path in back if path not in layer},
        {path: params[path] for path in params if path not in layer},
    )


def test_importance_by_hand():
    found = importance.importance(1.0, {"a": 3.0, "b": 1.5, "c": 0.5})
    assert found == {"a": 1.0, "b": 0.25, "c": 0.0}
    with pytest.raises(UserError, match="the loss rises with no reset"):
        importance.importance(1.0, {"a": 1.0, "b": 0.5})
    with pytest.raises(UserError, match="the loss of b is nan"):
        importance.importance(1.0, {"a": 2.0, "b": float("nan")})


def test_a_run_is_measured(workdir, monkeypatch, capsys):
    _run(monkeypatch, f"--workdir={workdir}", "--split=train", "--rate=0.1")
    result = json.loads((workdir / "importance.json").read_text())
    run = restore.restore(workdir)
    task, params = run.experiment.task, run.server.params
    initial = run.experiment.init_params()
    layer = ("dense2/kernel", "dense2/bias", "logits/kernel")
    own = {**params, **{path: initial[path] for path in layer}}
    loss = Evaluator(task, run.experiment.dataset.splits["train"])(own)["loss"]
    assert result["losses"]["dense2"] == pytest.approx(loss, rel=1e-5)
    assert list(result["importance"]) == ["dense1", "dense2"]
    assert max(result["importance"].values()) == 1 and min(result["losses"].values()) > 0
    # What is printed is an option of training, by which a client is as small as at one rate.
    option = capsys.readouterr().out.strip().splitlines()[-1]
    name, _, value = option.partition("=")
    rates = ast.literal_eval(value.strip('"'))
    config = mnist5k_cnn.get_config()
    config.update_from_flattened_dict({name.removeprefix("--config."): rates})
    assert dict(rates) == pytest.approx(dict(result["rates"]), abs=1e-6)
    shapes = {path: value.shape for path, value in params.items()}

    def size(rates):
        totals = task.axes.widths(shapes)
        kept = {width: sizes.kept_units(totals[width], rate) for width, rate in rates.items()}
        return sizes.parameters(task.axes, shapes, kept)

    uniform = size({"dense1": 0.1, "dense2": 0.1})
    assert uniform - 100 < size(dict(rates)) <= uniform
    values = dict(rates)
    least = min(result["importance"], key=result["importance"].get)
    assert values[least] > 0.1 and min(values.values()) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "has no validation examples in this run: take --split=train"),
        (("--split=train", "--widths=conv.*"), "--widths: the pattern 'conv.*' matches"),
        (("--split=train", "--rate=0.9"), "no sub-model has at most"),
        (("--rate=1",), "--rate is at least 0 and below 1"),
    ],
)
def test_refusals(workdir, monkeypatch, capsys, arguments, words):
    with pytest.raises(SystemExit) as exit_:
        _run(monkeypatch, f"--workdir={workdir}", *arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (workdir / "importance.json").exists()
