"""User-level privacy: what one client can change, what noise is added, what is refused."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlite.errors import UserError
from fedlite.federated.server_optimizer import server_optimizer
from fedlite.methods import Report, Sums, Update, View
from fedlite.wire import Part
from tests import toy

PARTICIPATION = {"dp_fedavg": "uniform", "dp_ftrl": "cyclic"}
CLIP = 0.5


@pytest.fixture(scope="module")
def task():
    return toy.make_task(hidden=(6,))


@pytest.fixture(scope="module")
def params(task):
    return toy.make_params(task)


def make(task, name, *, spec=None, context=None, sections=None, **options):
    """A private method in its setting; `spec` puts it in a chain."""
    given = {"weighting": "uniform", "participation": PARTICIPATION[name], **(context or {})}
    return toy.make_method(
        task,
        spec or name,
        context=toy.make_context(task, **given),
        **{name: options, **(sections or {})},
    )


def report():
    return Report(jnp.float32(0), jnp.int32(1), jnp.int32(1), jnp.float32(1))


def cohort_sums(method, state, updates):
    """The engine's sums over a cohort of updates, dicts of arrays."""
    total, claim = {}, {}
    for update in updates:
        parts = {path: Part(jnp.asarray(value)) for path, value in update.items()}
        _, context = method.select(state, (), None, View(parts, {}))
        upload, _ = method.deselect(context, Update(parts, jnp.float32(7)), report())
        for path, part in upload.parts.items():
            total[path] = total.get(path, 0) + upload.weight * part.cover * part.value
            claim[path] = claim.get(path, 0) + upload.weight * part.cover
    return Sums(total, claim)


def combine(method, state, sums, key=0):
    """The aggregate after the server's turn."""
    total, claim = method.combine(state, jax.random.key(key), sums, report())
    return {path: total[path] / claim[path] for path in total}


def distance(one, two):
    return float(optax.global_norm({path: one[path] - two[path] for path in one}))


# ------------------------------------------------------------------ what a client can change

hard = st.one_of(st.floats(width=32), st.sampled_from([math.nan, math.inf, -math.inf, 3e38]))
updates = st.lists(hard, min_size=5, max_size=5).map(
    lambda values: {
        "a": np.array(values[:2], np.float32),
        "b": np.array([values[2:]], np.float32),
    }
)
ABSENT = {"a": np.zeros(2, np.float32), "b": np.zeros((1, 3), np.float32)}


@pytest.fixture(scope="module", params=PARTICIPATION)
def quiet(request, task):
    """A method's aggregate of three updates, without noise, jitted."""
    method = make(task, request.param, clip=CLIP, noise_multiplier=0)
    return jax.jit(lambda updates: combine(method, (), cohort_sums(method, (), updates)))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_one_client_moves_the_aggregate_by_at_most_the_clip(quiet, data):
    cohort = [data.draw(updates) for _ in range(3)]
    before = quiet(cohort)
    assert all(np.isfinite(value).all() for value in before.values())
    limit = CLIP / 3 * (1 + 1e-5)
    assert distance(before, quiet([*cohort[:2], ABSENT])) <= limit
    assert distance(before, quiet([*cohort[:2], data.draw(updates)])) <= 2 * limit


def test_the_bound_is_reached_and_small_updates_are_kept(quiet):
    large = {"a": np.array([3e6, 0], np.float32), "b": np.zeros((1, 3), np.float32)}
    assert distance(quiet([large] * 3), quiet([large, large, ABSENT])) == pytest.approx(CLIP / 3)
    small = {"a": np.array([0.3, 0], np.float32), "b": np.array([[0, 0.4, 0]], np.float32)}
    aggregate = quiet([small, ABSENT, ABSENT])
    np.testing.assert_allclose(aggregate["a"], [0.1, 0], rtol=1e-6)


