r"""How much each width matters to a run's model, and rates of federated dropout by that.

    python -m experiments.importance --workdir=DIR [--widths="block\d+/ffn\d"] [--rate=0.5]
        [--split=train]

The importance of a width is the rise of the loss on the validation examples when its layer, the
arrays that hold its units, is reset to what the run began with; falls count as 0, and the greatest
rise is 1. (Layers whose reset does little are "ambient": Zhang et al. 2019, arXiv 1902.01996.) What
a run began with is its initialisation, or its backbone.

It prints a table and, as an option of experiments.train, the rates of the preset "ambient"
(fedlite/models/rate_presets.py), which give a client the size that it has at one rate for all
widths; DIR/importance.json gets both. The width that matters most loses no unit, so a high rate may
be out of reach.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from experiments import binary

_WORKDIR = binary.define_workdir()
_WIDTHS = binary.define_widths()
_RATE = flags.DEFINE_float("rate", 0.5, "One rate for all widths that gives the client's size.")
_SPLIT = flags.DEFINE_enum("split", "validation", ["validation", "train"], "Of the examples.")


def main(_):
    """Measures the run of the flags."""
    binary.require(workdir=_WORKDIR.value)
    from fedlite.errors import UserError

    if not 0 <= _RATE.value < 1:
        raise UserError(f"--rate is at least 0 and below 1, not {_RATE.value}")
    from experiments.restore import restore
    from fedlite.federated.evaluation import Evaluator
    from fedlite.federated.workdir import to_json, write_atomically
    from fedlite.methods.patterns import check_rules, first_match
    from fedlite.models.rate_presets import rate_presets

    binary.start_jax()
    run = restore(_WORKDIR.value)
    task, splits = run.experiment.task, run.experiment.dataset.splits
    if _SPLIT.value not in splits:
        raise UserError(
            f"{run.experiment.dataset.name!r} has no validation examples in this run: take "
            "--split=train"
        )
    method, _ = run.engine.method.at(run.round, run.server.state, run.engine.recipe)
    params = method.deployed(run.server.state, run.server.params)
    initial = run.experiment.init_params()
    shapes = {path: value.shape for path, value in initial.items()}
    if {path: value.shape for path, value in params.items()} != shapes:
        raise UserError(
            f"{_WORKDIR.value} has a smaller model than it began with: take a run without pruning"
        )
    rule = ((_WIDTHS.value, True),)
    check_rules(rule, task.model.widths, "--widths", bool)
    widths = [width for width in task.model.widths if first_match(rule, width, False)]

    evaluator = Evaluator(task, splits[_SPLIT.value])
    loss = evaluator(params)["loss"]
    losses = {w: evaluator(reset(task.axes, params, initial, w))["loss"] for w in widths}
    found = importance(loss, losses)
    rates = rate_presets("ambient", task.axes, shapes, widths, _RATE.value, importance=found)
    result = {
        "round": run.round,
        "split": _SPLIT.value,
        "loss": loss,
        "losses": losses,
        "importance": found,
        "rate": _RATE.value,
        "rates": rates,
    }
    write_atomically(pathlib.Path(_WORKDIR.value) / "importance.json", to_json(result))
    print(table(loss, losses, found, rates))


def reset(
    axes, params: Mapping[str, Any], initial: Mapping[str, Any], width: str
) -> dict[str, Any]:
    """The parameters, with initial values where an array holds units of the width.

    Args:
      axes: the model's `UnitAxes`.
      params, initial: arrays by path.
      width: one of the model's.
    """
    held = {path for path in params if any(a and a.width == width for a in axes.of(path))}
    return {path: initial[path] if path in held else value for path, value in params.items()}


def importance(loss: float, losses: Mapping[str, float]) -> dict[str, float]:
    """The rises from `loss` to `losses`, divided by the greatest; falls are 0.

    Raises:
      UserError: a loss is not finite, or none rises.
    """
    import math

    from fedlite.errors import UserError

    for name, value in {"the model": loss, **losses}.items():
        if not math.isfinite(value):
            raise UserError(f"the loss of {name} is {value}: take a run that didn't diverge")
    rises = {width: max(value - loss, 0.0) for width, value in losses.items()}
    greatest = max(rises.values())
    if not greatest:
        raise UserError("the loss rises with no reset: train for more rounds, or other widths")
    return {width: rise / greatest for width, rise in rises.items()}


def table(
    loss: float,
    losses: Mapping[str, float],
    found: Mapping[str, float],
    rates: Sequence[tuple[str, float]],
) -> str:
    """The numbers as text, and the rates as an option."""
    wide = max(map(len, ("(none)", *losses)))
    lines = [f"{'reset':<{wide}} {'loss':>9} {'importance':>10} {'rate':>6}"]
    lines.append(f"{'(none)':<{wide}} {loss:9.4f}")
    for width, rate in rates:
        lines.append(f"{width:<{wide}} {losses[width]:9.4f} {found[width]:10.3f} {rate:6.3f}")
    option = ", ".join(f"({width!r}, {rate:.6g})" for width, rate in rates)
    return "\n".join([*lines, f'--config.federated_dropout.rates="({option},)"'])


if __name__ == "__main__":
    app.run(binary.guarded(main), flags_parser=binary.parse_flags)
