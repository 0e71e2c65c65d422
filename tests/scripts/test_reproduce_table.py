"""Tests of scripts/reproduce_table.py and of the tables that are shipped.

Rows of tables are checked as they are; how runs are started, stopped and resumed is tested with
small programs in place of training, and one table runs for real at a tiny size.
"""

import csv
import dataclasses
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags
from matplotlib import pyplot
from ml_collections import config_flags
from rich.console import Console

from experiments import provenance
from fedlite.errors import UserError
from scripts import tables
from scripts.tables.harness import figure, machine, plan, progress, report, results, runs
from scripts.tables.harness.spec import BYTES, Column, Figure, Row, Scale, Table

ROOT = pathlib.Path(__file__).parents[2]
ALL = [(name, scale) for name in tables.names() for scale in tables.load(name).scales]

# What summary.json has, see experiments/train.py.
SUMMARY = re.compile(
    r"(final|best)\.(accuracy|wer|cer|loss|client_accuracy\.\w+)"
    r"|client\.(params|trained_params|flops_per_example|peak_memory_bytes)"
    r"|bytes\.(down_per_client_round|up_per_client_round|total|total_paper_convention"
    r"|once_per_client)"
    r"|server_params|seconds\.(compile|train)|clients_per_second|padded_step_share"
    r"|peak_host_memory_bytes"
    r"|privacy\.(epsilon|delta|noise_multiplier)"
    r"|personalization\.(before|after)\.(mean|worst_decile)"
)


# The shipped tables.


@pytest.mark.parametrize(("name", "scale"), ALL)
def test_flags_of_every_row_give_the_planned_config(name, scale, tmp_path):
    scale = tables.load(name).scales[scale]
    for small in (False, True):
        planned = plan.plan(scale, tmp_path, seeds=2, small=small)
        assert len(planned) == 2 * len(scale.rows)
        assert len({run.directory for run in planned}) == len(planned)
        for run in planned:
            values = flags.FlagValues()
            argv = ["train", *run.flags]
            config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
            values(argv)
            assert json.loads(json.dumps(values["config"].value.to_dict())) == run.config
            assert run.config["seed"] == run.seed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", tables.names())
def test_columns_are_in_the_summary(name):
    table = tables.load(name)
    for column in table.columns:
        if column.file == "summary.json":
            assert column.target or SUMMARY.fullmatch(column.path), column
        else:
            scales = table.scales.values()
            assert all(column.file in {after.file for after in scale.after} for scale in scales)
    titles = [column.title for column in table.columns]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", tables.names())
def test_a_table_says_how_it_relates_to_its_paper(name):
    table = tables.load(name)
    printed = [row for scale in table.scales.values() for row in scale.rows if row.paper]
    assert not printed, "no number of a result table of these papers was seen"
    assert re.search("No paper prints|Reconstruction of the layout", table.source)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"--table=fedpt is unknown: use one of .*fedpt/emnist"):
        tables.load("fedpt")
    with pytest.raises(UserError, match=r"--scale=paper is not a scale of .*: use bundled"):
        tables.scale_of(tables.load("quickstart"), "paper")


# Plans.

MNIST = "configs/fedavg/mnist5k_cnn.py"


def test_a_changed_row_is_refused(tmp_path):
    row = Row("A", MNIST, {"rounds": 3})
    plan.plan(Scale((row,)), tmp_path)[0].claim()
    plan.plan(Scale((row,)), tmp_path)
    changed = dataclasses.replace(row, overrides={"rounds": 4})
    with pytest.raises(UserError, match=r"row 'A' was begun with rounds = 3, and now it is 4: del"):
        plan.plan(Scale((changed,)), tmp_path)
    other = dataclasses.replace(row, config="configs/fedprox/mnist5k_cnn.py")
    with pytest.raises(UserError, match="begun with local_epochs = 1, and now it is 2"):
        plan.plan(Scale((other,)), tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("A", "configs/nowhere.py"), "configs/nowhere.py is not there"),
        (Row("A", MNIST, {"round": 3}), "row 'A': .* takes no round = 3"),
        (Row("A", MNIST, {"fedprox.nu": 3}), "takes no fedprox.nu = 3"),
        (Row("A", MNIST, {"rounds": "many"}), "takes no rounds = 'many'"),
    ],
)
def test_a_wrong_row_is_refused(row, message, tmp_path):
    with pytest.raises(UserError, match=message):
        plan.plan(Scale((row,)), tmp_path)


