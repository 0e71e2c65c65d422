"""Differences between rows of speech runs, by hand."""

import json

import pytest

from tests.experiments import cli


def _write(path, errors, cut):
    path.mkdir(parents=True)
    (path / "summary.json").write_text("{}")
    counts = {f"s{i}": {"errors": e, "words": 10} for i, e in enumerate(errors)}
    (path / "clients_test.json").write_text(json.dumps({"clients": counts}))
    draws = [{f"s{i}": {"errors": e, "words": 10} for i, e in enumerate(own)} for own in cut]
    rows = [{"kind": "random", "rate": 0.5, "clients": draws}]
    (path / "submodels.json").write_text(json.dumps({"rows": rows}))


def _compare(*arguments):
    return cli.finish(cli.start(*arguments, program=("-m", "scripts.compare_speakers")))


@pytest.fixture
def rows(tmp_path):
    """Row a loses 3 errors a speaker when it is cut (2 and 4 in its two draws), row b one."""
    for seed in (0, 1):
        _write(tmp_path / f"a/seed{seed}", (1, 5), ((3, 7), (5, 9)))
        _write(tmp_path / f"b/seed{seed}", (2, 6), ((3, 7), (3, 7)))
    return tmp_path


def test_differences_of_rows_and_of_what_they_lose(rows):
    out = _compare(
        f"--run={rows / 'a'}",
        f"--against={rows / 'b'}",
        "--cut=random:0.5",
    )
    assert out.code == 0, out.stderr
    lines = dict(line.split(": ") for line in out.stdout.strip().splitlines())
    assert lines["a (2 seeds)"].startswith("30.0 [")
    # Speakers differ, the rows' differences do not: nothing is left for the interval.
    assert lines["difference"] == "-10.0 [-10.0, -10.0]"
    assert lines["a cut (random:0.5) loses"] == "30.0 [30.0, 30.0]"
    assert lines["b cut (random:0.5) loses"] == "10.0 [10.0, 10.0]"
    assert lines["difference of the losses"] == "20.0 [20.0, 20.0]"


def test_what_is_missing_is_said(rows):
    bad = _compare(f"--run={rows}", f"--against={rows / 'b'}")
    assert bad.code == 2 and "has no finished run" in bad.stderr
    bad = _compare(
        f"--run={rows / 'a'}",
        f"--against={rows / 'b'}",
        "--cut=norm:0.5",
    )
    assert bad.code == 2 and "has no sub-models norm:0.5" in bad.stderr
