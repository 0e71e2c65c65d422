"""Runs and backbones that one table takes from another."""

import json

import pytest

from fedlite.errors import UserError
from scripts.tables.harness import plan, reuse
from scripts.tables.harness.spec import BACKBONES, Backbone, Row, Scale

CONFIG = "configs/adapters/mnist5k_resnet.py"
GLYPHS = Backbone("glyphs", f"{CONFIG}:pretrain", epochs=3)
ROWS = (
    Row("Adapters", f"{CONFIG}:adapters", {"backbone.path": f"{BACKBONES}glyphs"}),
    Row("Full, from scratch", f"{CONFIG}:full", {"rounds": 7}),
)
SCALE = Scale(ROWS, backbones=(GLYPHS,))


def finish(run):
    run.claim()
    (run.directory / "summary.json").write_text(json.dumps({"seed": run.seed}))
    (run.directory / "config.json").write_text(json.dumps(run.config))


TRAINING = {"epochs": 3, "learning_rate": 1e-3, "batch_size": 128}


def write_backbone(out, digest, training=(), **changed):
    config = plan.load_config(GLYPHS.config).to_dict()
    kept = {name: config[name] for name in ("dataset", "model", "task", "seed")}
    training = {**TRAINING, **dict(training)}
    facts = {"digest": digest, "config": {**kept, **changed}, "training": training}
    directory = plan.backbone_directory(out, "glyphs")
    directory.mkdir(parents=True)
    (directory / "backbone.json").write_text(json.dumps(facts))


def backbone_of(run, name):
    return json.loads((run.directory / name).read_text())["config"]["backbone"]["path"]


def test_what_is_the_same_is_copied(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    write_backbone(first, "d")
    # Of the two rows, the first seed is finished, and the second one was only begun.
    for run in plan.plan(SCALE, first, seeds=2):
        (finish if run.seed == 0 else plan.Run.claim)(run)
    labels = (Row("Renamed", *_settings(ROWS[0])), Row("Other", ROWS[1].config, {"rounds": 8}))
    other = Scale((*labels, ROWS[1]), backbones=(GLYPHS,))
    assert reuse.take_backbones(other, second, [first]) == ["glyphs"]
    runs = plan.plan(other, second, seeds=2)
    assert reuse.take_runs(runs, second, [first]) == [
        "Renamed, seed 0",
        "Full, from scratch, seed 0",
    ]
    assert [run.name for run in runs if run.finished] == [
        "Renamed, seed 0",
        "Full, from scratch, seed 0",
    ]
    # It is this table's in all respects: resuming it would refuse nothing.
    again = plan.plan(other, second, seeds=2)
    assert backbone_of(again[0], "row.json") == str(second / "backbones" / "glyphs")
    flags = json.loads((again[0].directory / "row.json").read_text())["flags"]
    assert tuple(flags) == again[0].flags
    config = json.loads((again[0].directory / "config.json").read_text())
    assert config == again[0].config
    assert again[0].made_by("code") and not again[1].made_by("code")
    assert reuse.take_runs(again, second, [first]) == []


def _settings(row):
    return row.config, row.overrides


def test_what_begins_with_another_backbone_is_not_copied(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    write_backbone(first, "d")
    write_backbone(second, "e")
    for run in plan.plan(SCALE, first, seeds=1):
        finish(run)
    runs = plan.plan(SCALE, second, seeds=1)
    assert reuse.take_runs(runs, second, [first]) == ["Full, from scratch, seed 0"]


@pytest.mark.parametrize(
    "difference",
    [*({"training": {option: 4}} for option in TRAINING), {"seed": 1}],
)
def test_a_backbone_that_was_trained_otherwise_is_not_copied(tmp_path, difference):
    write_backbone(tmp_path / "first", "d", **difference)
    assert reuse.take_backbones(SCALE, tmp_path / "second", [tmp_path / "first"]) == []
    assert not (tmp_path / "second").exists()


def test_a_run_that_was_begun_is_left_alone(tmp_path):
    for name in ("first", "second"):
        write_backbone(tmp_path / name, "d")
    finish(plan.plan(SCALE, tmp_path / "first", seeds=1)[0])
    begun = plan.plan(SCALE, tmp_path / "second", seeds=1)
    begun[0].claim()
    assert reuse.take_runs(begun, tmp_path / "second", [tmp_path / "first"]) == []


def test_bad_directories_are_refused(tmp_path):
    runs = plan.plan(SCALE, tmp_path / "out", seeds=1)
    with pytest.raises(UserError, match=r"--reuse: .*nowhere is no directory; name"):
        reuse.take_runs(runs, tmp_path / "out", [tmp_path / "nowhere"])
    other = plan.plan(SCALE, tmp_path / "first", seeds=1)[1]
    finish(other)
    (other.directory / "row.json").write_text("{")
    with pytest.raises(UserError, match=r"row\.json is damaged"):
        reuse.take_runs(runs, tmp_path / "out", [tmp_path / "first"])