def test_rows_are_selected_by_label(tmp_path):
    planned = plan.plan(tables.load("quickstart").scales["bundled"], tmp_path, seeds=2)
    assert plan.select(planned, "") == planned
    chosen = plan.select(planned, "FedPT; Federated dropout")
    assert [run.name for run in chosen] == [
        "FedPT, seed 0",
        "Federated dropout, seed 0",
        "FedPT, seed 1",
        "Federated dropout, seed 1",
    ]
    # FedAvg was not asked for, but ran with seed 0.
    write_run(planned[0], {}, [])
    assert plan.shown(planned, chosen) == [run for run in planned if run is not planned[3]]
    with pytest.raises(UserError, match=r"no row is called 'FedAvgM'; use FedAvg; FedPT; "):
        plan.select(planned, "FedAvgM")


def test_rows_of_one_directory_are_refused():
    with pytest.raises(ValueError, match="labels differ"):
        Scale((Row("A b", MNIST), Row("a-B", MNIST)))


# Runs, with small programs in place of training.

FINISH = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
with open(out / "metrics.jsonl", "w") as file:
    for r in (1, 2):
        print(json.dumps({"round": r, "kind": "train", "loss": 1 / r}), file=file)
        line = {"round": r, "kind": "eval", "split": "test", "accuracy": r / 4}
        print(json.dumps({**line, "total_bytes": r * 2**20}), file=file)
(out / "summary.json").write_text(json.dumps({"final": {"accuracy": 0.5}, "bytes": {"total": 8}}))
"""
FAIL = 'import sys; print("lots of words"); print("error: it is broken\\n"); sys.exit(2)'
DIE = "import os; os.kill(os.getpid(), 9)"
# Stops the parent as soon as it is ready for a signal itself.
STOP = """
import os, pathlib, signal, sys
def checkpoint(*_):
    (pathlib.Path(sys.argv[1]) / "checkpoint").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, checkpoint)
os.kill(os.getppid(), signal.SIGINT)
signal.pause()
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Fake(plan.Run):
    """A run of a program that is given as text."""

    program: str = FINISH

    @property
    def command(self):
        return [sys.executable, "-S", "-c", self.program, str(self.directory)]


def fake(tmp_path, label, program=FINISH, seed=0):
    row = Row(label, MNIST)
    directory = tmp_path / row.slug / f"seed{seed}"
    return Fake(row, seed, directory, (), {"rounds": 2}, program)


def execute(planned, parallel=2):
    """The outcome, and what a person without a terminal saw."""
    text = io.StringIO()
    with progress.Progress(planned, console=Console(file=text, width=200)) as shown:
        outcome = runs.execute(planned, parallel, shown)
    return outcome, text.getvalue()


def test_a_failed_run_does_not_stop_the_others(tmp_path):
    good, bad = fake(tmp_path, "Good"), fake(tmp_path, "Bad", FAIL)
    dead, last = fake(tmp_path, "Dead", DIE), fake(tmp_path, "Last")
    outcome, shown = execute([bad, good, dead, last])
    assert outcome.failures == {bad: "error: it is broken", dead: "killed by SIGKILL"}
    assert not outcome.stopped and good.finished and last.finished
    assert "Bad, seed 0: FAILED" in shown and "error: it is broken" in shown
    assert "Good, seed 0: loss 0.500, accuracy 50.0 %" in shown


