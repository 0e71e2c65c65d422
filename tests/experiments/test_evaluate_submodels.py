"""The binary that scores sub-models of a run and exports one."""

import json
import sys
import types

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import evaluate_submodels, restore
from fedlite import models
from fedlite.data.federated import FederatedDataset, Split
from fedlite.models import export, units
from fedlite.tasks import Evaluation, Speech
from tests import toy
from tests.experiments import cli
from tests.models import test_conformer


def _run(monkeypatch, *arguments):
    """The binary's main in this process."""
    values = flags.FLAGS
    known = {name: values[name].value for name in values}
    argv = ["evaluate_submodels", *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", argv)
    values.unparse_flags()
    try:
        evaluate_submodels.binary.guarded(evaluate_submodels.main)(
            evaluate_submodels.binary.parse_flags(argv)
        )
    finally:
        for name, value in known.items():
            values[name].value = value


@pytest.fixture(scope="module")
def task():
    return toy.make_task(hidden=(6, 5))


def test_choices(task):
    params = {path: np.array(value) for path, value in toy.make_params(task).items()}
    params["dense1/kernel"][..., 4] = 100
    params["dense2/kernel"][1] = 50
    widths = dict(task.model.widths)

    def chosen(kind, rate=0.5, seed=0):
        return evaluate_submodels.choose(kind, task.axes, params, widths, rate, seed)

    assert chosen("nested")["dense1"].tolist() == [0, 1, 2]
    assert {1, 4} <= set(chosen("norm")["dense1"].tolist())
    assert len(chosen("random")["dense2"]) == 2
    draws = {tuple(chosen("random", 0.5, seed)["dense1"]) for seed in range(9)}
    assert len(draws) > 3 and draws == {tuple(sorted(set(draw))) for draw in draws}
    cut = evaluate_submodels.sub_model(task.axes, params, chosen("nested"))
    toy.assert_same_bits(cut["dense2/kernel"], params["dense2/kernel"][:3, :2])
    whole = evaluate_submodels.sub_model(task.axes, params, chosen("norm", 0.0), rescale=True)
    toy.assert_same_bits(whole, params)
    # 3 of 6 units of dense1 are left, so what reads from them counts twice.
    scaled = evaluate_submodels.sub_model(task.axes, params, chosen("nested"), rescale=True)
    toy.assert_same_bits(scaled["dense2/kernel"], 2 * cut["dense2/kernel"])
    toy.assert_same_bits(scaled["dense1/bias"], cut["dense1/bias"])


def test_rows_name_the_metric_of_the_task(task, tmp_path):
    params = toy.make_params(task)
    rates = iter([0.25, 0.5, 0.75])
    rows = evaluate_submodels.evaluate(
        lambda *_: params,
        params,
        lambda cut: Evaluation({"wer": next(rates), "loss": 2.0}, {"s": {"errors": 1, "words": 4}}),
        rates=[0.0, 0.5],
        kinds=["random"],
        draws=2,
        metric=Speech.metric,
    )
    assert [(row["wer"], row["wer_std"], row["wers"]) for row in rows] == [
        (0.25, 0.0, [0.25]),
        (0.625, 0.125, [0.5, 0.75]),
    ]
    assert [len(row["clients"]) for row in rows] == [1, 2]
    text = evaluate_submodels.table(rows, Speech.metric)
    assert " wer " in text and "accuracy" not in text and "0.6250" in text and "+- 0.1250" in text
    names = {"method": "fedavg", "dataset": "speech"}
    evaluate_submodels.draw(rows, names, tmp_path / "figure", Speech.metric)
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_run_is_evaluated_and_a_sub_model_exported(finished, tmp_path, monkeypatch, capsys):
    kept = ("config.json", "metrics.jsonl", "summary.json")
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in kept:
        (workdir / name).write_bytes((finished / name).read_bytes())
    (workdir / "checkpoints").symlink_to(finished / "checkpoints")
    model_dir = tmp_path / "model"
    options = ("--rates=0,0.5", "--draws=2", f"--export={model_dir}", "--export_kind=random")
    _run(monkeypatch, f"--workdir={workdir}", *options, "--export_seed=1")
    printed = capsys.readouterr().out
    rows = json.loads((workdir / "submodels.json").read_text())["rows"]
    assert [(row["rate"], row["kind"]) for row in rows] == [
        (rate, kind) for rate in (0, 0.5) for kind in evaluate_submodels.KINDS
    ]
    summary = json.loads((workdir / "summary.json").read_text())
    for row in rows[:3]:
        assert row["accuracy"] == summary["final"]["accuracy"] and row["share"] == 1
        assert row["params"] == summary["server_params"]
    # Of 64 inputs, hidden 16 and 12, 10 classes: 8 and 6 stay.
    assert rows[3]["params"] == 64 * 8 + 8 + 8 * 6 + 6 + 6 * 10 + 10
    assert len(rows[3]["accuracies"]) == 2 and len(rows[4]["accuracies"]) == 1
    assert f"{rows[3]['params']:,}" in printed and "exported" in printed
    for suffix in (".png", ".pdf"):
        assert (workdir / f"submodels{suffix}").stat().st_size > 1000

    # What was exported is the second draw: the same bits without the server.
    run = restore.restore(workdir)
    task, params = run.experiment.task, run.server.params
    widths = dict(task.model.widths)
    drawn = evaluate_submodels.choose("random", task.axes, params, widths, 0.5, 1)
    cut = evaluate_submodels.sub_model(task.axes, params, drawn)
    model, loaded = export.load(model_dir)
    images = run.experiment.dataset.splits["test"].arrays["x"][:20]
    x = jax.jit(lambda x: task.inputs(x, None, False))(images)
    expected = jax.jit(task.apply)(cut, x)
    toy.assert_same_bits(jax.jit(model.apply)({"params": loaded}, x), expected)
    config = json.loads((model_dir / "config.json").read_text())
    assert config["accuracy"] == rows[3]["accuracies"][1]
    assert config["input"]["shape"] == list(images.shape[1:])
    shapes = units.param_shapes(model, jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert shapes == {path: value.shape for path, value in cut.items()}


def test_a_conformer_is_exported_with_what_makes_audio_text(tmp_path):
    """Feed-forward units, heads and channels are cut; no server, data set or task is needed."""
    vocabulary = ("", "a", "b", " ")
    model = models.build("conformer", num_classes=len(vocabulary), **test_conformer.TINY)
    x, frames = test_conformer.utterances(20), test_conformer.FRAMES
    example = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    axes = units.unit_axes(model, example)
    task = Speech(model, axes, vocabulary=vocabulary, separator="")
    params = units.init_params(model, jax.random.key(0), example)
    chosen = evaluate_submodels.choose("random", axes, params, dict(model.widths), 0.4, 0)
    cut = evaluate_submodels.sub_model(axes, params, chosen, rescale=True)
    split = Split({"x": x}, np.array([0, 3]), ("speaker",))
    dataset = FederatedDataset(
        "speech", {"test": split}, len(vocabulary), "speech", vocabulary, sample_rate=8000
    )
    names = {"model": "conformer", "dataset": "speech", "method": "federated_dropout"}
    config = {"model": {"name": "conformer", **test_conformer.TINY}, "adapters": {}, "task": {}}
    experiment = types.SimpleNamespace(config=config, dataset=dataset, names=names, task=task)
    run = types.SimpleNamespace(experiment=experiment, round=3)
    with flagsaver.flagsaver(export=str(tmp_path / "model")):
        evaluate_submodels._export(run, cut, {"kind": "random"}, lambda _: {"wer": 0.25})

    loaded, tree = export.load(tmp_path / "model")
    sizes = {width: len(kept) for width, kept in chosen.items()}
    assert dict(loaded.widths) == sizes and all(sizes[w] < n for w, n in model.widths.items())
    found = jax.jit(lambda p: loaded.apply({"params": p}, x, frames=frames))(tree)
    small = model.clone(widths=loaded.widths)
    expected = jax.jit(lambda p: units.apply(small, p, x, frames=frames))(cut)
    toy.assert_same_bits(found, expected)
    facts = json.loads((tmp_path / "model" / "config.json").read_text())
    assert facts["tokens"] == {"vocabulary": list(vocabulary), "separator": ""}
    assert facts["input"]["sample_rate"] == 8000 and facts["input"]["shape"] == [20, 7]
    assert facts["wer"] == 0.25


def test_a_pruned_run_is_scored_as_the_model_that_it_deploys(tmp_path, monkeypatch):
    pruning = ("--config.method=federated_pruning", "--config.federated_pruning.prune_from=0")
    options = ("--config.rounds=1", "--config.partial_training.freeze=()", *pruning)
    assert cli.run(f"--config={cli.TINY}", f"--workdir={tmp_path}", *options).code == 0
    _run(monkeypatch, f"--workdir={tmp_path}", "--rates=0", "--kinds=nested")
    (row,) = json.loads((tmp_path / "submodels.json").read_text())["rows"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert row["params"] == summary["client"]["params"] < 0.52 * summary["server_params"]
    assert row["accuracy"] == summary["final"]["accuracy"]
    assert row["loss"] == summary["final"]["loss"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rates=0.5,1",), "below 1"),
        (("--rates=half",), "give numbers"),
        (("--kinds=best",), "--kinds knows random, nested, norm"),
        (("--export_rate=1.5",), "below 1"),
        (("--widths=conv.*",), "--widths: the pattern 'conv.*' matches"),
    ],
)
def test_refusals(finished, monkeypatch, capsys, arguments, words):
    with pytest.raises(SystemExit) as exit_:
        _run(monkeypatch, f"--workdir={finished}", *arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_no_run(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        _run(monkeypatch, f"--workdir={tmp_path}")
    assert "config.json is missing" in capsys.readouterr().err
