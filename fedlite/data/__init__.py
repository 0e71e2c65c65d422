"""Federated data sets by name.

`load("mnist5k", clients=50)` returns a `FederatedDataset`. A data set is a function of
keyword-only options with defaults; the registry names it, and its module is imported when it
is asked for.
"""

import importlib
import inspect
from collections.abc import Callable

from fedlite.data.federated import FederatedDataset, Split
from fedlite.errors import UserError

DATASETS = {
    # Bundled: arrive inside packages.
    "mnist5k": "fedlite.data.images:mnist5k",
    "digits": "fedlite.data.images:digits",
    "glyphs": "fedlite.data.glyphs:glyphs",
    "digit_domains": "fedlite.data.domains:digit_domains",
    "population": "fedlite.data.population:population",
    "shakespeare": "fedlite.data.shakespeare:shakespeare",
    "rotten_tomatoes": "fedlite.data.reviews:rotten_tomatoes",
    "speech": "fedlite.data.speech:speech",
    # TensorFlow Federated's, from its SQLite files.
    "emnist": "fedlite.data.tff:emnist",
    "cifar100_tff": "fedlite.data.tff:cifar100",
    "shakespeare_tff": "fedlite.data.tff:shakespeare",
    "stackoverflow": "fedlite.data.tff:stackoverflow",
    # TensorFlow Datasets'.
    "cifar10": "fedlite.data.tfds:cifar10",
    "cifar100": "fedlite.data.tfds:cifar100",
    "fashion_mnist": "fedlite.data.tfds:fashion_mnist",
    "imdb_reviews": "fedlite.data.tfds:imdb_reviews",
    # LibriSpeech's, from its extracted archives.
    "librispeech": "fedlite.data.librispeech:librispeech",
}


def _loader(name: str) -> Callable[..., FederatedDataset]:
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}: use one of {', '.join(DATASETS)}")
    module, function = DATASETS[name].split(":")
    return getattr(importlib.import_module(module), function)


def dataset_options(name: str) -> dict[str, object]:
    """The options of a data set and their defaults.

    Raises:
      UserError: for an unknown name.
    """
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(_loader(name)).parameters.values()
    }


def load(name: str, **options) -> FederatedDataset:
    """Loads a data set.

    Args:
      name: a key of `DATASETS`.
      **options: see `dataset_options` and the data set's own function. The same options
        give the same arrays.

    Raises:
      UserError: for an unknown name or option, a value of another type than the default's,
        and whatever the data set refuses.
    """
    defaults = dataset_options(name)
    for option, value in options.items():
        if option not in defaults:
            raise UserError(
                f"data set {name!r} has no option {option!r}: use {', '.join(defaults)}"
            )
        options[option] = _checked(name, option, value, defaults[option])
    return _loader(name)(**options)


def _checked(name: str, option: str, value: object, default: object) -> object:
    """The value of an option if it is of the default's type; an int will do for a float."""
    expected = type(default)
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise UserError(
            f"option {option!r} of data set {name!r} must be of type {expected.__name__}, "
            f"got {value!r}"
        )
    return value


__all__ = ["DATASETS", "FederatedDataset", "Split", "dataset_options", "load"]
