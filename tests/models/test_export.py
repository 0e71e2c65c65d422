"""An exported model is the same model, and says so where it is not."""

import json

import jax
import numpy as np
import pytest

from experiments.evaluate_submodels import choose, sub_model
from fedlite.errors import UserError
from fedlite.models import export
from tests import toy

OPTIONS = {"conv1": 3, "conv2": 4, "dense1": 6}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Task, sub-model, and the directory that it was written to."""
    task = toy.make_task("emnist_cnn")
    params = toy.make_params(task)
    widths = dict(task.model.widths)
    cut = sub_model(task.axes, params, choose("norm", task.axes, params, widths, 0.4, 0))
    directory = tmp_path_factory.mktemp("export") / "model"
    _save(directory, cut, {w: n for w, n in task.axes.widths(_shapes(cut)).items()})
    return task, cut, directory


def _shapes(params):
    return {path: value.shape for path, value in params.items()}


def _save(directory, params, widths, **more):
    arguments = {"name": "emnist_cnn", "num_classes": toy.CLASSES, "options": OPTIONS, **more}
    export.save(directory, params, widths=widths, **arguments)


def test_outputs_are_those_of_the_sliced_model_bit_for_bit(exported):
    task, cut, directory = exported
    model, params = export.load(directory)
    assert dict(model.widths) == {"conv1": 2, "conv2": 2, "dense1": 4}
    # As floats, which the task takes as they are: scaling inside a program may round otherwise.
    images = np.random.default_rng(0).random((5, 8, 8, 1)).astype(np.float32)
    logits = jax.jit(model.apply)({"params": params}, images)
    toy.assert_same_bits(logits, jax.jit(task.apply)(cut, images))
    # Fresh parameters of the module have the same shapes.
    toy.assert_same_bits(
        jax.tree.map(np.shape, jax.eval_shape(model.init, jax.random.key(0), images)["params"]),
        jax.tree.map(np.shape, params),
    )


def test_adapters_are_exported(tmp_path):
    from fedlite.models import adapters, build, units

    places = (("dense1", 2),)
    model = adapters.wrap(build("mlp", num_classes=4, hidden=(6, 5)), "series", places, "normal")
    flat = units.init_params(model, jax.random.key(0), toy.EXAMPLE)
    adapter = {"kind": "series", "places": [["dense1", 2]], "init": "normal"}
    more = {"name": "mlp", "options": {"hidden": [6, 5]}, "adapter": adapter}
    _save(tmp_path / "m", flat, dict(model.widths), **more)
    loaded, params = export.load(tmp_path / "m")
    assert loaded == model
    x = np.ones((2, 8, 8, 1), np.float32)
    toy.assert_same_bits(loaded.apply({"params": params}, x), units.apply(model, flat, x))


def test_what_is_there_is_not_written_over(exported):
    _, cut, directory = exported
    with pytest.raises(UserError, match="already holds"):
        _save(directory, cut, {})


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", None, "holds no model"),
        ("model.safetensors", None, "cannot be read"),
        ("config.json", b"{", "cannot be read"),
        ("model.safetensors", b"1234567890", "cannot be read"),
        ("config.json", {"shapes": {}}, "is not of its config"),
        ("config.json", {"widths": {"conv1": 2}}, "other widths"),
        ("config.json", {"model": "vgg"}, "'vgg' is unknown"),
        ("config.json", {"options": {"depth": 3}}, "no option 'depth'"),
    ],
)
def test_damaged(exported, tmp_path, file, change, words):
    for name in (export.PARAMS, export.CONFIG):
        (tmp_path / name).write_bytes((exported[2] / name).read_bytes())
    path = tmp_path / file
    if change is None:
        path.unlink()
    elif isinstance(change, bytes):
        path.write_bytes(change)
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=words):
        export.load(tmp_path)
