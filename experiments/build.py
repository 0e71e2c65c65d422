"""From a config to an `Experiment`: the edge at which configs are turned into objects.

Everything is checked here, before anything is compiled or written.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import common
from experiments import binary
from experiments.build_task import build_task
from fedlite import data, methods, models, tasks
from fedlite.data import glove
from fedlite.data.federated import FederatedDataset
from fedlite.errors import UserError
from fedlite.federated.availability import Availability
from fedlite.federated.cohort import PARTICIPATIONS
from fedlite.federated.engine import EngineOptions
from fedlite.federated.local import ClientOptimizer
from fedlite.federated.server_optimizer import server_optimizer
from fedlite.federated.training import Experiment
from fedlite.models import adapters, backbone, units

# Key: least and greatest value. Types are those of configs/common.py.
_RANGES = {
    "seed": (0, 2**31 - 1),
    "rounds": (1, 10**7),
    "clients_per_round": (1, 10**7),
    "local_epochs": (1, 10**4),
    "batch_size": (1, 10**6),
    "clients_per_chunk": (0, 10**6),
    "rounds_per_dispatch": (0, 10**4),
    "devices": (0, 10**6),
    "eval_every": (1, 10**7),
    "checkpoint_every": (1, 10**7),
    "local_validation": (0.0, 0.9),
    "personalization.epochs": (0, 10**4),
    "personalization.learning_rate": (0.0, 1e6),
    "client_optimizer.learning_rate": (0.0, 1e6),
    "client_optimizer.momentum": (0.0, 0.9999999),
    "client_optimizer.weight_decay": (0.0, 1e6),
    "client_optimizer.clip": (0.0, 1e9),
    "server_optimizer.momentum": (0.0, 0.9999999),
    "server_optimizer.b1": (0.0, 0.9999999),
    "server_optimizer.b2": (0.0, 0.9999999),
    "server_optimizer.eps": (1e-12, 1e6),
    "task.crop": (0, 10**4),
    "task.time_masks": (0, 100),
    "task.time_mask": (0, 10**6),
    "task.frequency_masks": (0, 100),
    "task.frequency_mask": (0, 10**4),
    "task.beam": (0, 10**4),
}


def build(config: ml_collections.ConfigDict) -> Experiment:
    """Checks a config and loads its data.

    Raises:
      UserError: names the key and the remedy.
    """
    given = _plain(config)
    dataset_name = _known_name(given, "dataset", data.DATASETS)
    model_name = _known_name(given, "model", models.NAMES)
    known = common.base(dataset_name, model_name, "fedavg").to_dict()
    _check_keys(given, known, "")
    _check_values(given)
    with _about("method"):
        chosen = methods.split_spec(given["method"])
    effective = _effective(given, known, chosen)

    with _about("dataset"):
        dataset = data.load(dataset_name, **_options(given["dataset"]))
    for split in ("train", "test"):
        if split not in dataset.splits or not dataset.splits[split].num_examples:
            raise UserError(
                f"data set {dataset_name!r} has no {split} examples; see the options config.dataset"
            )
    with _about("model"):
        options = _options(given["model"])
        if options.get("vocabulary_size", len(dataset.vocabulary)) < len(dataset.vocabulary):
            raise UserError(
                f"model.vocabulary_size = {options['vocabulary_size']}, but {dataset_name!r} has "
                f"{len(dataset.vocabulary)} tokens; take at least so many"
            )
        model = models.build(model_name, num_classes=dataset.num_classes, **options)
    model = adapters.wrap(model, **given["adapters"])
    task = build_task(dataset, given["task"], model)
    x = dataset.splits["train"].arrays["x"]
    example = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    example = jax.eval_shape(lambda x: task.inputs(x, None, False), example)
    with _about("model"):
        task = _with_axes(task, model, example, model_name, dataset_name)

    population = dataset.splits["train"].num_clients
    if given["clients_per_round"] > population:
        raise UserError(
            f"clients_per_round = {given['clients_per_round']}, but {dataset_name!r} has "
            f"{population} clients; take at most so many"
        )
    availability = Availability(**given["availability"])
    selected = availability.selected(given["clients_per_round"])
    if selected > population:
        raise UserError(
            f"availability.over_selection = {availability.over_selection} selects {selected} "
            f"clients, but {dataset_name!r} has {population}: lower it, or clients_per_round"
        )
    shapes = units.param_shapes(model, example)
    context = methods.Context(
        axes=task.axes,
        shapes=shapes,
        population=population,
        clients_per_round=given["clients_per_round"],
        rounds=given["rounds"],
        participation=given["participation"],
        weighting=given["client_weighting"],
        client_momentum=given["client_optimizer"]["momentum"],
        local_validation=given["local_validation"],
    )
    method = _method(chosen, given, context)
    pretrained = {
        **_backbone(given["backbone"], shapes),
        **_word_vectors(given["word_vectors"], dataset, shapes),
    }
    _check_origin(method, pretrained)
    return Experiment(
        names={"method": given["method"], "dataset": dataset_name, "model": model_name},
        config=effective,
        dataset=dataset,
        task=task,
        init_params=lambda: backbone.merge(
            units.init_params(model, jax.random.key(given["seed"]), example), pretrained
        ),
        method=method,
        recipe=methods.Recipe(
            clients=given["clients_per_round"],
            epochs=given["local_epochs"],
            lr=given["client_optimizer"]["learning_rate"],
        ),
        client_optimizer=ClientOptimizer(
            **{k: v for k, v in given["client_optimizer"].items() if k != "learning_rate"}
        ),
        server_optimizer=server_optimizer(**given["server_optimizer"]),
        options=EngineOptions(
            batch_size=given["batch_size"],
            clients_per_chunk=given["clients_per_chunk"],
            unroll=given["unroll"],
            rounds_per_dispatch=given["rounds_per_dispatch"],
            devices=given["devices"],
            uniform=given["client_weighting"] == "uniform",
            participation=given["participation"],
            validation=given["local_validation"],
            availability=availability,
        ),
        seed=given["seed"],
        rounds=given["rounds"],
        eval_every=given["eval_every"],
        checkpoint_every=given["checkpoint_every"],
        personalization=(
            given["personalization"]["epochs"],
            given["personalization"]["learning_rate"],
        ),
    )


def _plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    try:
        return config.to_dict()
    except ml_collections.config_dict.RequiredValueError as error:
        raise UserError(f"the config has a placeholder that nobody filled: {error}") from error


def _known_name(given: Mapping[str, Any], section: str, names: Iterable[str]) -> str:
    """The name of the data set or the model, checked to be one of `names`."""
    if not isinstance(given.get(section), dict) or "name" not in given[section]:
        raise UserError(f"the config needs {section}.name; begin it with configs.common.base()")
    name = given[section]["name"]
    if name not in list(names):
        hint = binary.suggestion(str(name), names)
        raise UserError(f"{section}.name = {name!r} is unknown: {hint}use {', '.join(names)}")
    return name


@contextlib.contextmanager
def _about(section: str):
    """Names the section in errors of objects that do not know where their options come from."""
    try:
        yield
    except UserError as error:
        known = str(error).startswith((f"{section}.", f"{section} ="))
        raise UserError(str(error) if known else f"config.{section}: {error}") from error


def _check_keys(given: Mapping[str, Any], known: Mapping[str, Any], path: str):
    """Every key of `given` is known and of the default's type, and none is missing."""
    for key, value in given.items():
        name = f"{path}{key}"
        if key not in known:
            raise UserError(binary.unknown_key(name, known))
        default = known[key]
        if isinstance(default, dict):
            if not isinstance(value, dict):
                raise UserError(
                    f"{name} is a section, not {value!r}: set its keys, as in {name}.KEY = VALUE"
                )
            _check_keys(value, default, f"{name}.")
        elif not _same_type(value, default):
            raise UserError(binary.wrong_type(name, value, default))
        elif not _all_finite(value):
            raise UserError(f"{name} = {value} is no finite number; its default is {default!r}")
    for key in known:
        if key not in given:
            raise UserError(
                f"the config lacks {path}{key}: begin it with configs.common.base() and replace "
                "no section as a whole"
            )


