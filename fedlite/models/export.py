"""A trained (sub-)model as files of its own: safetensors and a JSON config, without a server.

`load` needs neither the run nor its data, and returns an ordinary, smaller Flax model:

    model, params = export.load("DIR")
    logits = model.apply({"params": params}, images)

Parameters are named by their path ("conv1/kernel") in DIR/model.safetensors; DIR/config.json tells
the model's name, options, classes, widths and adapters, and whatever else the writer adds.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from flax.traverse_util import unflatten_dict

from fedlite import models
from fedlite.errors import UserError
from fedlite.models import adapters

PARAMS, CONFIG = "model.safetensors", "config.json"


def check_new(directory: str | os.PathLike):
    """Refuses a directory that already holds a model, or another run's config.

    Raises:
      UserError: names it.
    """
    directory = pathlib.Path(directory)
    if (directory / CONFIG).exists():
        raise UserError(f"{directory} already holds a {CONFIG}; name another directory")
    above = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{directory}: {above} cannot be written; name another directory")


def save(
    directory: str | os.PathLike,
    params: Mapping[str, Any],
    *,
    name: str,
    num_classes: int,
    options: Mapping[str, Any],
    widths: Mapping[str, int],
    adapter: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
):
    """Writes a model; `config.json` comes last, so what has one is whole.

    Args:
      directory: made if it is not there.
      params: arrays by path, of the shapes that `widths` give.
      name: of the model, one of `fedlite.models.NAMES`.
      num_classes: labels, or the size of the vocabulary.
      options: of the full model, JSON values.
      widths: units of the (sub-)model by width.
      adapter: arguments of `fedlite.models.adapters.wrap`.
      facts: JSON values to keep beside: input, accuracy.

    Raises:
      UserError: the directory already holds a model, or cannot be made.
    """
    import safetensors.numpy

    directory = pathlib.Path(directory)
    check_new(directory)
    arrays = {path: np.ascontiguousarray(value) for path, value in sorted(params.items())}
    config = {
        **(facts or {}),
        "model": name,
        "num_classes": num_classes,
        "options": dict(options),
        "widths": dict(widths),
        "adapters": dict(adapter or {}),
        "shapes": {path: list(value.shape) for path, value in arrays.items()},
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / PARAMS, safetensors.numpy.save(arrays))
        _write(directory / CONFIG, json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{directory} cannot be written ({error}); name another") from error


def load(directory: str | os.PathLike) -> tuple[nn.Module, dict[str, Any]]:
    """The model that `save` wrote.

    Args:
      directory: that holds it.

    Returns:
      A linen module of the model's own widths, and its parameters as `module.apply` takes them:
      nested dicts of arrays, to be given as {"params": params}.

    Raises:
      UserError: nothing is there, or it is damaged.
    """
    import safetensors
    import safetensors.numpy

    directory = pathlib.Path(directory)
    if not (directory / CONFIG).is_file():
        raise UserError(
            f"{directory} holds no model ({CONFIG} is not there); export one by python -m "
            "experiments.evaluate_submodels --export=DIR"
        )
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        arrays = safetensors.numpy.load_file(directory / PARAMS)
        shapes = {path: tuple(shape) for path, shape in config["shapes"].items()}
        name, num_classes, options = (config[key] for key in ("model", "num_classes", "options"))
        widths, adapter = FrozenDict(config["widths"]), _tuples(config["adapters"])
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError),
        safetensors.SafetensorError,
    ) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
        raise UserError(
            f"{directory}: the model cannot be read ({reason}); take a sound copy or export anew"
        ) from error
    if {path: array.shape for path, array in arrays.items()} != shapes:
        raise UserError(f"{directory}: {PARAMS} is not of its {CONFIG}; take a sound copy of both")
    model = adapters.wrap(models.build(name, num_classes=num_classes, **options), **adapter)
    if set(widths) != set(model.widths):
        raise UserError(f"{directory}: {CONFIG} has other widths than the model {name!r}")
    params = unflatten_dict({path: jnp.asarray(a) for path, a in arrays.items()}, sep="/")
    return model.clone(widths=widths), params


def _write(path: pathlib.Path, data: bytes):
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return value
