"""Clients that fail or come too late: who counts, and what it costs."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlite import methods
from fedlite.data.federated import FederatedDataset, Split
from fedlite.errors import UserError
from fedlite.federated import training
from fedlite.federated.availability import Availability
from fedlite.federated.local import ClientOptimizer
from fedlite.federated.meter import Meter
from fedlite.federated.workdir import Workdir
from tests import toy

STEPS = np.array([4, 1, 3, 2, 5])
IDS = np.array([0, 2, 3, 5, 7])


def _answers(model, number=0, clients=3, ids=IDS, steps=STEPS, seed=1, population=8):
    return model.answers(seed, number, population, ids, steps, clients)


# Who counts.


def test_by_default_everyone_counts():
    assert not Availability().on
    answers = _answers(Availability(spread=2.0))
    assert answers.counted.all() and answers[1:] == (0, 0)


def test_a_deadline_in_steps():
    # Without a spread everyone is the median client.
    answers = _answers(Availability(deadline=3.0, spread=0.0))
    assert answers.counted.tolist() == [False, True, True, True, False]
    assert answers[1:] == (0, 2)


def test_the_first_answers_count_when_more_were_selected():
    answers = _answers(Availability(over_selection=5 / 3, spread=0.0))
    assert answers.counted.tolist() == [False, True, True, True, False]
    assert answers[1:] == (0, 2)
    both = _answers(Availability(over_selection=5 / 3, spread=0.0, deadline=2.0))
    assert both.counted.tolist() == [False, True, False, True, False]


def test_failures_make_room_for_later_answers():
    model = Availability(over_selection=2.0, failure_rate=0.5, spread=0.0)
    for number in range(20):
        answers = _answers(model, number, clients=2)
        assert answers.counted.sum() == min(2, 5 - answers.failed)
        assert answers.counted.sum() + answers.failed + answers.stragglers == 5


def test_ties_are_not_broken_by_number():
    model = Availability(over_selection=2.0, spread=0.0)
    counted = [_answers(model, i, 1, IDS[:2], np.array([3, 3])).counted for i in range(40)]
    assert 5 < np.sum(counted, axis=0)[0] < 35


def test_shares_are_those_of_the_model():
    ids, steps = np.arange(5000), np.ones(5000, int)
    failing = Availability(failure_rate=0.3)
    share = 1 - failing.answers(0, 0, 5000, ids, steps, 1).counted.mean()
    assert share == pytest.approx(0.3, abs=5 * np.sqrt(0.3 * 0.7 / 5000))
    # A log-normal's quantile: exp(0.5 z) <= e^0.5 for z <= 1.
    slow = Availability(deadline=np.exp(0.5), spread=0.5)
    share = slow.answers(0, 0, 5000, ids, steps, 1).counted.mean()
    assert share == pytest.approx(0.8413, abs=5 * np.sqrt(0.84 * 0.16 / 5000))


def test_a_slow_client_is_slow_in_every_round_and_cohort():
    model = Availability(deadline=1.0)
    ones = np.ones(8, int)
    everyone = model.answers(0, 0, 8, np.arange(8), ones, 8).counted
    for number in range(5):
        part = model.answers(0, number, 8, IDS, ones[:5], 8).counted
        assert np.array_equal(part, everyone[IDS])
    assert 0 < everyone.sum() < 8
    # Failures are drawn anew.
    rounds = [_answers(Availability(failure_rate=0.5), i).counted.tolist() for i in range(9)]
    assert rounds[1:] != rounds[:-1]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.integers(0, 1000),
    st.integers(1, 30),
    st.floats(1.0, 3.0),
    st.floats(0.0, 0.9),
    st.floats(0.0, 6.0),
)
def test_every_selected_client_is_one_of_three(seed, number, clients, over, rate, deadline):
    model = Availability(over, rate, deadline)
    selected = model.selected(clients)
    ids, steps = np.arange(selected) * 2, np.arange(selected) % 4
    answers = model.answers(seed, number, 200, ids, steps, clients)
    assert answers.counted.sum() + answers.failed + answers.stragglers == selected
    assert over == 1 or answers.counted.sum() <= clients
    again = model.answers(seed, number, 200, ids, steps, clients)
    assert np.array_equal(answers.counted, again.counted) and answers[1:] == again[1:]


def test_how_many_are_selected():
    assert Availability(over_selection=1.3).selected(10) == 13
    assert Availability(over_selection=1.1).selected(10) == 11
    assert Availability(over_selection=1.01).selected(10) == 11


@pytest.mark.parametrize(
    "wrong",
    [
        {"over_selection": 0.9},
        {"failure_rate": 1.0},
        {"failure_rate": -0.1},
        {"deadline": -1.0},
        {"deadline": float("inf")},
        {"spread": float("nan")},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    ((name, _),) = wrong.items()
    with pytest.raises(UserError, match=rf"availability\.{name} = .* out of range: take"):
        Availability(**wrong)


# What a round makes of it.


@pytest.fixture(scope="module")
def task():
    return toy.make_task()


def _run(task, availability, spec="quantize", rounds=4, **options):
    method = toy.make_method(task, spec, quantize={"down": "uniform8", "up": "uniform8"})
    engine = toy.make_engine(task, method, epochs=1, availability=availability, **options)
    return engine, *toy.run(engine, toy.make_params(task), rounds)


@pytest.fixture(scope="module")
def everyone(task):
    return _run(task, Availability(), clients=8)


def test_a_model_that_nobody_notices_changes_nothing(task, everyone):
    _, plain, before = everyone
    _, same, after = _run(task, Availability(deadline=1e6), clients=8)
    toy.assert_same_bits(plain, same)
    for one, other in zip(before, after):
        toy.assert_same_bits(one, other)


def test_bytes_of_those_that_count_are_what_they_were(task, everyone):
    """Quantised messages, with side information both ways."""
    model = Availability(failure_rate=0.4, deadline=2.0, spread=0.3)
    engine, _, results = _run(task, model, clients=8)
    _, answers = engine._layouts(engine.recipe, 0, 4)
    meter = Meter(8)
    for full, result, answer in zip(everyone[2], results, answers):
        counted = answer.counted
        assert 0 < counted.sum() < 8 and (answer.failed, answer.stragglers) == result[-2:]
        assert np.array_equal(result.ids, full.ids)
        assert result.examples == np.array(toy.SIZES)[counted].sum()
        assert np.array_equal(result.down, full.down)
        assert np.array_equal(result.up, np.where(counted, full.up, 0))
        assert np.array_equal(result.side[counted], full.side[counted])
        # Half of it came down.
        assert np.array_equal(result.side[~counted] * 2, full.side[~counted])
        meter.add(result)
    total = sum(answer.counted.sum() for answer in answers)
    assert meter.client_rounds == 32 and meter.uploads == total
    summary = meter.summary()
    assert summary["down_per_client_round"] * 32 == sum(r.down.sum() for r in results)
    assert summary["up_per_client_round"] * total == sum(r.up.sum() for r in results)
    restored = Meter(8)
    restored.load(meter.save())
    assert restored.summary() == summary


def test_the_round_is_that_of_the_clients_that_count(task):
    """Over-selection to the whole population, and a deadline, against the same clients alone."""
    model = Availability(over_selection=8 / 3, spread=0.7)
    engine, server, results = _run(task, model, "fedavg", rounds=1)
    assert (len(results[0].ids), results[0].failed, results[0].stragglers) == (8, 0, 5)
    _, (answer,) = engine._layouts(engine.recipe, 0, 1)
    chosen = np.flatnonzero(answer.counted)
    alone = [size if client in chosen else 0 for client, size in enumerate(toy.SIZES)]
    full = toy.make_split()
    kept = np.concatenate([np.arange(*full.offsets[i : i + 2]) for i in chosen])
    arrays = {name: array[kept] for name, array in full.arrays.items()}
    split = Split(arrays, np.concatenate([[0], np.cumsum(alone)]), full.client_ids)
    _, other, _ = _run(task, Availability(), "fedavg", rounds=1, clients=8, split=split)
    toy.assert_close(server.params, other.params)


def test_a_client_that_does_not_count_keeps_its_state(task):
    model = Availability(failure_rate=0.5)
    engine, _, _ = _run(task, model, "scaffold", rounds=1, clients=8)
    _, (answer,) = engine._layouts(engine.recipe, 0, 1)
    rows = engine.store.gather(np.arange(8))
    moved = np.zeros(8, bool)
    for leaf in toy.jax.tree.leaves(rows):
        moved |= np.abs(np.asarray(leaf, float)).reshape(8, -1).sum(axis=1) > 0
    assert np.array_equal(moved, answer.counted & (np.array(toy.SIZES) > 0))


def test_privacy_forbids_what_depends_on_data(task):
    context = toy.make_context(task, weighting="uniform")
    method = toy.make_method(task, "dp_fedavg", context)
    for model in (Availability(deadline=5.0), Availability(over_selection=1.5)):
        with pytest.raises(UserError, match="privacy guarantee does not cover"):
            toy.make_engine(task, method, uniform=True, availability=model)
    toy.make_engine(task, method, uniform=True, availability=Availability(failure_rate=0.2))


# A whole run.


class Crash(Exception):
    pass


def _experiment(task, availability):
    split = toy.make_split()
    return training.Experiment(
        names={"method": "toy", "dataset": "toy", "model": "mlp"},
        config={"seed": 3},
        dataset=FederatedDataset("toy", {"train": split, "test": split}, toy.CLASSES),
        task=task,
        init_params=lambda: toy.make_params(task),
        method=toy.make_method(task, "fedavg"),
        recipe=methods.Recipe(clients=3, epochs=1, lr=0.1),
        client_optimizer=ClientOptimizer(),
        server_optimizer=training.optax.sgd(1.0),
        options=training.EngineOptions(batch_size=4, devices=1, availability=availability),
        seed=3,
        rounds=6,
        eval_every=3,
        checkpoint_every=2,
    )


def test_metrics_say_who_did_not_count_and_a_run_resumes(task, tmp_path, monkeypatch):
    model = Availability(over_selection=5 / 3, failure_rate=0.3)
    experiment = _experiment(task, model)
    training.train(experiment, Workdir(tmp_path / "straight"))
    lines = (tmp_path / "straight/metrics.jsonl").read_text()
    rounds = [line for line in map(json.loads, lines.splitlines()) if line["kind"] == "train"]
    assert [line["clients"] for line in rounds] == [5] * 6
    assert sum(line["failed_clients"] for line in rounds) > 0
    assert sum(line["stragglers"] for line in rounds) > 0
    size = 4 * sum(p.size for p in toy.make_params(task).values())
    for line in rounds:
        late = line["failed_clients"] + line["stragglers"]
        assert 5 - late <= 3
        assert (line["down_bytes"], line["up_bytes"]) == (5 * size, (5 - late) * size)

    append = Workdir.append

    def crash(self, number, kind, values):
        append(self, number, kind, values)
        if (number, kind) == (5, "train"):
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Workdir, "append", crash)
        training.train(experiment, Workdir(tmp_path / "crashed"))
    training.train(experiment, Workdir(tmp_path / "crashed"))
    assert (tmp_path / "crashed/metrics.jsonl").read_text() == lines
    ends = [
        json.loads((tmp_path / d / "summary.json").read_text()) for d in ("straight", "crashed")
    ]
    assert ends[0]["bytes"] == ends[1]["bytes"] and ends[0]["final"] == ends[1]["final"]
    assert ends[0]["bytes"]["up_per_client_round"] == size


def test_metrics_are_silent_without_the_model(task, tmp_path):
    training.train(_experiment(task, Availability()), Workdir(tmp_path))
    assert "stragglers" not in (tmp_path / "metrics.jsonl").read_text()
