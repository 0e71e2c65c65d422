"""Methods by name. A method registers itself: one file, found by `fedlite.methods`."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from flax.core import FrozenDict

from fedlite.errors import UserError
from fedlite.methods.algebra import Context, Method, chain

_METHODS: dict[str, type[Method]] = {}


def register(name: str):
    """Class decorator: makes a `Method` known to configs as `name`."""

    def add(cls: type[Method]) -> type[Method]:
        if name in _METHODS:
            raise ValueError(f"two methods are called {name!r}")
        _METHODS[name] = cls
        return cls

    return add


def names() -> list[str]:
    """The names of all methods."""
    return sorted(_METHODS)


def options(name: str) -> dict[str, Any]:
    """A method's options and their defaults."""
    return {
        field.name: field.default
        for field in dataclasses.fields(_lookup(name))
        if field.default is not dataclasses.MISSING
    }


def build(name: str, context: Context, **chosen) -> Method:
    """A method from its options (others keep their default) and the experiment's context."""
    cls = _lookup(name)
    known = options(name)
    for key in chosen:
        if key not in known:
            raise UserError(f"{name} has no option {key!r}; it has {', '.join(known) or 'none'}")
    given = {
        field.name: _hashable(getattr(context, field.name))
        for field in dataclasses.fields(cls)
        if field.name not in known
    }
    return cls(**given, **{key: _hashable(value) for key, value in chosen.items()})


def build_chain(spec: str, context: Context, sections: Mapping[str, Mapping[str, Any]]) -> Method:
    """The method that a config names: "partial_training+federated_dropout", outermost first.

    Args:
      spec: names joined by "+".
      context: of the experiment.
      sections: options by a method's name.
    """
    chosen = split_spec(spec)
    return chain(*(build(name, context, **sections.get(name, {})) for name in chosen))


def split_spec(spec: str) -> list[str]:
    """The names in a chain's spec, each checked to be known and to stand there once."""
    chosen = spec.split("+")
    for name in chosen:
        _lookup(name)
    if len(set(chosen)) != len(chosen):
        raise UserError(f"method {spec!r} names a method twice")
    return chosen


def _lookup(name: str) -> type[Method]:
    if name not in _METHODS:
        raise UserError(
            f"unknown method {name!r}: use {', '.join(names())}, or several joined by '+', "
            "outermost first"
        )
    return _METHODS[name]


def _hashable(value):
    if isinstance(value, Mapping):
        return FrozenDict(value)
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    return value


def summary(name: str) -> str:
    """The first line of the module that holds a method: what it is."""
    return inspect.getmodule(_lookup(name)).__doc__.splitlines()[0]
