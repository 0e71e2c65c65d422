"""Federated pruning: scores and masks by hand, phases, what stays, what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from fedlite.errors import UserError
from fedlite.methods import Keys, Recipe, Report, server_view
from fedlite.methods.federated_pruning import FederatedPruning
from fedlite.methods.pruning_scores import unit_scores
from fedlite.models.sizes import parameters
from fedlite.models.units import UnitAxes, UnitAxis
from fedlite.wire import message_bytes, side_bytes, write
from tests import toy

REPORT = Report(jnp.float32(0), jnp.float32(1), jnp.float32(1), jnp.float32(1))
RECIPE = Recipe(clients=3, epochs=1, lr=0.1)
# A hidden width h of 3 units: kernel [1, h], bias [h], next kernel [h, 2], bias [2].
AXES = UnitAxes(
    FrozenDict(
        {
            "in/kernel": (None, UnitAxis("h", 1)),
            "in/bias": (UnitAxis("h", 1),),
            "out/kernel": (UnitAxis("h", 1), None),
            "out/bias": (None,),
        }
    )
)
SHAPES = FrozenDict({"in/kernel": (1, 3), "in/bias": (3,), "out/kernel": (3, 2), "out/bias": (2,)})
# The group of a unit has 3 kernel entries: the columns below.
PARAMS = {
    "in/kernel": jnp.array([[1.0, 2.0, -2.0]]),
    "in/bias": jnp.array([9.0, 0.0, 0.0]),
    "out/kernel": jnp.array([[2.0, -2.0], [0.0, 1.0], [2.0, 2.0]]),
    "out/bias": jnp.zeros(2),
}
CHANGE = {
    "in/kernel": jnp.array([[1.0, 0.0, 2.0]]),
    "in/bias": jnp.full(3, 100.0),
    "out/kernel": jnp.array([[1.0, 2.0], [0.0, -4.0], [1.0, 2.0]]),
    "out/bias": jnp.zeros(2),
}


def _pruning(**options):
    """9 prunable parameters of a unit's 4 each (12), and 2 more."""
    return FederatedPruning(AXES, SHAPES, 100, **{"prune_from": 0, **options})


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("weight_l1", [5, 3, 6]),
        ("weight_l2", [3, 5**0.5, 12**0.5]),
        ("update", [6**0.5, 4, 3]),
        # unit 0: 1 + 2 - 4; unit 1: 0 + 0 - 4; unit 2: -4 + 2 + 4.
        ("taylor", [1, 4, 2]),
        ("movement", [-1, -4, 2]),
    ],
)
def test_scores_by_hand(kind, expected):
    scores = unit_scores(kind, AXES, {"h": 3}, PARAMS, CHANGE)["h"]
    np.testing.assert_allclose(scores, np.array(expected) / 3**0.5, rtol=1e-6)


def test_units_of_several_entries_and_of_two_axes():
    """A recurrent kernel has a width on both axes; a unit is 2 entries of each."""
    axes = UnitAxes(FrozenDict({"kernel": (UnitAxis("h", 2), UnitAxis("h", 2))}))
    value = jnp.arange(16.0).reshape(4, 4)
    scores = unit_scores("weight_l1", axes, {"h": 2}, {"kernel": value})["h"]
    rows, columns = value.sum(1), value.sum(0)
    expected = [(rows + columns)[:2].sum() / 4, (rows + columns)[2:].sum() / 4]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_the_average_aggregate_forgets_nothing_of_pruned_units():
    method = _pruning(score="movement", decay=0.5, prune_from=1, sparsity=0.3)
    state = method.init(jax.random.key(0), server_view(PARAMS))
    assert method.at(0, state, RECIPE)[0] is method
    state = method.revise(state, None, PARAMS, CHANGE, REPORT)
    masked, _ = method.at(1, state, RECIPE)
    np.testing.assert_array_equal(masked.kept(state)["h"].indices, [0, 2])
    np.testing.assert_array_equal(state["average"]["out/kernel"], CHANGE["out/kernel"] / 2)
    after = masked.revise(state, None, PARAMS, {k: 0 * v for k, v in CHANGE.items()}, REPORT)
    np.testing.assert_array_equal(
        after["average"]["out/kernel"],
        CHANGE["out/kernel"] * jnp.array([[0.25], [0.5], [0.25]]),
    )