def test_in_the_engine_a_client_that_diverges_counts_as_zero_and_is_reported(task, params):
    split = toy.make_split()
    good = split.arrays["x"].astype(np.float32) / 255
    bad = good.copy()
    bad[split.offsets[2] : split.offsets[3]] = np.nan
    context = {"clients_per_round": 8}
    method = make(task, "dp_fedavg", context=context, clip=CLIP, noise_multiplier=0)
    moved = []
    for x in (good, bad):
        ours = dataclasses.replace(split, arrays={**split.arrays, "x": x})
        engine = toy.make_engine(
            task, method, split=ours, clients=8, uniform=True, server=server_optimizer()
        )
        server, (result,) = toy.run(engine, params, 1)
        assert result.nonfinite == (x is bad)
        moved.append(server.params)
    assert 0.2 * CLIP / 8 < distance(*moved) <= CLIP / 8 * (1 + 1e-4)


# ------------------------------------------------------------------ without noise: FedAvg


@pytest.mark.parametrize("name", PARTICIPATION)
def test_without_noise_and_clip_it_is_server_sgd(task, params, plain, name):
    method = make(task, name, clip=math.inf, noise_multiplier=0)
    toy.assert_close(server_sgd(task, params, method), plain, 1e-6)


@pytest.fixture(scope="module")
def plain(task, params):
    return server_sgd(task, params, toy.make_method(task, "fedavg"))


def server_sgd(task, params, method):
    """Parameters after three rounds over clients none of which is empty."""
    split = toy.make_split(sizes=(5, 1, 12, 8, 3, 2))
    engine = toy.make_engine(task, method, split=split, uniform=True, server=server_optimizer())
    return toy.run(engine, params)[0].params


# ------------------------------------------------------------------ noise

WIDE = 20_000


def zeros(method, state):
    return cohort_sums(method, state, [{"a": np.zeros(WIDE, np.float32)}] * 3)


def wide_view():
    return View({"a": Part(jnp.zeros(WIDE))}, {})


def test_gaussian_noise_has_the_deviation_z_clip_over_the_denominator(task):
    method = make(task, "dp_fedavg", clip=CLIP, noise_multiplier=4.0)
    sums = zeros(method, ())
    noise = combine(method, (), sums)["a"]
    assert float(jnp.std(noise)) == pytest.approx(4 * CLIP / 3, rel=0.03)
    assert not np.array_equal(noise, combine(method, (), sums, key=1)["a"])
    # Nobody came: the same noise over the same denominator.
    nobody = Sums({"a": jnp.zeros(WIDE)}, {"a": jnp.float32(0)})
    toy.assert_same_bits(combine(method, (), nobody)["a"], noise)


def prefix_noise(method, rounds):
    """Sum of the aggregates of rounds without updates, after each round."""

    @jax.jit
    def one(state):
        aggregate = combine(method, state, zeros(method, state))
        return method.revise(state, None, None, aggregate, None), aggregate["a"]

    state, total, prefixes = method.init(jax.random.key(5), wide_view()), 0, []
    for _ in range(rounds):
        state, noise = one(state)
        total = total + np.asarray(noise)
        prefixes.append(total)
    return prefixes


def test_tree_noise_of_the_sum_grows_with_the_digits(task):
    options = {"clip": CLIP, "noise_multiplier": 4.0}
    unit = (4 * CLIP / 3) ** 2
    tree = make(task, "dp_ftrl", context={"rounds": 9}, mechanism="tree", **options)
    for step, prefix in enumerate(prefix_noise(tree, 9)):
        assert prefix.var() == pytest.approx((step + 1).bit_count() * unit, rel=0.05)
    # A new tree after four rounds, on top of what the old one left behind.
    again = make(
        task, "dp_ftrl", context={"rounds": 9}, mechanism="tree", restart_every=4, **options
    )
    for prefix, nodes in zip(prefix_noise(again, 9), [1, 1, 2, 1, 2, 2, 3, 2, 3], strict=True):
        assert prefix.var() == pytest.approx(nodes * unit, rel=0.05)


def test_matrix_noise_of_the_sum(task):
    options = {"mechanism": "matrix", "clip": CLIP, "noise_multiplier": 4.0}
    method = make(task, "dp_ftrl", context={"rounds": 9}, **options)
    coefs = method._coefs()
    assert len(coefs) == method.separation == 2
    strategy = sum(c * np.eye(9, k=-band) for band, c in enumerate(coefs))
    exact = np.sum((np.tri(9) @ np.linalg.inv(strategy)) ** 2, axis=1) * (4 * CLIP / 3) ** 2
    for prefix, variance in zip(prefix_noise(method, 9), exact, strict=True):
        assert prefix.var() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("mechanism", ["tree", "tree_efficient", "matrix"])
