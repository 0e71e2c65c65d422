import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlite.errors import UserError
from fedlite.federated.server_optimizer import server_optimizer
from fedlite.methods import Keys, Report, Sums, Update, server_view
from fedlite.methods.heterofl import kept_units
from fedlite.methods.smafd import draw
from fedlite.wire import Part, message_bytes, write
from tests import toy

REPORT = Report(jnp.float32(1), jnp.int32(1), jnp.int32(1), jnp.float32(1))
SIZES = {
    "dense1/bias": 6,
    "dense1/kernel": 384,
    "dense2/bias": 5,
    "dense2/kernel": 30,
    "logits/bias": 4,
    "logits/kernel": 20,
}


@pytest.fixture(scope="module")
def task():
    return toy.make_task()


@pytest.fixture(scope="module")
def params(task):
    return toy.make_params(task)


@functools.partial(jax.jit, static_argnums=0)
def _round(method, state, mine, values, key):
    """What one client receives, and what it uploads if every value it holds grew by 1."""
    view, context = method.select(state, mine, Keys(key, key), server_view(values))
    parts = {path: Part(jnp.ones_like(part.value)) for path, part in view.trained.items()}
    update, mine = method.deselect(context, Update(parts, jnp.float32(1)), REPORT)
    return view, update.parts, mine


def _assert_meter(parts):
    assert int(message_bytes(parts)) == len(write(parts))


# ------------------------------------------------------------------ FedDropoutAvg


@pytest.mark.parametrize("side", ["client", "server"])
def test_feddropoutavg_keeps_a_share_and_claims_only_that(task, params, side):
    method = toy.make_method(task, "feddropoutavg", feddropoutavg={"rate": 0.3, "side": side})
    view, parts, _ = _round(method, {}, (), params, jax.random.key(0))
    kept = np.concatenate([np.asarray(part.cover).ravel() for part in parts.values()])
    assert set(kept) == {0, 1}
    # 449 draws deviate by less than five times sqrt(0.3 * 0.7 / 449) = 0.022.
    assert abs(kept.mean() - 0.7) < 0.11
    for part in parts.values():
        np.testing.assert_array_equal(part.value, part.cover)
    _assert_meter(parts)
    # Nothing but values travels; the server's side drops after a full upload.
    assert len(write(parts)) == 4 * (kept.sum() if side == "client" else 449)
    assert int(message_bytes(view.trained)) == 4 * 449


def test_feddropoutavg_draws_anew_for_each_client(task, params):
    method = toy.make_method(task, "feddropoutavg")
    masks = [
        np.asarray(_round(method, {}, (), params, jax.random.key(i))[1]["dense1/kernel"].cover)
        for i in range(2)
    ]
    assert 0.3 < np.mean(masks[0] != masks[1]) < 0.55


def test_feddropoutavg_empty_entries_by_hand(task, params):
    sums = Sums({"a": jnp.array([6.0, 0.0])}, {"a": jnp.array([2.0, 0.0])})
    state = {"a": jnp.array([5.0, 7.0])}
    zero = toy.make_method(task, "feddropoutavg", feddropoutavg={"empty": "zero"})
    total, claim = zero.combine(state, None, sums, REPORT)
    # Where nobody kept the entry, 7 - 7 = 0 is left of it.
    assert total["a"].tolist() == [6, -7] and claim["a"].tolist() == [2, 1]
    keep = toy.make_method(task, "feddropoutavg")
    assert keep.combine(keep.init(None, server_view(params)), None, sums, REPORT) == sums
    new = zero.revise(state, None, {"a": jnp.zeros(2), "b": jnp.ones(1)}, {}, REPORT)
    assert new.keys() == {"a"} and not new["a"].any()


def test_feddropoutavg_zeroes_in_a_run_what_nobody_kept(task, params):
    method = toy.make_method(task, "feddropoutavg", feddropoutavg={"rate": 0.5, "empty": "zero"})
    engine = toy.make_engine(task, method, clients=2, server=server_optimizer("sgd"))
    server, _ = toy.run(engine, params, rounds=1)
    kernel = server.params["dense1/kernel"]
    # The odds that both clients drop an entry are a quarter.
    assert 0.15 < np.mean(kernel == 0) < 0.35
    toy.assert_same_bits(server.state["dense1/kernel"], kernel)


# ------------------------------------------------------------------ SMAFD

_draw = jax.jit(draw)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 2.0]), st.integers(1, 9)), min_size=5, max_size=5
    ),
    st.integers(0, 99),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_smafd_draws_scored_tensors_first_and_no_more_than_needed(tensors, seed, data):
    scores, sizes = zip(*tensors)
    target = data.draw(st.integers(1, sum(sizes)))
    chosen = _draw(jax.random.key(seed), jnp.array(scores), jnp.array(sizes), target)
    chosen = np.asarray(chosen)
    total = np.array(sizes)[chosen].sum()
    assert total >= target
    # The last tensor of the draw was needed: without the largest it is too little.
    assert total - np.array(sizes)[chosen].max() < target
    scored = np.array(scores) > 0
    assert not chosen[~scored].any() or chosen[scored].all()