def _same_type(value: Any, default: Any) -> bool:
    """Whether a value may stand for its default: an int for a float, a list for a tuple."""
    if isinstance(default, float):
        return type(value) in (float, int)
    if isinstance(default, tuple):
        return type(value) in (tuple, list)
    return type(value) is type(default)


def _all_finite(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_all_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _check_values(given: Mapping[str, Any]):
    for name, (low, high) in _RANGES.items():
        value = given
        for key in name.split("."):
            value = value[key]
        if not low <= value <= high:
            raise UserError(f"{name} = {value} is out of range: take {low} to {high}")
    if given["client_optimizer"]["learning_rate"] == 0:
        raise UserError("client_optimizer.learning_rate must be above 0, or nothing is learned")
    if given["personalization"]["epochs"] and not given["local_validation"]:
        raise UserError(
            "personalization.epochs needs examples that the clients hold out: set "
            "local_validation, such as 0.2"
        )
    for name, choices in (
        ("client_weighting", ("examples", "uniform")),
        ("participation", PARTICIPATIONS),
    ):
        if given[name] not in choices:
            raise UserError(f"{name} must be one of {', '.join(choices)}, not {given[name]!r}")


def _effective(given: dict, known: dict, chosen: list[str]) -> dict[str, Any]:
    """The config without the sections of methods that do not run, as JSON values."""
    effective = dict(given)
    for name in methods.names():
        if name in chosen or name not in given:
            continue
        section = effective.pop(name)
        for option, value in section.items():
            if value != known[name][option]:
                raise UserError(
                    f"{name}.{option} is set, but method = {given['method']!r} does not run "
                    f"{name}; add it to the method ({given['method']}+{name}), or leave the "
                    "option alone"
                )
    try:
        return json.loads(json.dumps(effective, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the config has a value that config.json cannot hold ({error}); use numbers, strings, "
            "tuples"
        ) from error


def _method(
    chosen: list[str], given: Mapping[str, Any], context: methods.Context
) -> methods.Method:
    built = []
    for name in chosen:
        with _about(name):
            built.append(methods.build(name, context, **given.get(name, {})))
    return methods.chain(*built)


def _check_origin(method: methods.Method, given: Mapping[str, Any]):
    """Refuses parameters from a file that clients are said to make from a seed."""
    wrong = [path for path in sorted(given) if method.made_from_seed(path)]
    if wrong:
        raise UserError(
            f"partial_training.origin: no seed makes {wrong[0]}, which is frozen and comes from a "
            "file: set it to 'sent'"
        )


def _backbone(section: Mapping[str, str], shapes) -> dict[str, np.ndarray]:
    """The pretrained parameters that a config names; none without a path."""
    if not section["path"]:
        return {}
    return backbone.load(section["path"], shapes, section["digest"], section["skip"])


def _word_vectors(file: str, dataset: FederatedDataset, shapes) -> dict[str, np.ndarray]:
    """The embedding by the words of a data set; none without a file."""
    if not file:
        return {}
    tables = [path for path in shapes if path.endswith("embedding")]
    if not dataset.vocabulary or len(tables) != 1:
        raise UserError(
            "word_vectors needs a data set of words and a model with one embedding: leave it "
            f"empty for {dataset.name!r}"
        )
    rows, features = shapes[tables[0]]
    # Rows of the table without a word: names that no file has.
    spare = [f"\0{row}" for row in range(len(dataset.vocabulary), rows)]
    words = [*dataset.vocabulary, *spare][:rows]
    with _about("word_vectors"):
        return {tables[0]: glove.load_vectors(file, words, features).table}


def _options(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}


def _with_axes(task: tasks.Task, model, example, model_name: str, dataset_name: str) -> tasks.Task:
    try:
        axes = units.unit_axes(model, example)
        out = jax.eval_shape(
            lambda: units.apply(
                model,
                {k: jnp.zeros(s) for k, s in units.param_shapes(model, example).items()},
                jnp.zeros(example.shape, example.dtype),
            )
        )
    except UserError:
        raise
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"model {model_name!r} cannot read the examples of {dataset_name!r}, "
            f"{np.dtype(example.dtype)}{list(example.shape[1:])}: choose another model.name "
            f"({str(error).splitlines()[0][:150]})"
        ) from error
    expected = 3 if isinstance(task, tasks.LanguageModel | tasks.Speech) else 2
    if len(out.shape) != expected:
        raise UserError(
            f"model {model_name!r} gives logits of {len(out.shape)} axes, but the task of "
            f"{dataset_name!r} needs {expected}: choose another model.name"
        )
    return dataclasses.replace(task, axes=axes)
