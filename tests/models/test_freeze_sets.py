"""Freeze sets: the factors of papers.md 4.3, from the bytes that are sent."""

import jax
import jax.numpy as jnp
import pytest

from fedlite import methods, models
from fedlite.errors import UserError
from fedlite.methods import Keys, server_view
from fedlite.models import units
from fedlite.models.freeze_sets import FREEZE_SETS, freeze_rules
from fedlite.wire import message_bytes, once_bytes

_IMAGE = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
_COLOUR = jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32)
_CHARACTERS = jax.ShapeDtypeStruct((1, 80), jnp.int32)
_WORDS = jax.ShapeDtypeStruct((1, 20), jnp.int32)
INPUTS = {
    "emnist_cnn": (_IMAGE, 62),
    "emnist_fedavg_cnn": (_IMAGE, 62),
    "resnet18_gn": (_COLOUR, 10),
    "char_transformer": (_CHARACTERS, 90),
    "word_transformer": (_WORDS, 10004),
    "char_lstm": (_CHARACTERS, 90),
    "word_lstm": (_WORDS, 10004),
}
# (model, set): trained parameters, and how many times fewer bytes travel each way.
PAPER = {
    ("emnist_fedavg_cnn", "dense1"): (83_902, 20.1),
    ("emnist_cnn", "dense1"): (26_814, 45.0),
    ("emnist_cnn", "conv1+dense1"): (26_494, 45.5),
    ("resnet18_gn", "stages 2-4"): (343_626, 32.5),
    ("resnet18_gn", "all stages"): (196_170, 57.0),
    ("resnet18_gn", "stages 2-4 and shortcuts"): (171_594, 65.2),
    ("resnet18_gn", "all convolutions"): (14_730, 759.1),
}


def _sent(model, name):
    """Bytes of one broadcast under a freeze set, and once in a client's life."""
    example, classes = INPUTS[model]
    shapes = units.param_shapes(models.build(model, num_classes=classes), example)
    context = methods.Context(units.UnitAxes({}), shapes, 10, 2, rounds=1)
    rules = freeze_rules(model, name)
    method = methods.build("partial_training", context, freeze=rules)
    once = []

    def measure(params):
        view, _ = method.select((), (), Keys(None, None), server_view(params))
        once.append(once_bytes({**view.trained, **view.read}))
        return message_bytes({**view.trained, **view.read})

    params = {path: jnp.zeros(shape) for path, shape in shapes.items()}
    return int(jax.jit(measure)(params)), once[0]


@pytest.mark.parametrize(("model", "name"), PAPER)
def test_the_papers_factors_from_encoded_bytes(model, name):
    trained, factor = PAPER[model, name]
    whole, _ = _sent(model, "none")
    part, once = _sent(model, name)
    assert part == 4 * trained
    assert once == 8
    assert round(whole / part, 1) == factor


@pytest.mark.parametrize("model", FREEZE_SETS)
def test_sets_freeze_something_and_never_a_norm(model):
    example, classes = INPUTS[model]
    shapes = units.param_shapes(models.build(model, num_classes=classes), example)
    for name in FREEZE_SETS[model]:
        context = methods.Context(units.UnitAxes({}), shapes, 10, 2, rounds=1)
        method = methods.build("partial_training", context, freeze=freeze_rules(model, name))
        frozen = [path for path in shapes if method.frozen(path)]
        assert frozen
        assert not [path for path in frozen if "norm" in path]


def test_an_unknown_set_is_refused():
    assert freeze_rules("emnist_cnn", "none") == ()
    with pytest.raises(UserError, match="no freeze set 'dense9' of model 'emnist_cnn': use none, "):
        freeze_rules("emnist_cnn", "dense9")