def test_finished_runs_are_not_run_again(tmp_path):
    done, other = fake(tmp_path, "Done"), fake(tmp_path, "Other", FAIL)
    execute([done])
    text = done.log.read_text()
    outcome, shown = execute([dataclasses.replace(done, program=FAIL), other])
    assert list(outcome.failures) == [other] and done.log.read_text() == text
    assert "1 of 2 runs are finished already." in shown


def test_a_signal_is_passed_on_once_and_nothing_more_starts(tmp_path):
    first, second = fake(tmp_path, "First", STOP), fake(tmp_path, "Second")
    outcome, shown = execute([first, second], parallel=1)
    assert outcome == runs.Outcome({}, stopped=True)
    assert (first.directory / "checkpoint").exists() and not second.directory.exists()
    assert "Stopping" in shown
    outcome, _ = execute([dataclasses.replace(first, program=FINISH), second])
    assert outcome == runs.Outcome({}, stopped=False)


def test_a_run_that_was_stopped_by_others_is_a_failure(tmp_path):
    run = fake(tmp_path, "Stopped", "pass")
    outcome, _ = execute([run])
    assert outcome.failures == {run: "stopped from outside before it was finished"}


def test_parallel_runs_share_the_cores(monkeypatch):
    monkeypatch.setattr(provenance, "cores", lambda: 8)
    assert runs.environment(3)["NPROC"] == "2"
    assert runs.environment(16)["NPROC"] == "1"
    assert runs.environment(1) == dict(os.environ)


# Numbers.


def test_mean_and_deviation():
    assert results.measure([1.0, 2.0, None, 3.0]) == results.Measured(2.0, 1.0)
    assert results.measure([4]) == results.Measured(4.0, None)
    assert results.measure([None]) == results.Measured(None)


def write_run(run, summary, lines=()):
    run.directory.mkdir(parents=True)
    (run.directory / "summary.json").write_text(json.dumps(summary))
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


@pytest.fixture
def small_table(tmp_path):
    """A table of three rows with two seeds, of which the last row has none finished."""
    columns = (Column("Accuracy %", "final.accuracy", 100, 1), *BYTES[-2:])
    table = Table("T", "S", {}, columns=columns, figure=Figure())
    planned = [fake(tmp_path, label, seed=seed) for seed in (0, 1) for label in "ABC"]
    for run in planned:
        if run.row.label == "C":
            continue
        factor = 4 if run.row.label == "A" else 1
        accuracy = 0.5 + 0.1 * run.seed
        lines = [
            {
                "round": r,
                "kind": "eval",
                "split": split,
                "accuracy": accuracy * r,
                "total_bytes": factor * (r + run.seed) * 2**20,
            }
            for r in (1, 2)[: 2 - (run.row.label == "B" and run.seed)]
            for split in ("test", "validation")
        ]
        total = factor * (2 + run.seed) * 2**20
        write_run(run, {"final": {"accuracy": accuracy}, "bytes": {"total": total}}, lines)
    return table, planned


def test_the_table_by_hand(small_table):
    table, planned = small_table
    measured = results.collect(table, planned)
    assert [result.seeds for result in measured] == [(0, 1), (0, 1), ()]
    assert report.grid(report.cells(table, measured)).splitlines() == [
        "| Method | Accuracy % |   Total MB | Reduction |",
        "| ------ | ---------: | ---------: | --------: |",
        "| A      | 55.0 ± 7.1 | 10.0 ± 2.8 |      1.0x |",
        "| B      | 55.0 ± 7.1 |  2.5 ± 0.7 |      4.0x |",
        "| C      |          – |          – |         – |",
    ]
    lines = list(csv.DictReader(io.StringIO(report.comma_separated(table, measured))))
    assert lines[1]["method"] == "B" and lines[1]["seeds"] == "2"
    assert float(lines[1]["bytes.total mean"]) == 2.5 * 2**20
    assert lines[2]["bytes.total mean"] == ""


