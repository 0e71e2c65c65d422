"""Models by name: Flax (linen) modules that take their droppable widths as data.

Every model has a field `widths`, a frozen map from the name of a droppable width to its number
of units (channels, hidden units, attention heads, normalisation groups), and
`__call__(x, *, train=False)`. A sub-model is `model.clone(widths=...)`. Modules are hashable and
equal by value, so they serve as static arguments of `jax.jit`. A model with normalisation layers
says in `normalization` of which kind, for the summary; running statistics, where there are any, are
parameters (`fedlite.models.normalization`).
"""

import inspect
import numbers
from typing import Any

import flax.linen as nn

from fedlite.errors import UserError
from fedlite.models import (
    cnn,
    conformer,
    convolution,
    densenet,
    layers,
    mlp,
    recurrent,
    resnet,
    text_classifier,
    transformer,
)

_FACTORIES = {
    factory.__name__: factory
    for factory in (
        cnn.emnist_cnn,
        cnn.emnist_fedavg_cnn,
        mlp.mlp,
        resnet.resnet18_gn,
        resnet.resnet26,
        densenet.densenet,
        recurrent.char_lstm,
        recurrent.word_lstm,
        transformer.char_transformer,
        transformer.word_transformer,
        text_classifier.transformer_classifier,
        conformer.conformer,
    )
}

NAMES = tuple(_FACTORIES)


def model_options(name: str) -> dict[str, Any]:
    """The options of a model with their defaults: the keyword arguments of its factory.

    Raises:
      UserError: no model has this name.
    """
    if name not in _FACTORIES:
        raise UserError(f"model {name!r} is unknown; use one of {', '.join(NAMES)}")
    parameters = inspect.signature(_FACTORIES[name]).parameters
    return {k: p.default for k, p in parameters.items() if k != "num_classes"}


def build(name: str, *, num_classes: int, **options: Any) -> nn.Module:
    """The model of a name.

    Args:
      name: one of `NAMES`.
      num_classes: labels, or the size of the vocabulary.
      **options: of `model_options(name)`. Integers are sizes, so at least 1.

    Raises:
      UserError: the name, an option or its value is not known.
    """
    defaults = model_options(name)
    if unknown := sorted(set(options) - set(defaults)):
        raise UserError(
            f"model {name!r} has no option {unknown[0]!r}; it has {', '.join(defaults)}"
        )
    options = {k: _checked(k, value, defaults[k]) for k, value in options.items()}
    for option, choices in (("dtype", layers.DTYPES), ("convolution", convolution.IMPLEMENTATIONS)):
        if option in options:
            layers.check_choice(option, options[option], choices)
    return _FACTORIES[name](num_classes=_checked("num_classes", num_classes, 1), **options)


def _checked(option: str, value: Any, default: Any) -> Any:
    """`value` in the type of `default`."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(_checked(option, entry, default[0]) for entry in value)
    if isinstance(default, float) and isinstance(value, numbers.Real):
        return float(value)
    if isinstance(default, bool | str) and isinstance(value, type(default)):
        return value
    if type(default) is int and isinstance(value, numbers.Integral) and value is not True:
        if value < 1:
            raise UserError(f"model option {option!r} is {value}; use at least 1")
        return int(value)
    raise UserError(
        f"model option {option!r} is {value!r}; its default {default!r} shows the type it needs"
    )
