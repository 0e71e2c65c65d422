"""Tests of benchmarks/population.py: the figures of its table, and a tiny run."""

import pytest

from tests.program import Program

PROGRAM = Program("benchmarks.population")
population, run = PROGRAM.module, PROGRAM.run


def test_the_table_by_hand(tmp_path, monkeypatch):
    """Two turns: the second one's machine is twice as slow, which is no ratio's business."""
    seconds = {10: [1.0, 2.0], 20: [1.1, 2.6]}
    asked = []

    class Case:
        def __init__(self, method, clients):
            # The populations are there before the first turn, whose time is not to have it.
            assert len(list(tmp_path.glob("population-*"))) == 2
            self.name, self.left = (method, clients), list(seconds[clients])

        def turn(self):
            asked.append(self.name)
            wall = self.left.pop(0)
            return population.Turn(wall, wall / 2, (100 + self.name[1] - len(self.left)) * 10**6)

        def close(self):
            asked.append("close")

    monkeypatch.setattr(population, "Case", Case)
    monkeypatch.setattr(population.provenance, "code", lambda: "commit c")
    monkeypatch.setattr(population.provenance, "machine", lambda *_: "a machine")
    out = tmp_path / "table.md"
    arguments = (f"--data={tmp_path}", "--populations=10,20", "--clients=5", "--turns=2")
    assert run(*arguments, f"--out={out}") == 0
    # In turns, not one case after the other.
    turns = [("fedavg", 10), ("fedavg", 20)]
    assert asked[:6] == [*turns, *turns, "close", "close"] and asked[6] == ("scaffold", 10)
    text = out.read_text()
    assert (
        "`python -m benchmarks.population --data=DIR --populations=10,20 --clients=5 --turns=2`, "
        "commit c.\n\nMachine: a machine.\n" in text
    )
    assert text.splitlines()[-4:] == [
        "| fedavg | 10 | 1.500 [1.000, 2.000] | 1.00 | 0.750 | 1.00 | 110 |",
        "| fedavg | 20 | 1.850 [1.100, 2.600] | 1.20 | 0.925 | 1.20 | 120 |",
        "| scaffold | 10 | 1.500 [1.000, 2.000] | 1.00 | 0.750 | 1.00 | 110 |",
        "| scaffold | 20 | 1.850 [1.100, 2.600] | 1.20 | 0.925 | 1.20 | 120 |",
    ]


def test_a_tiny_run(tmp_path, monkeypatch):
    monkeypatch.setattr(population, "METHODS", {"scaffold": (2,)})
    sizes = ("--populations=6", "--clients=3", "--rounds=2", "--turns=1")
    assert run(f"--data={tmp_path}", *sizes, f"--out={tmp_path / 'table.md'}") == 0
    row = (tmp_path / "table.md").read_text().splitlines()[-1].strip("| ").split(" | ")
    assert row[:2] == ["scaffold", "6"] and row[3] == row[5] == "1.00"
    # A fast machine's round is 0.000 s.
    assert 0 <= float(row[2].split()[0]) < 60 and 0 <= float(row[4]) < 60
    assert 50 < float(row[6].replace(",", "")) < 3000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data is needed"),
        (["--data=x", "--populations=10,many"], "--populations must be numbers"),
        (["--data=x", "--populations=10", "--clients=11"], "at least --clients each"),
    ],
)
def test_bad_flags_are_one_line(arguments, message, capsys):
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