def test_server_momentum_over_the_increments_is_dp_ftrlm(task, mechanism):
    """v_t = mu v_{t-1} + (G_t + N_t), y_{t+1} = y_0 - eta v_t."""
    rounds, mu, eta = 9, 0.9, 0.3
    method = make(task, "dp_ftrl", context={"rounds": rounds}, mechanism=mechanism, clip=CLIP)
    optimizer = server_optimizer("momentum", learning_rate=eta, momentum=mu)
    start = {"a": jnp.asarray(np.random.default_rng(1).normal(size=4), jnp.float32)}
    state, params = method.init(jax.random.key(2), View({"a": Part(start["a"])}, {})), start
    opt_state, rng = optimizer.init(start), np.random.default_rng(0)
    gradients, noise, velocity = 0, 0, 0
    for _ in range(rounds):
        updates = [{"a": rng.normal(size=4).astype(np.float32)} for _ in range(3)]
        sums = cohort_sums(method, state, updates)
        aggregate = combine(method, state, sums)
        gradients = gradients - np.asarray(sums.total["a"], np.float64) / 3
        noise = noise - np.asarray(state.increment["a"], np.float64) * CLIP / 3
        velocity = mu * velocity + (gradients + noise)
        step, opt_state = optimizer.update({"a": -aggregate["a"]}, opt_state, params)
        params = optax.apply_updates(params, step)
        np.testing.assert_allclose(params["a"], start["a"] - eta * velocity, atol=2e-5)
        state = method.revise(state, None, params, aggregate, None)
    assert np.abs(noise).min() > 0


@pytest.mark.parametrize("mechanism", ["tree_efficient", "matrix"])
def test_the_state_keeps_its_shapes(task, mechanism):
    context = {"rounds": 12}
    method = make(task, "dp_ftrl", context=context, mechanism=mechanism, restart_every=9)
    state = method.init(jax.random.key(0), wide_view())
    after = jax.eval_shape(lambda state: method.revise(state, None, None, None, None), state)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), after
    )


# ------------------------------------------------------------------ the adaptive clip


def test_the_clip_follows_its_quantile_geometrically(task):
    method = make(task, "dp_fedavg", adaptive=True, clip=2.0, noise_multiplier=0, quantile=0.25)
    state = method.init(jax.random.key(0), wide_view())
    assert float(state) == 2
    lengths = [1.0, 3.0, 5.0]
    sums = cohort_sums(method, state, [{"a": np.array([n], np.float32)} for n in lengths])
    # One within, two clipped to 2.
    np.testing.assert_allclose(sums.total["a"], [1 + 2 + 2], rtol=1e-6)
    after = method.revise(state, None, None, combine(method, state, sums), None)
    assert float(after) == pytest.approx(2 * math.exp(-0.2 * (1 / 3 - 0.25)), rel=1e-6)
    for _ in range(300):
        sums = cohort_sums(method, after, [{"a": np.array([n], np.float32)} for n in lengths])
        after = method.revise(after, None, None, combine(method, after, sums), None)
    assert 0.9 < float(after) < 1.1


def test_both_queries_together_cost_the_noise_multiplier(task):
    method = make(task, "dp_fedavg", adaptive=True, noise_multiplier=1.5, count_noise=2.0)
    assert method.update_noise**-2 + (2 * 2.0) ** -2 == pytest.approx(1.5**-2)
    state = method.init(jax.random.key(0), wide_view())
    aggregates = [combine(method, state, zeros(method, state), key) for key in range(200)]
    assert float(jnp.std(aggregates[0]["a"])) == pytest.approx(method.update_noise / 3, rel=0.03)
    counts = np.array([aggregate["count:clip"] for aggregate in aggregates])
    assert counts.std() == pytest.approx(2 / 3, rel=0.25)
    assert counts.mean() == pytest.approx(0.5, abs=0.25)
    plain = make(task, "dp_fedavg", noise_multiplier=1.5)
    assert method.privacy(4)["epsilon"] == plain.privacy(4)["epsilon"]


