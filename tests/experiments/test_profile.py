"""A profile on demand: which rounds are traced, and what the trace holds."""

import gzip
import json

import jax
import pytest

from fedlite.federated.profile import Profiler
from tests.experiments import cli


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """The directory of a run of six rounds with a trace of three, a dispatch each."""
    directory = tmp_path_factory.mktemp("profiled") / "run"
    outcome = cli.run(
        f"--config={cli.TINY}:6",
        "--config.rounds_per_dispatch=1",
        "--profile_rounds=3",
        f"--workdir={directory}",
    )
    assert outcome.code == 0, outcome.stderr
    return directory


def test_a_trace_for_tensorboard_and_perfetto(profiled):
    (session,) = (profiled / "profile/plugins/profile").iterdir()
    (xplane,) = session.glob("*.xplane.pb")
    assert b"jit_run_rounds" in xplane.read_bytes()
    with gzip.open(session / "perfetto_trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    # Rounds 2 to 4, all of them warm.
    assert names.count("dispatch") == 3
    assert any("run_rounds" in name for name in names)
    assert not any("backend_compile" in name for name in names)


def test_the_run_is_that_without_a_profile(profiled):
    summary = json.loads((profiled / "summary.json").read_text())
    assert summary["rounds"] == 6
    rounds = [json.loads(line) for line in (profiled / "metrics.jsonl").read_text().splitlines()]
    assert [r["round"] for r in rounds if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_a_negative_number_is_refused(tmp_path):
    outcome = cli.run(
        f"--config={cli.TINY}", "--profile_rounds=-1", f"--workdir={tmp_path / 'run'}"
    )
    assert outcome.code == 2 and "profile_rounds" in outcome.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def calls(monkeypatch):
    """What the profiler asks of JAX."""
    made = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: made.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: made.append("stop"))
    return made


def dispatch(profiler, calls, rounds):
    """Asks for so many rounds, as a run does; how many ran."""
    count = profiler.limit(rounds)
    with profiler.dispatch(count):
        calls.append(count)
    return count


def test_rounds_after_the_first_dispatch_are_traced(calls, tmp_path):
    profiler = Profiler(tmp_path, 3)
    for rounds in (1, 2, 16, 16):
        dispatch(profiler, calls, rounds)
    profiler.close()
    assert calls == [1, "start", 2, 1, "stop", 16]


def test_a_run_that_ends_early_ends_its_trace(calls, tmp_path):
    profiler = Profiler(tmp_path, 5)
    dispatch(profiler, calls, 1)
    dispatch(profiler, calls, 2)
    profiler.close()
    profiler.close()
    assert calls == [1, "start", 2, "stop"]


def test_an_error_in_a_round_ends_the_trace(calls, tmp_path):
    profiler = Profiler(tmp_path, 5)
    dispatch(profiler, calls, 1)
    with pytest.raises(ZeroDivisionError), profiler.dispatch(2):
        raise ZeroDivisionError
    profiler.close()
    assert calls == [1, "start", "stop"]


def test_without_rounds_nothing_is_traced(calls, tmp_path):
    profiler = Profiler(tmp_path, 0)
    assert [dispatch(profiler, calls, rounds) for rounds in (1, 16)] == [1, 16]
    profiler.close()
    assert calls == [1, 16]
