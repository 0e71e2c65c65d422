"""Scores sub-models cut out of a run's model, without further training, and exports one of them.

    python -m experiments.evaluate_submodels --workdir=DIR [--rates=0,0.25,0.5] [--draws=5]
        [--kinds=random,nested,norm] [--widths="dense.*"] [--rescale=as_trained] [--result=NAME]
        [--export=MODEL --export_kind=norm --export_rate=0.5]

A sub-model of rate r keeps round((1 - r) n) units of each width: drawn at random (a mean over
seeds), nested (the first), or by norm (those with the greatest L2 norm of the kernel entries that
leave with the unit). Kernels that read from a cut width are multiplied by total / kept where the
run's method did so with its sub-models (federated_dropout.rescale), or as --rescale says. It prints
a table of size against the task's metric on the test set (accuracy, or the word error rate of
speech) and writes it to DIR/NAME.json, .png and .pdf, NAME being submodels by default. An exported
model loads by `fedlite.models.export.load`.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from experiments import binary

KINDS = ("random", "nested", "norm")

_WORKDIR = binary.define_workdir()
_RATES = flags.DEFINE_list("rates", ["0", "0.25", "0.5", "0.75"], "Shares of units that go.")
_KINDS = flags.DEFINE_list("kinds", list(KINDS), "How units are chosen: random, nested, norm.")
_DRAWS = flags.DEFINE_integer("draws", 5, "Draws of a random sub-model.", lower_bound=1)
_WIDTHS = binary.define_widths()
_RESCALE = flags.DEFINE_enum(
    "rescale", "as_trained", ["as_trained", "yes", "no"], "Whether sub-models are rescaled."
)
_RESULT = flags.DEFINE_string("result", "submodels", "Name of the files in the run's directory.")
_EXPORT = flags.DEFINE_string("export", "", "Directory of an exported sub-model.")
_EXPORT_KIND = flags.DEFINE_enum("export_kind", "norm", KINDS, "Of the exported sub-model.")
_EXPORT_RATE = flags.DEFINE_float("export_rate", 0.5, "Of the exported sub-model.")
_EXPORT_SEED = flags.DEFINE_integer("export_seed", 0, "Of an exported random one.", lower_bound=0)


def main(_):
    """Evaluates the run of the flags."""
    binary.require(workdir=_WORKDIR.value)
    binary.check_new_file(_RESULT.value, "--result")
    rates = parse_rates(_RATES.value)
    kinds = parse_kinds(_KINDS.value)
    parse_rates([str(_EXPORT_RATE.value)])
    from experiments.restore import restore
    from fedlite.federated.evaluation import Evaluator
    from fedlite.federated.workdir import finite, to_json, write_atomically
    from fedlite.methods.patterns import check_rules, first_match
    from fedlite.models import export

    if _EXPORT.value:
        export.check_new(_EXPORT.value)
    binary.start_jax()
    run = restore(_WORKDIR.value)
    task, engine = run.experiment.task, run.engine
    method, _ = engine.method.at(run.round, run.server.state, engine.recipe)
    params = method.deployed(run.server.state, run.server.params)
    units = task.axes.widths({path: value.shape for path, value in params.items()})
    rule = ((_WIDTHS.value, True),)
    check_rules(rule, units, "--widths", bool)
    cut = {width: n for width, n in units.items() if first_match(rule, width, False)}
    evaluator = Evaluator(task, run.experiment.dataset.splits["test"])
    metric = task.metric
    trained = any(getattr(m, "rescale", False) for m in getattr(method, "methods", (method,)))
    rescale = {"as_trained": trained, "yes": True, "no": False}[_RESCALE.value]

    def make(kind, rate, seed):
        units = choose(kind, task.axes, params, cut, rate, seed)
        return sub_model(task.axes, params, units, rescale)

    rows = evaluate(make, params, evaluator.evaluate, rates, kinds, _DRAWS.value, metric)
    directory = pathlib.Path(_WORKDIR.value)
    result = {"round": run.round, "widths": sorted(cut), "rescale": rescale, "rows": rows}
    write_atomically(directory / f"{_RESULT.value}.json", to_json(finite(result)))
    draw(rows, run.experiment.names, directory / _RESULT.value, metric)
    print(table(rows, metric))
    if _EXPORT.value:
        kind, rate, seed = _EXPORT_KIND.value, _EXPORT_RATE.value, _EXPORT_SEED.value
        chosen = make(kind, rate, seed)
        _export(
            run, chosen, {"kind": kind, "rate": rate, "seed": seed, "rescale": rescale}, evaluator
        )


def parse_rates(texts: Sequence[str]) -> list[float]:
    """Rates from their texts, in order, each once."""
    from fedlite.errors import UserError

    try:
        rates = sorted({float(text) for text in texts})
    except ValueError as error:
        raise UserError(f"--rates: {error}; give numbers, as in --rates=0,0.25,0.5") from error
    if not rates or not all(0 <= rate < 1 for rate in rates):
        raise UserError(f"a rate is at least 0 and below 1, not {', '.join(texts) or 'nothing'}")
    return rates


def parse_kinds(kinds: Sequence[str]) -> list[str]:
    """Known kinds, each once."""
    from fedlite.errors import UserError

    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--kinds knows {', '.join(KINDS)}, not {kind!r}")
    if not kinds:
        raise UserError(f"--kinds is empty: name some of {', '.join(KINDS)}")
    return list(dict.fromkeys(kinds))


def choose(
    kind: str, axes, params: Mapping[str, Any], widths: Mapping[str, int], rate: float, seed: int
) -> dict[str, Any]:
    """The kept units of each width.

    Args:
      kind: one of `KINDS`.
      axes: the model's `UnitAxes`.
      params: of the full model by path.
      widths: units by width that is cut.
      rate: share of units that go.
      seed: of "random".

    Returns:
      Sorted indices by width.
    """
    import numpy as np

    from fedlite.methods.pruning_scores import unit_scores
    from fedlite.models.sizes import kept_units

    if kind == "random":
        rng = np.random.default_rng(seed)
        order = {width: rng.permutation(n) for width, n in sorted(widths.items())}
    elif kind == "nested":
        order = {width: np.arange(n) for width, n in widths.items()}
    else:
        scores = unit_scores("weight_l2", axes, widths, params)
        order = {w: np.argsort(-np.asarray(s), kind="stable") for w, s in scores.items()}
    return {width: np.sort(order[width][: kept_units(n, rate)]) for width, n in widths.items()}


def sub_model(
    axes, params: Mapping[str, Any], units: Mapping[str, Any], rescale: bool = False
) -> dict[str, Any]:
    """The parameters at the kept units, by path.

    Args:
      axes: the model's `UnitAxes`.
      params: of the full model by path.
      units: indices by width.
      rescale: whether kernels that read from a cut width are multiplied by total / kept.
    """
    import numpy as np

    from fedlite.methods.submodel import Kept, scale, take

    totals = axes.widths({path: np.shape(value) for path, value in params.items()})
    kept = {w: Kept(own, totals[w]) for w, own in units.items() if len(own) < totals[w]}
    cut = {path: np.asarray(take(axes.of(path), value, kept)) for path, value in params.items()}
    if not rescale:
        return cut
    return {path: value * np.float32(scale(axes, path, kept)) for path, value in cut.items()}


def evaluate(make, params, score, rates, kinds, draws: int, metric) -> list[dict[str, Any]]:
    """A row a kind and rate: size and metric, with the deviation over the draws of "random".

    Args:
      make: maps kind, rate and seed to the parameters of a sub-model.
      params: of the full model by path.
      score: maps parameters to an `Evaluation`; its clients, if any, are kept draw by draw.
      rates, kinds: of the sub-models.
      draws: of "random".
      metric: the task's.
    """
    import numpy as np

    total = sum(np.size(value) for value in params.values())
    rows = []
    for rate in rates:
        for kind in kinds:
            found = []
            for seed in range(draws if kind == "random" and rate else 1):
                cut = make(kind, rate, seed)
                found.append(score(cut))
            size = sum(np.size(value) for value in cut.values())
            values = [each.metrics[metric.name] for each in found]
            row = {
                "rate": rate,
                "kind": kind,
                "params": int(size),
                "share": float(size / total),
                metric.name: float(np.mean(values)),
                f"{metric.name}_std": float(np.std(values)),
                metric.plural: values,
                "loss": float(np.mean([each.metrics["loss"] for each in found])),
            }
            clients = [each.clients for each in found]
            rows.append({**row, "clients": clients} if None not in clients else row)
    return rows


def table(rows: Sequence[Mapping[str, Any]], metric) -> str:
    """The rows as text."""
    name = metric.name
    lines = [f"{'rate':>6} {'kind':<7} {'params':>12} {'share':>6} {name:>9} {'loss':>8}"]
    for row in rows:
        spread = f" +- {row[f'{name}_std']:.4f}" if len(row[metric.plural]) > 1 else ""
        lines.append(
            f"{row['rate']:6.3g} {row['kind']:<7} {row['params']:12,} {row['share']:6.3f} "
            f"{row[name]:9.4f} {row['loss']:8.4f}{spread}"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], stem: pathlib.Path, metric):
    """Size against the metric, a line a kind: STEM.png and STEM.pdf."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        axis.errorbar(
            [row["params"] for row in own],
            [row[metric.name] for row in own],
            [row[f"{metric.name}_std"] for row in own],
            marker="o",
            capsize=3,
            label=kind,
        )
    axis.set(xlabel="parameters of the sub-model", ylabel=f"test {metric.name}")
    axis.set_title(f"Sub-models: {names['method']} on {names['dataset']}", fontsize=10)
    axis.legend(frameon=False)
    for suffix in (".png", ".pdf"):
        figure.savefig(stem.with_suffix(suffix), dpi=150)
    pyplot.close(figure)