# ------------------------------------------------------------------ the guarantee


def test_privacy_is_dp_accountings_figure(task):
    context = {"participation": "poisson"}
    answer = make(task, "dp_fedavg", context=context, noise_multiplier=2.0).privacy(20)
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(3 / 8, dp_accounting.GaussianDpEvent(2.0)), 20
    )
    own = pld.PLDAccountant().compose(event).get_epsilon(8**-1.1)
    assert answer["epsilon"] == pytest.approx(own, rel=1e-3)
    assert answer["delta"] == 8**-1.1
    # Client 0 of two turns takes part in rounds 0, 2, 4: nodes 1 + 1 + 1, 1 + 1, and 2^2.
    ftrl = make(task, "dp_ftrl", mechanism="tree", noise_multiplier=2.0, delta=1e-2).privacy(5)
    event = dp_accounting.GaussianDpEvent(2 / math.sqrt(9))
    own = pld.PLDAccountant().compose(event).get_epsilon(1e-2)
    assert ftrl["epsilon"] == pytest.approx(own, rel=1e-3)


@pytest.mark.parametrize("name", PARTICIPATION)
def test_the_guarantee_is_told_in_words_and_json(task, name):
    method = make(task, name, noise_multiplier=3.0)
    answers = [method.privacy(rounds) for rounds in (0, 1, 4)]
    epsilons = [answer["epsilon"] for answer in answers]
    assert epsilons[0] == 0 and epsilons == sorted(set(epsilons))
    assert json.loads(json.dumps(answers[2], allow_nan=False)) == answers[2]
    assert "user-level" in answers[2]["assumptions"]
    none = make(task, name, noise_multiplier=0.0, clip=math.inf).privacy(4)
    assert none["epsilon"] is None and "no guarantee" in none["assumptions"]
    json.dumps(none, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "participation", "options"),
    [
        ("dp_fedavg", "poisson", {}),
        ("dp_fedavg", "poisson", {"adaptive": True}),
        ("dp_ftrl", "cyclic", {"mechanism": "matrix"}),
    ],
)
def test_a_target_epsilon_is_kept_for_the_whole_run(task, name, participation, options):
    context = {"rounds": 9, "participation": participation}
    method = make(task, name, context=context, epsilon=6.0, noise_multiplier=0.0, **options)
    assert 5.9 < method.privacy(9)["epsilon"] <= 6
    assert method.noise == make(task, name, context=context, epsilon=6.0, **options).noise


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("name", "context", "options", "match"),
    [
        ("dp_fedavg", {"weighting": "examples"}, {}, "client_weighting = 'uniform'"),
        ("dp_ftrl", {"weighting": "examples"}, {}, "client_weighting = 'uniform'"),
        ("dp_fedavg", {"participation": "cyclic"}, {}, "drawn at random"),
        ("dp_ftrl", {"participation": "uniform"}, {}, "twice without separation"),
        ("dp_ftrl", {"participation": "poisson"}, {}, "twice without separation"),
        ("dp_fedavg", {}, {"clip": 0.0}, "clip must be above 0"),
        ("dp_ftrl", {}, {"clip": math.nan}, "clip must be above 0"),
        ("dp_fedavg", {}, {"clip": math.inf}, "take a bound"),
        ("dp_fedavg", {}, {"clip": math.inf, "noise_multiplier": 0, "adaptive": True}, "bound"),
        ("dp_fedavg", {}, {"noise_multiplier": -1.0}, "noise_multiplier must be"),
        ("dp_ftrl", {}, {"noise_multiplier": math.nan}, "noise_multiplier must be"),
        ("dp_fedavg", {}, {"epsilon": -1.0}, "epsilon must be"),
        ("dp_fedavg", {}, {"delta": -0.1}, "delta must be"),
        ("dp_fedavg", {}, {"delta": 0.125}, "protects nobody"),
        ("dp_fedavg", {"population": 1, "clients_per_round": 1}, {}, "2 clients"),
        ("dp_fedavg", {}, {"quantile": 1.0}, "quantile must be"),
        ("dp_fedavg", {}, {"clip_learning_rate": 0.0}, "clip_learning_rate must be"),
        ("dp_fedavg", {}, {"adaptive": True, "count_noise": 0.5}, "more than half"),
        ("dp_ftrl", {}, {"mechanism": "forest"}, "tree, tree_efficient, matrix"),
        ("dp_ftrl", {}, {"restart_every": -1}, "restart_every must be"),
        ("dp_ftrl", {}, {"bands": 3}, "mechanism = 'matrix'"),
        ("dp_ftrl", {}, {"bands": 1, "mechanism": "matrix"}, "at least 2"),
    ],
)
def test_refusals(task, name, context, options, match):
    with pytest.raises(UserError, match=match):
        make(task, name, context=context, **options)


