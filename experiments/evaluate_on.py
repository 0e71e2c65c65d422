"""Scores a run's model on the test set of other data: another domain, or other options of its own.

    python -m experiments.evaluate_on --workdir=DIR --data=grammar=digits [--out=source]

The data set is that of the run with these options. The result is printed and written to
DIR/OUT.json: the task's metric, the loss, and the number of examples. Options that draw clients
anew, such as a seed or the number of test speakers, may put some that trained the model into the
test set.
"""

import pathlib

from absl import app, flags

from experiments import binary

_WORKDIR = binary.define_workdir()
_DATA = flags.DEFINE_list("data", [], "Options of the data set, KEY=VALUE joined by commas.")
_OUT = flags.DEFINE_string("out", "source", "Name of the JSON file in the run's directory.")


def main(_):
    """Scores the run of the flags."""
    binary.require(workdir=_WORKDIR.value)
    # The scores of sub-models are another program's.
    binary.check_new_file(_OUT.value, "--out", taken=("submodels",))
    from experiments.build import build
    from experiments.restore import read_config, restore
    from fedlite.errors import UserError
    from fedlite.federated.evaluation import Evaluator
    from fedlite.federated.workdir import finite, to_json, write_atomically

    directory = pathlib.Path(_WORKDIR.value)
    config = read_config(directory / "config.json")
    for option in _DATA.value:
        key, _, value = option.partition("=")
        if key not in config.dataset or key == "name":
            known = ", ".join(sorted(set(config.dataset) - {"name"}))
            raise UserError(f"--data: the data set has no {key!r}; use {known}")
        try:
            config.dataset[key] = binary.value_like(config.dataset[key], value)
        except ValueError as error:
            raise UserError(f"--data: {key} cannot be {value!r} ({error})") from error
    binary.start_jax()
    run = restore(_WORKDIR.value)
    other = build(config)
    method, _ = run.engine.method.at(run.round, run.server.state, run.engine.recipe)
    params = method.deployed(run.server.state, run.server.params)
    if other.dataset.num_classes != run.experiment.dataset.num_classes:
        raise UserError(
            f"--data: that data has {other.dataset.num_classes} classes, the model "
            f"{run.experiment.dataset.num_classes}: choose data with the same ones"
        )
    if other.dataset.vocabulary != run.experiment.dataset.vocabulary:
        raise UserError(
            "--data: the tokens of that data are not those of the model, by number: choose data "
            "with the same vocabulary"
        )
    metrics = Evaluator(other.task, other.dataset.splits["test"])(params)
    metric = other.task.metric.name
    result = {
        "round": run.round,
        "dataset": config.dataset.to_dict(),
        **{name: metrics[name] for name in (metric, "loss", "examples")},
    }
    write_atomically(directory / f"{_OUT.value}.json", to_json(finite(result)))
    print(f"{metric} {metrics[metric]:.4f}, loss {metrics['loss']:.4f}")


if __name__ == "__main__":
    app.run(binary.guarded(main), flags_parser=binary.parse_flags)