def test_bytes_to_a_target(small_table):
    """Seed 0 has 0.5 and 1.0 after its rounds, seed 1 has 0.6 and 1.2; seed 1 of B one round."""
    table, planned = small_table

    def needed(target):
        columns = (Column("MB to target", "accuracy", target=target),)
        found = results.collect(dataclasses.replace(table, columns=columns), planned)
        return [result.cells[0].mean for result in found]

    assert needed(0.55) == [8 * 2**20, 2 * 2**20, None]
    a, b, c = needed(0.7)
    # A: 8 MB after two rounds of seed 0, 12 of seed 1; seed 1 of B never came there.
    assert (a, b, c) == (10 * 2**20, None, None)


def test_paper_numbers_stand_apart(small_table):
    table, planned = small_table
    measured = results.collect(table, planned)
    row = dataclasses.replace(measured[1].row, paper={"Reduction": "up to 46x"})
    measured[1] = dataclasses.replace(measured[1], row=row)
    cells = report.cells(table, measured)
    assert cells[0][:2] == ["Method", "Paper: Reduction"]
    assert [line[1] for line in cells[1:]] == ["–", "up to 46x", "–"]


def test_curves_by_hand(small_table, tmp_path):
    table, planned = small_table
    first, second = results.curves(table.figure, planned)
    assert first.label == "A" and first.megabytes == [6.0, 10.0]
    assert first.mean == pytest.approx([55, 110])
    assert first.deviation == pytest.approx([50**0.5, 200**0.5])
    # Seed 1 of B was evaluated in round 1 alone.
    assert second.megabytes == [1.5] and second.mean == pytest.approx([55])
    figure.draw(table.figure, [first, second], "T", tmp_path / "figure")
    assert (tmp_path / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "figure.pdf").read_bytes()[:5] == b"%PDF-"


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws curves; returns the axes, and the width of the PNG in pixels."""
    canvases = []
    monkeypatch.setattr(pyplot, "close", canvases.append)

    def draw(label, megabytes):
        curve = results.Curve(label, megabytes, [1.0, 2.0], [0.0, 0.0])
        figure.draw(Figure(), [curve], "T", tmp_path / "figure")
        # Big-endian behind the signature and the name of the first chunk.
        width = int.from_bytes((tmp_path / "figure.png").read_bytes()[16:20], "big")
        return canvases[-1].axes[0], width

    yield draw
    monkeypatch.undo()
    for canvas in canvases:
        pyplot.close(canvas)


def test_long_labels_widen_the_figure_and_leave_the_axes(drawn):
    (axes, short), (same, long) = (drawn(n * "A row of words ", [30.0, 60.0]) for n in (1, 6))
    assert long > short + 500
    width = axes.get_window_extent().width
    assert width == same.get_window_extent().width > 0.7 * axes.figure.bbox.width


@pytest.mark.parametrize(
    "last,labels", [(900.0, [50, 100, 200, 500, 1000]), (9000.0, [100, 1000, 10000]), (60.0, None)]
)
def test_a_short_axis_has_more_than_one_number(drawn, last, labels):
    axes, _ = drawn("A", [40.0, last])
    low, high = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert shown == labels if labels else 3 <= len(shown) <= 10


def test_last_lines_survive_a_cut(tmp_path):
    run = fake(tmp_path, "A")
    assert progress.last_lines(run) == {}
    lines = [{"round": r, "kind": "train", "loss": 1.0, "filler": "x" * 99} for r in range(500)]
    write_run(run, {}, lines)
    with open(run.directory / "metrics.jsonl", "a") as file:
        file.write('{"round": 500, "ki')
    assert progress.last_lines(run)["train"]["round"] == 499


def test_provenance_names_no_host_and_no_path():
    text = " ".join(
        [
            machine.command("quickstart", "bundled", seeds=2, small=True),
            provenance.code(),
            provenance.machine(),
        ]
    )
    assert "--table=quickstart --scale=bundled --out=DIR --seeds=2 --tiny" in text
    assert os.uname().nodename not in text and str(ROOT) not in text
    assert re.search(r"\d+ cores, \d+ GiB; jax 0\.\d+", text)


# The program itself.


def reproduce(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "scripts.reproduce_table", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_quickstart_at_a_tiny_size(tmp_path):
    arguments = ("--table=quickstart", f"--out={tmp_path}", "--tiny", "--parallel=2")
    first = reproduce(*arguments)
    assert first.returncode == 0, first.stderr
    text = (tmp_path / "table.md").read_text()
    assert text in first.stdout and str(tmp_path) not in text
    for label in ("FedAvg", "FedPT", "Federated dropout"):
        assert re.search(rf"^\| {label} +\| +\d+\.\d \|", text, re.MULTILINE)
    assert str(tmp_path / "figure.png") in first.stdout
    for file in ("table.csv", "figure.png", "figure.pdf"):
        assert (tmp_path / file).stat().st_size > 100
    again = reproduce(*arguments)
    assert again.returncode == 0 and "3 of 3 runs are finished already." in again.stderr
    refused = reproduce("--table=quickstart", f"--out={tmp_path}")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1 and "was begun with" in refused.stderr


def test_rows_begin_with_a_backbone_that_is_trained_once(tmp_path):
    arguments = ("--table=adapters/transfer", f"--out={tmp_path}", "--tiny", "--seeds=1")
    first = reproduce(*arguments)
    assert first.returncode == 0, first.stderr
    assert "Training the backbone 'glyphs'." in first.stdout
    facts = json.loads((tmp_path / "backbones" / "glyphs" / "backbone.json").read_text())
    config = json.loads((tmp_path / "runs" / "adapters" / "seed0" / "config.json").read_text())
    assert config["backbone"]["path"] == str(tmp_path / "backbones" / "glyphs")
    assert len(facts["digest"]) == 64
    again = reproduce(*arguments)
    assert again.returncode == 0 and "Training the backbone" not in again.stdout


def test_a_failed_row_is_told_and_the_exit_code_is_1(tmp_path):
    program = """