SUBMODEL = {"rates": (("dense1", 0.5),)}


@pytest.mark.parametrize("name", PARTICIPATION)
def test_a_mean_over_those_who_trained_it_is_refused(task, params, name):
    spec = f"{name}+federated_dropout"
    method = make(task, name, spec=spec, sections={"federated_dropout": SUBMODEL})
    with pytest.raises(UserError, match="aggregation = 'zero'"):
        toy.make_engine(task, method, uniform=True).init(params)


@pytest.mark.parametrize("name", PARTICIPATION)
def test_what_would_change_a_bounded_update_is_refused(task, name):
    with pytest.raises(UserError, match="put it to the right"):
        make(task, name, spec=f"quantize+{name}")


@pytest.mark.parametrize("inner", ["scaffold", "fednova"])
@pytest.mark.parametrize("name", PARTICIPATION)
def test_a_method_that_sends_more_than_parameters_is_refused(task, name, inner):
    """Its server would change the sums, by what a client sent, before the noise is in them."""
    with pytest.raises(UserError, match=r"adds its noise after .* leave it out"):
        make(task, name, spec=f"{name}+{inner}")


# ------------------------------------------------------------------ combinations

FROZEN = "dense1/kernel"


def combined_run(name, devices=1):
    """Partial training, a sub-model and a codec with noise that drowns the updates."""
    task = toy.make_task(hidden=(6,))
    method = make(
        task,
        name,
        spec=f"partial_training+{name}+federated_dropout+quantize",
        sections={
            "partial_training": {"freeze": ((FROZEN, True),)},
            "federated_dropout": {**SUBMODEL, "aggregation": "zero"},
        },
        clip=CLIP,
        noise_multiplier=3.0,
        **({"adaptive": True} if name == "dp_fedavg" else {}),
    )
    engine = toy.make_engine(task, method, clients=4, uniform=True, devices=devices)
    return *toy.run(engine, toy.make_params(task)), method


@pytest.fixture(scope="module", params=PARTICIPATION)
def combined(request):
    return request.param, *combined_run(request.param)


def test_in_a_chain_the_trained_parameters_alone_get_noise_and_all_of_them(params, combined):
    name, server, results, method = combined
    toy.assert_same_bits(server.params[FROZEN], params[FROZEN])
    for path in set(params) - {FROZEN}:
        assert (server.params[path] != params[path]).all()
    if name == "dp_ftrl":
        assert set(server.state[1].increment) == set(params) - {FROZEN}
    assert method.privacy(3)["epsilon"] > 0
    # A byte a value at most, and a norm for each of three arrays.
    trained = sum(params[path].size for path in params if path != FROZEN)
    assert max(results[0].up) <= trained + 3 * 4


_ON_TWO_DEVICES = """
import numpy as np, jax
from tests.methods import test_dp
assert jax.device_count() == 2
for name in test_dp.PARTICIPATION:
    np.savez(f"{OUT}/{name}.npz", **test_dp.combined_run(name, devices=2)[0].params)
"""


@pytest.fixture(scope="module")
def on_two_devices(tmp_path_factory):
    out = tmp_path_factory.mktemp("two_devices")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    subprocess.run(
        [sys.executable, "-c", _ON_TWO_DEVICES.replace("{OUT}", str(out))],
        env={**os.environ, "XLA_FLAGS": flags},
        cwd=pathlib.Path(__file__).parents[2],
        check=True,
    )
    return out


def test_two_virtual_devices_draw_the_same_noise(combined, on_two_devices):
    name, server, _, _ = combined
    toy.assert_close(server.params, dict(np.load(on_two_devices / f"{name}.npz")))
