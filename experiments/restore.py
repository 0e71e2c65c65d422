"""A finished or stopped run, from its directory: the experiment, its engine, and the server."""

import contextlib
import json
import pathlib
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from configs import common
from experiments.build import build
from fedlite.errors import UserError
from fedlite.federated.checkpoint import Checkpoints, fingerprint
from fedlite.federated.engine import Engine
from fedlite.federated.round import Server
from fedlite.federated.training import Experiment


class Run(NamedTuple):
    """What `restore` returns; the server is on the host."""

    experiment: Experiment
    engine: Engine
    server: Server
    round: int


def restore(workdir: str) -> Run:
    """The last checkpoint of a run of `experiments.train`.

    Args:
      workdir: of the run.

    Raises:
      UserError: there is no run, or its configuration or checkpoint is damaged or outdated.
    """
    config = read_config(pathlib.Path(workdir) / "config.json")
    experiment = build(config)
    engine = experiment.engine()
    template = engine.host(engine.init(experiment.init_params()))
    directory = pathlib.Path(workdir) / "checkpoints"
    restored = None
    if directory.is_dir():
        with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
            restored = checkpoints.restore(template)
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint: train there first (experiments.train)")
    if restored.progress["data"] != fingerprint(experiment.dataset):
        raise UserError(
            f"{workdir}: the data of {experiment.dataset.name!r} changed since this run; restore it"
        )
    engine.store.load(restored.clients)
    return Run(experiment, engine, jax.tree.map(np.asarray, restored.tree), restored.round)


def read_config(path: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a run, with the defaults of the sections that did not count in it."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        config = common.base(kept["dataset"]["name"], kept["model"]["name"], kept["method"])
        for key, value in kept.items():
            config[key] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: --workdir names the directory of a run") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): train in another directory") from error
    return config