def test_smafd_draw_has_the_odds_of_the_sweeps():
    scores = np.array([0.6, 0.3, 0.1, 0.0])
    keys = jax.random.split(jax.random.key(0), 20_000)
    chosen = jax.jit(jax.vmap(lambda key: draw(key, jnp.array(scores), [1, 1, 1, 1], 1)))(keys)
    # One tensor is wanted: in a sweep, i is reached if none before it hit; sweeps repeat.
    reach = scores * np.cumprod(1 - np.r_[0, scores[:-1]])
    np.testing.assert_allclose(np.mean(chosen, 0), reach / reach.sum(), atol=0.015)


def test_smafd_scores_and_keeps_a_set_that_helps(task, params):
    method = toy.make_method(task, "smafd")
    state = jax.jit(method.init)(jax.random.key(0), server_view(params))
    size = sum(SIZES[path] for path, on in state["chosen"].items() if on)
    assert size >= 0.7 * 449
    revise = jax.jit(
        lambda state, loss, key: method.revise(state, key, params, {}, REPORT._replace(loss=loss))
    )
    # The last loss starts at 0, so that the first round is no improvement.
    second = revise(state, 2.0, jax.random.key(1))
    assert float(second["loss"]) == 2 and not any(second["scores"].values())
    third = revise(second, 1.5, jax.random.key(2))
    assert third["chosen"] == second["chosen"]
    for path, on in second["chosen"].items():
        assert float(third["scores"][path]) == (0.25 if on else 0)
    worse = [revise(third, 1.6, jax.random.key(i)) for i in range(8)]
    assert all(new["scores"] == third["scores"] for new in worse)
    assert any(new["chosen"] != third["chosen"] for new in worse)


def _smafd(task, params, **options):
    method = toy.make_method(task, "smafd", smafd=options)
    view = server_view(params)
    state = jax.jit(method.init)(jax.random.key(0), view)
    chosen = {path: jnp.array(path.startswith("dense1")) for path in SIZES}
    mine = jax.jit(method.init_client)(jax.random.key(1), view)
    return method, {**state, "chosen": chosen}, mine


def test_smafd_sends_the_set_and_trains_stale_values_elsewhere(task, params):
    method, state, mine = _smafd(task, params)
    view, parts, new = _round(method, state, mine, params, jax.random.key(0))
    for path in SIZES:
        on = path.startswith("dense1")
        start = params[path] if on else mine[path]
        toy.assert_same_bits(view.trained[path].value, start)
        toy.assert_same_bits(new[path], start + 1)
        # The server keeps its own where nothing was sent: no claim.
        assert float(parts[path].cover) == on and np.all(parts[path].value == on)
    # A client's own initialisation has the server's entries, in another order.
    own, server = (np.ravel(v["logits/kernel"]) for v in (mine, params))
    assert sorted(own) == sorted(server) and not np.array_equal(own, server)
    for message, ids in ((view.trained, 1), (parts, 0)):
        _assert_meter(message)
        assert len(write(message)) == 4 * 390 + ids
    # Bits in the order of the paths: dense1/bias and dense1/kernel of six.
    assert write(view.trained)[0] == 0b11000000


def test_smafd_without_stale_values_receives_all(task, params):
    method, state, mine = _smafd(task, params, stale=False)
    view, parts, new = _round(method, state, mine, params, jax.random.key(0))
    assert mine == new == {}
    toy.assert_same_bits({k: part.value for k, part in view.trained.items()}, params)
    assert len(write(view.trained)) == 4 * 449 + 1 and len(write(parts)) == 4 * 390


def test_smafd_leaves_other_tensors_to_the_bit_and_resumes(task, params):
    engine = toy.make_engine(task, toy.make_method(task, "smafd", smafd={"rate": 0.9}))
    first, _ = engine.run(engine.init(params), 0, 1)
    half = jax.tree.map(np.asarray, first)
    initial = jax.tree.map(np.asarray, engine.init(params).state)
    for path, on in initial["chosen"].items():
        assert bool(on) != np.array_equal(half.params[path], params[path])
    server, results = toy.run(engine, params, rounds=3)
    assert all((result.down == result.up + 1).all() for result in results)
    assert any(result.ids.tolist() != results[0].ids.tolist() for result in results)
    toy.assert_same_bits(toy.run(engine, params, rounds=3)[0], server)


# ------------------------------------------------------------------ HeteroFL


def test_kept_units_are_rounded_up_exactly():
    assert [kept_units(n, 0.25) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]
    # 0.1 * 30 is more than 3 in floats.
    assert kept_units(30, 0.1) == 3 and kept_units(7, 1.0) == 7