@pytest.mark.parametrize(
    ("sparsity", "kept"),
    # 12 of 14 parameters are prunable, 4 a unit: what is left is at most the share.
    [(0.01, 2), (0.33, 2), (0.34, 1), (0.66, 1)],
)
def test_kept_counts_are_exact(sparsity, kept):
    assert _pruning(sparsity=sparsity).counts(sparsity, {}) == {"h": kept}


def test_select_cuts_the_lowest_and_tells_the_mask_once():
    method = _pruning(sparsity=0.3, refine_every=5, refine_until=6)
    state = method.init(jax.random.key(0), server_view(PARAMS))
    masked, recipe = method.at(0, state, RECIPE)
    assert recipe.until == 5
    # Refined masks of the same counts share a program.
    assert all(method.at(number, state, RECIPE)[0] == masked for number in (3, 5, 9))
    keys = Keys(jax.random.key(0), jax.random.key(1))
    for number, told in ((0, 1), (1, 0), (4, 0), (5, 1), (6, 0)):
        now = {**state, "round": jnp.int32(number)}
        view, _ = masked.select(now, (), keys, server_view(PARAMS))
        np.testing.assert_array_equal(view.trained["in/kernel"].value, [[1, -2]])
        np.testing.assert_array_equal(view.trained["out/kernel"].value, [[2, -2], [2, 2]])
        data = write(view.trained)
        assert len(data) == int(message_bytes(view.trained)) == told + 4 * 10
        assert int(side_bytes(view.trained)) == told
        assert not told or data[0] == 0b10100000
    deployed = masked.deployed(state, PARAMS)
    toy.assert_same_bits(deployed, {k: p.value for k, p in view.trained.items()})


def test_a_mask_is_told_with_what_is_sent():
    """Not with the first part, where that stays with the client."""
    method = _pruning(sparsity=0.3)
    view = server_view(PARAMS)
    view.trained["in/bias"] = view.trained["in/bias"]._replace(bits=0, sent=0)
    state = method.init(jax.random.key(0), view)
    masked, _ = method.at(0, state, RECIPE)
    message = masked.select(state, (), Keys(None, None), view)[0].trained
    assert len(write(message)) == int(message_bytes(message)) == 1 + 4 * 8


def test_schedules():
    options = {"sparsity": 0.6, "steps": 3, "every": 2, "prune_from": 4}
    for schedule, expected in {
        "constant": [0.6, 0.6, 0.6],
        "step": [0.2, 0.4, 0.6],
        "cubic": [0.6 * 19 / 27, 0.6 * 26 / 27, 0.6],
    }.items():
        turns = _pruning(schedule=schedule, **options).turns
        assert [turn.round for turn in turns] == [4, 6, 8]
        np.testing.assert_allclose([turn.sparsity for turn in turns], expected)
    refined = _pruning(refine_every=3, refine_until=15, **options).turns
    assert [turn.round for turn in refined] == [4, 6, 8, 11, 14]
    # No mask is made that nobody would train.
    assert [t.round for t in FederatedPruning(AXES, SHAPES, 6, **options).turns] == [4]


# ------------------------------------------------------------------ on a network


@pytest.fixture(scope="module")
def task():
    return toy.make_task(hidden=(12, 10))


@pytest.fixture(scope="module")
def params(task):
    return toy.make_params(task)


def _method(task, spec="federated_pruning", rounds=8, more=(), **options):
    sections = {"federated_pruning": {"prune_from": 0, **options}, **dict(more)}
    return toy.make_method(task, spec, toy.make_context(task, rounds=rounds), **sections)


@pytest.mark.parametrize("allocation", ["uniform", "adaptive"])
@pytest.mark.parametrize("sparsity", [0.1, 0.35, 0.5, 0.8])
def test_allocations_meet_the_sparsity_within_a_unit(task, params, allocation, sparsity):
    method = _method(task, sparsity=sparsity, allocation=allocation, least_share=0.05)
    state = method.init(jax.random.key(0), server_view(params))
    counts = method.counts(sparsity, state["scores"])
    shapes = {path: value.shape for path, value in params.items()}
    # All but the last bias has a prunable width.
    total = parameters(task.axes, shapes, {})
    target = total - sparsity * (total - 4)
    found = parameters(task.axes, shapes, counts)
    larger = [parameters(task.axes, shapes, {**counts, w: n + 1}) for w, n in counts.items()]
    assert found <= target < max(larger)