def _export(run, params, how: Mapping[str, Any], evaluator):
    from fedlite.models import export

    experiment, config = run.experiment, run.experiment.config
    dataset = experiment.dataset
    x = dataset.splits["test"].arrays["x"]
    # What turns text or audio into inputs, and outputs into text.
    tokens = {"vocabulary": list(dataset.vocabulary), "separator": dataset.separator}
    audio = {"sample_rate": dataset.sample_rate} if dataset.sample_rate else {}
    metrics = evaluator(params)
    metric = experiment.task.metric.name
    export.save(
        _EXPORT.value,
        params,
        name=experiment.names["model"],
        num_classes=dataset.num_classes,
        options={key: value for key, value in config["model"].items() if key != "name"},
        widths=experiment.task.axes.widths({path: v.shape for path, v in params.items()}),
        adapter=config["adapters"],
        facts={
            "cut": dict(how),
            # Images of uint8 are divided by 255 first; see `inputs` of the task in `fedlite.tasks`.
            "input": {"shape": list(x.shape[1:]), "dtype": str(x.dtype), **audio, **config["task"]},
            **({"tokens": tokens} if dataset.vocabulary else {}),
            "dataset": experiment.names["dataset"],
            "method": experiment.names["method"],
            "round": run.round,
            metric: metrics[metric],
        },
    )
    print(f"exported to {_EXPORT.value}: {metric} {metrics[metric]:.4f}")


if __name__ == "__main__":
    app.run(binary.guarded(main), flags_parser=binary.parse_flags)
