"""Scores a run's model client by client, before and after each trains on for itself.

    python -m experiments.personalize --workdir=DIR [--epochs=3] [--learning_rate=0.05]

Prints mean, worst decile and quantiles of the clients' accuracies and writes them to
DIR/personalization.json. The run must have held out examples of each client
(--config.local_validation=0.2), which are those that are scored.
"""

import json
import pathlib

from absl import app, flags

from experiments import binary

_WORKDIR = binary.define_workdir()
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs of each client's own training.", lower_bound=1)
_RATE = flags.DEFINE_float("learning_rate", 0.0, "Of it; 0: that of the run.", lower_bound=0.0)


def main(_):
    """Personalises the run of the flags."""
    binary.require(workdir=_WORKDIR.value)
    from experiments.restore import restore
    from fedlite.errors import UserError
    from fedlite.federated.personalization import personalize_run
    from fedlite.federated.workdir import to_json, write_atomically

    binary.start_jax()
    run = restore(_WORKDIR.value)
    experiment, engine = run.experiment, run.engine
    if not experiment.options.validation:
        raise UserError(
            f"the run in {_WORKDIR.value} held out nothing: train with "
            "--config.local_validation=0.2 in another directory"
        )
    rate = _RATE.value or experiment.recipe.lr
    found = personalize_run(engine, run.server, run.round, _EPOCHS.value, rate)
    result = {
        "round": run.round,
        "epochs": _EPOCHS.value,
        "learning_rate": rate,
        **found.summary(),
    }
    write_atomically(pathlib.Path(_WORKDIR.value) / "personalization.json", to_json(result))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    app.run(binary.guarded(main), flags_parser=binary.parse_flags)
