"""Programs that score the finished runs of a table once more, and the columns of their files."""

import json

from scripts.tables.harness import after, plan, results
from scripts.tables.harness.spec import After, Column, Row, Scale, Table

MNIST = "configs/fedavg/mnist5k_cnn.py"
PROGRAM = """
import json, pathlib, sys
factor, workdir = sys.argv[1], pathlib.Path(sys.argv[2].removeprefix("--workdir="))
if workdir.name == "seed1":
    sys.exit("error: no checkpoint")
loss = json.loads((workdir / "summary.json").read_text())["loss"]
(workdir / "scores.json").write_text(json.dumps({"rows": [{"x": 0}, {"x": loss * float(factor)}]}))
"""


def _run(tmp_path, seed, summary):
    row = Row("A", MNIST)
    run = plan.Run(row, seed, tmp_path / f"seed{seed}", (), {})
    run.directory.mkdir()
    if summary:
        (run.directory / "summary.json").write_text(json.dumps(summary))
    return run


def test_finished_runs_are_scored_once_and_read_by_columns(tmp_path, monkeypatch):
    (tmp_path / "score_it.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    summaries = {0: {"loss": 4.0, "whole": 8}, 1: {"loss": 5.0}, 2: None}
    runs = [_run(tmp_path, seed, summary) for seed, summary in summaries.items()]
    scale = Scale((runs[0].row,), after=(After("score_it", "scores.json", ("2",)),))
    # Seed 1 has no checkpoint, seed 2 is not finished.
    assert after.score(scale, runs) == {runs[1]: "score_it: error: no checkpoint"}
    scores = tmp_path / "seed0" / "scores.json"
    scores.write_text(scores.read_text().replace("8.0", "9.0"))
    after.score(scale, runs[:1])
    columns = (
        Column("X", "rows.1.x", 10, file="scores.json"),
        Column("Half", "loss", 100, of="whole"),
        Column("None", "rows.2.x", file="scores.json"),
    )
    (found,) = results.collect(Table("T", "S", {}, columns), runs)
    assert [cell.mean for cell in found.cells] == [9.0, 0.5, None]