def test_adaptive_takes_from_the_width_that_matters_little(task, params):
    method = _method(task, sparsity=0.3, allocation="adaptive", least_share=0.3)
    flat = np.linspace(0.9, 1.1, 12), np.array([0.001] * 9 + [1.0])
    counts = method.counts(0.3, dict(zip(("dense1", "dense2"), flat)))
    # dense2 goes down to 3 of 10 first.
    assert counts["dense2"] == 3 and counts["dense1"] > 6
    assert _method(task, sparsity=0.3).counts(0.3, {})["dense2"] > 3


def test_masks_are_nested_under_a_growing_schedule(task, params):
    method = _method(task, sparsity=0.8, schedule="step", steps=4, every=1, score="random")
    state = method.init(jax.random.key(0), server_view(params))
    before = {width: set(range(n)) for width, n in method.groups.totals.items()}
    for number in range(4):
        masked, recipe = method.at(number, state, RECIPE)
        assert recipe.until == (1, 2, 3, RECIPE.until)[number]
        kept = {w: set(np.asarray(k.indices).tolist()) for w, k in masked.kept(state).items()}
        assert all(kept[w] < before[w] for w in kept) and kept.keys() == before.keys()
        before, state = kept, masked.revise(state, None, params, {}, REPORT)


@pytest.mark.parametrize("pruned", ["keep", "zero"])
def test_pruned_units_come_back_where_they_are_kept(pruned):
    method = _pruning(sparsity=0.3, pruned=pruned, refine_every=2, refine_until=3)
    state = method.init(jax.random.key(0), server_view(PARAMS))
    masked, _ = method.at(0, state, RECIPE)
    for number, kept in enumerate([[0, 2], [0, 2], [1, 2] if pruned == "keep" else [0, 2]]):
        masked, _ = method.at(number, state, RECIPE)
        np.testing.assert_array_equal(masked.kept(state)["h"].indices, kept)
        # Unit 0 shrinks below unit 1, which is pruned.
        small = {path: value.at[..., 0].set(0) for path, value in PARAMS.items()}
        small["out/kernel"] = PARAMS["out/kernel"].at[0].set(0)
        state = masked.revise(state, None, small, {}, REPORT)


def test_what_is_zeroed_stays_pruned_though_the_shares_of_the_widths_change(task, params):
    """Adaptive: a width whose scores rise takes room from another, but no unit that is gone."""
    phases = {"refine_every": 1, "refine_until": 6, "pruned": "zero"}
    method = _method(task, sparsity=0.5, allocation="adaptive", **phases)
    state = method.init(jax.random.key(0), server_view(params))
    before = {width: set(range(n)) for width, n in method.groups.totals.items()}
    for number in range(6):
        masked, _ = method.at(number, state, RECIPE)
        kept = {w: set(np.asarray(k.indices).tolist()) for w, k in masked.kept(state).items()}
        assert all(kept[width] <= before[width] for width in kept)
        # Every round other units, and another layer, are the largest.
        keys = jax.random.split(jax.random.key(number), len(params))
        drawn = {
            path: value * jnp.exp(2 * jax.random.normal(key, value.shape[-1:]))
            for key, (path, value) in zip(keys, params.items())
        }
        before, state = kept, masked.revise(state, None, drawn, {}, REPORT)


@pytest.fixture(scope="module")
def run(task, params):
    """A full round, a mask for 1 and 2, a refined one for 3 and 4: engine, servers, results."""
    method = _method(
        task, rounds=5, prune_from=1, refine_every=2, refine_until=4, score="movement", decay=0.0
    )
    assert [turn.round for turn in method.turns] == [1, 3]
    engine = toy.make_engine(task, method, epochs=1)
    server = engine.init(params)
    servers, results = [_host(engine, server)], []
    for number in range(5):
        server, (result,) = engine.run(server, number, 1)
        servers.append(_host(engine, server))
        results.append(result)
    return engine, servers, results


def _host(engine, server):
    return jax.tree.map(np.array, engine.host(server))


def _kept(method, number, server, width):
    return np.asarray(method.at(number, server.state, RECIPE)[0].kept(server.state)[width].indices)