def test_heterofl_prefixes_by_hand(task, params):
    method = toy.make_method(task, "heterofl")
    sizes = []
    # Of the widths 6 and 5: all, 3 and 3, 2 and 2.
    for level, (one, two) in enumerate([(6, 5), (3, 3), (2, 2)]):
        view, parts, mine = _round(method, (), jnp.int32(level), params, jax.random.key(0))
        assert int(mine) == level
        kernel = view.trained["dense2/kernel"].value
        toy.assert_same_bits(kernel[:one, :two], params["dense2/kernel"][:one, :two])
        assert not kernel[one:].any() and not kernel[:, two:].any()
        cover = np.broadcast_to(parts["dense2/kernel"].cover, (6, 5))
        assert cover[:one, :two].all() and cover.sum() == one * two
        np.testing.assert_array_equal(parts["dense2/kernel"].value, cover)
        values = 64 * one + one + one * two + two + two * 4 + 4
        for message in ({**view.trained, **view.read}, parts):
            _assert_meter(message)
            assert len(write(message)) == 4 * values
        sizes.append(values)
    assert sizes == [449, 223, 148]


def test_heterofl_zero_aggregation_claims_everything(task, params):
    method = toy.make_method(task, "heterofl", heterofl={"aggregation": "zero"})
    _, parts, _ = _round(method, (), jnp.int32(2), params, jax.random.key(0))
    assert np.all(np.asarray(parts["dense2/kernel"].cover) == 1)
    assert len(write(parts)) == 4 * 148


def test_heterofl_trains_as_the_smaller_model_would(task, params):
    """Level 0.5 in the masked full shape, against the model of half the widths."""
    method = toy.make_method(task, "heterofl", heterofl={"levels": (0.5,), "assignment": "dynamic"})
    split = toy.make_split((6, 9))
    masked, _ = toy.run(toy.make_engine(task, method, split=split, clients=2), params)
    small = toy.make_task(hidden=(3, 3))
    cut = {
        "dense1/kernel": params["dense1/kernel"][..., :3],
        "dense1/bias": params["dense1/bias"][:3],
        "dense2/kernel": params["dense2/kernel"][:3, :3],
        "dense2/bias": params["dense2/bias"][:3],
        "logits/kernel": params["logits/kernel"][:3],
        "logits/bias": params["logits/bias"],
    }
    alone, _ = toy.run(
        toy.make_engine(small, toy.make_method(small, "fedavg"), split=split, clients=2), cut
    )
    for path, value in alone.params.items():
        inside = tuple(map(slice, value.shape))
        np.testing.assert_allclose(masked.params[path][inside], value, rtol=1e-4, atol=1e-6)
        # Entries that nobody holds keep their bits.
        outside = np.ones(params[path].shape, bool)
        outside[inside] = False
        toy.assert_same_bits(masked.params[path][outside], np.asarray(params[path])[outside])


def test_heterofl_masks_gradients_where_zero_would_not_stay_zero(task, params):
    method = toy.make_method(task, "heterofl")
    view, _, _ = _round(method, (), jnp.int32(1), params, jax.random.key(0))
    optimizer = method.client_optimizer(view, optax.sgd(1.0))
    values = {path: part.value for path, part in view.trained.items()}
    ones = jax.tree.map(jnp.ones_like, values)
    steps, _ = optimizer.update(ones, optimizer.init(values), values)
    np.testing.assert_array_equal(steps["dense1/bias"], [-1, -1, -1, 0, 0, 0])
    np.testing.assert_array_equal(steps["logits/bias"], -np.ones(4))


def test_heterofl_levels_are_fixed_or_dynamic(task, params):
    keys = jax.random.split(jax.random.key(0), 3000)
    view = server_view({"dense2/bias": params["dense2/bias"]})

    @functools.partial(jax.jit, static_argnums=0)
    def held(method, mine, key):
        received, _ = method.select((), mine, Keys(None, key), view)
        return jnp.sum(received.trained["dense2/bias"].sent)

    fixed = toy.make_method(task, "heterofl")
    levels = jax.jit(jax.vmap(lambda key: fixed.init_client(key, view)))(keys)
    shares = np.bincount(levels) / 3000
    np.testing.assert_allclose(shares, np.full(3, 1 / 3), atol=0.04)
    assert [int(held(fixed, jnp.int32(1), key)) for key in keys[:6]] == [3] * 6
    dynamic = toy.make_method(task, "heterofl", heterofl={"assignment": "dynamic"})
    assert dynamic.init_client(keys[0], view) == ()
    assert {int(held(dynamic, (), key)) for key in keys[:20]} == {5, 3, 2}


def test_refusals(task):
    for name, options, match in [
        ("feddropoutavg", {"rate": 1.0}, "below 1"),
        ("feddropoutavg", {"side": "both"}, "client or server"),
        ("feddropoutavg", {"empty": "old"}, "keep or zero"),
        ("smafd", {"rate": -0.1}, "at least 0"),
        ("heterofl", {"levels": ()}, "above 0 and at most 1"),
        ("heterofl", {"levels": (0.5, 1.5)}, "above 0 and at most 1"),
        ("heterofl", {"assignment": "random"}, "fixed or dynamic"),
        ("heterofl", {"aggregation": "median"}, "count, zero"),
    ]:
        with pytest.raises(UserError, match=match):
            toy.make_method(task, name, **{name: options})