from absl import app
from experiments import binary
from scripts import reproduce_table
from scripts.tables.harness import plan
from tests.scripts.test_reproduce_table import FAIL, fake
plan.plan = lambda scale, out, **_: [fake(out, "Good"), fake(out, "Bad", FAIL)]
app.run(binary.guarded(reproduce_table.main), flags_parser=binary.parse_flags)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "--table=quickstart", f"--out={tmp_path}", "--parallel=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "FAILED: Bad, seed 0: error: it is broken" in done.stdout
    text = (tmp_path / "table.md").read_text()
    assert "* Failed: Bad, seed 0\n" in text and str(tmp_path) not in text
    assert re.search(r"^\| Good +\| +50\.0 \|", text, re.MULTILINE)
    assert re.search(r"^\| Bad +\| +– \|", text, re.MULTILINE)


def test_differences_are_seed_by_seed(tmp_path):
    """1 and 3 points: a mean of 2, a deviation of root 2, and t(0.975, 1) = 12.706."""
    columns = (Column("Difference", "final.accuracy", 100, 1, difference=True),)
    table = Table("T", "S", {}, columns=columns)
    planned = [fake(tmp_path, label, seed=seed) for seed in (0, 1) for label in "ABCD"]
    rows = {"C": Row("C", MNIST, reference="B"), "D": Row("D", MNIST, reference="B")}
    planned = [dataclasses.replace(r, row=rows.get(r.row.label, r.row)) for r in planned]
    accuracy = {"A": (0.5, 0.6), "B": (0.51, 0.63), "C": (0.61, 0.73), "D": (0.6,)}
    for run in planned:
        if run.seed < len(accuracy[run.row.label]):
            write_run(run, {"final": {"accuracy": accuracy[run.row.label][run.seed]}})
    measured = results.collect(table, planned)
    assert [line[1] for line in report.cells(table, measured)] == [
        "Difference",
        "–",
        "+2.0 [-10.7, +14.7]",
        "+10.0 [+10.0, +10.0]",
        "+9.0",
    ]
    heading = report.comma_separated(table, measured).split("\n")[0]
    assert heading == "method,seeds,final.accuracy difference mean,final.accuracy difference sd"