def test_pruned_entries_keep_their_bits(run):
    """Though the server has momentum, from round 0 on."""
    engine, servers, _ = run
    for number in range(1, 5):
        before, after = servers[number].params, servers[number + 1].params
        kept = _kept(engine.method, number, servers[number], "dense1")
        for path, axis in (("dense1/kernel", -1), ("dense1/bias", 0), ("dense2/kernel", 0)):
            gone = np.setdiff1d(np.arange(12), kept)
            assert len(gone)
            left, right = (np.take(tree[path], gone, axis) for tree in (before, after))
            np.testing.assert_array_equal(left, right)
        assert not np.array_equal(before["dense1/kernel"], after["dense1/kernel"])


def test_bytes_are_the_kept_values_and_a_bit_a_unit_at_every_mask(task, params, run):
    engine, _, results = run
    shapes = {path: value.shape for path, value in params.items()}
    size = parameters(task.axes, shapes, engine.method.counts(0.5, {}))
    whole = parameters(task.axes, shapes, {})
    assert [set(result.up.tolist()) for result in results] == [{4 * whole}] + 4 * [{4 * size}]
    # 22 units are 3 bytes.
    extra = [0, 3, 0, 3, 0]
    assert [int((result.down - result.up).max()) for result in results] == extra
    assert [int(result.side.max()) for result in results] == extra


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_run_resumes_in_any_phase(run, stop):
    engine, servers, _ = run
    # What a checkpoint holds, and an engine that knows of no phase.
    engine._phase = None
    server = engine.place(servers[stop])
    for number in range(stop, 5):
        server, _ = engine.run(server, number, 1)
    toy.assert_same_bits(engine.host(server), servers[-1])


def test_the_answer_is_the_same_in_the_middle_of_a_phase(run):
    engine, servers, _ = run
    answers = [engine.method.at(4, servers[i].state, engine.recipe) for i in (4, 5)]
    assert answers[0] == answers[1]
    # After the last mask the scores no longer move.
    toy.assert_same_bits(servers[3].state["scores"], servers[5].state["scores"])
    assert not np.array_equal(*(servers[i].state["scores"]["dense1"] for i in (2, 3)))


def test_composes(task, params):
    """With frozen layers outside, dropout and a codec inside."""
    more = {
        "partial_training": {"freeze": (("dense1/.*", True),)},
        "federated_dropout": {"rates": (("dense2", 0.5),)},
        "quantize": {"up": "uniform8", "down": ""},
    }
    spec = "partial_training+federated_pruning+federated_dropout+quantize"
    method = _method(task, spec, more=more.items(), sparsity=0.5, score="weight_l1")
    server, (result,) = toy.run(toy.make_engine(task, method, epochs=1), params, 1)
    toy.assert_same_bits(server.params["dense1/kernel"], params["dense1/kernel"])
    counts = method.methods[1].counts(0.5, {})
    half = max(1, round(counts["dense2"] / 2))
    # dense2's kernel and bias, and the logits' of 4 classes, are sent.
    values = (counts["dense1"] + 1) * half + (half + 1) * 4
    assert set(result.down.tolist()) == {4 * values + 3}
    # A byte a value, and a norm of 4 bytes for each of four arrays.
    assert set(result.up.tolist()) == {values + 4 * 4}
    answer, _ = method.at(1, server.state, RECIPE)
    deployed = answer.deployed(server.state, server.params)
    assert task.axes.widths({k: v.shape for k, v in deployed.items()}) == counts


def test_who_remembers_stands_to_the_left_even_before_the_first_mask(task, params):
    method = _method(task, "federated_pruning+scaffold", prune_from=3)
    with pytest.raises(UserError, match="further left"):
        method.init(jax.random.key(0), server_view(params))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"score": "vibes"}, "score must be one of weight_l1"),
        ({"score": "taylor"}, "taylor needs a round before the first mask"),
        ({"sparsity": 1.0}, "sparsity must be at least 0 and below 1"),
        ({"sparsity": 0.9}, "no sub-model has at most"),
        ({"allocation": "adaptive", "score": "movement", "prune_from": 2}, "either sign"),
        ({"prunable": (("h", False),)}, "leaves no width"),
        ({"prunable": (("w", True),)}, "matches the whole of no name"),
        ({"steps": 0}, "steps must be at least 1"),
        (
            {"steps": 2, "refine_every": 5, "refine_until": 15},
            "refine_until = 15 comes before .* round 15",
        ),
    ],
)
def test_refusals(options, match):
    with pytest.raises(UserError, match=match):
        _pruning(**options)
