"""What holds for every method: a row each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedlite import methods
from fedlite.errors import UserError
from fedlite.federated.cohort import sample_cohort
from fedlite.federated.server_optimizer import server_optimizer
from fedlite.methods import Keys, Method, Report, Sums, Update, View, chain, server_view
from fedlite.wire import Part, message_bytes, once_bytes, write
from tests import toy

FREEZE = {"freeze": (("dense1/.*", True),)}
# method: options under which it is FedAvg (None: it never is), and options under which it is not.
ROWS = {
    "fedavg": ({}, None),
    "fedprox": ({"mu": 0.0}, {"mu": 0.5}),
    "partial_training": ({"freeze": ()}, FREEZE),
    "federated_dropout": ({"rates": ((".*", 0.0),)}, {"rates": ((".*", 0.4),)}),
    "scaffold": (None, {}),
    "fednova": (None, {}),
    "local_parameters": ({"local": ()}, {"local": (("dense1/.*", True),)}),
    # Without noise and clip: tests/methods/test_dp.py.
    "dp_fedavg": (None, {}),
    "dp_ftrl": (None, {}),
    # The choice may not depend on the values, which the test of the meter makes up.
    "fedobd": ({"dropout_rate": 0.0}, {"choice": "random_blocks"}),
    "feddropoutavg": ({"rate": 0.0}, {"rate": 0.3}),
    "smafd": ({"rate": 0.0}, {"rate": 0.9}),
    "heterofl": ({"levels": (1.0,)}, {"levels": (1.0, 0.5)}),
    "federated_pruning": ({"sparsity": 0.0}, {"prune_from": 0, "sparsity": 0.3}),
    "clip": ({"norm": 1e9}, {"norm": 0.01}),
    "quantize": ({"up": "", "down": ""}, {"up": "uniform8", "down": "bfloat16"}),
}
# How the cohorts of a method's rounds are drawn where it is not "uniform".
PARTICIPATION = {"dp_ftrl": "cyclic"}


@pytest.fixture(scope="module")
def task():
    return toy.make_task()


@pytest.fixture(scope="module")
def params(task):
    return toy.make_params(task)


@pytest.fixture(scope="module")
def fedavg(task, params):
    """FedAvg's run with the cohorts that a method has."""

    @functools.cache
    def run(participation):
        method = toy.make_method(task, "fedavg")
        engine = toy.make_engine(task, method, uniform=True, participation=participation)
        return toy.run(engine, params)

    return lambda name: run(PARTICIPATION.get(name, "uniform"))


def _method(task, name, options):
    participation = PARTICIPATION.get(name, "uniform")
    context = toy.make_context(task, participation=participation, weighting="uniform")
    return toy.make_method(task, name, context, **{name: dict(options)})


def _engine(task, name, options):
    participation = PARTICIPATION.get(name, "uniform")
    method = _method(task, name, options)
    return toy.make_engine(task, method, uniform=True, participation=participation)


def test_every_method_has_a_row():
    assert set(ROWS) == set(methods.names())


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row[0] is not None])
def test_neutral_options_are_fedavg_bit_for_bit(task, params, fedavg, name):
    server, results = toy.run(_engine(task, name, ROWS[name][0]), params)
    toy.assert_same_bits(server.params, fedavg(name)[0].params)
    assert [r.down.tolist() for r in results] == [r.down.tolist() for r in fedavg(name)[1]]


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row[1] is not None])
def test_other_options_change_the_result_and_are_deterministic(task, params, fedavg, name):
    engine = _engine(task, name, ROWS[name][1])
    server, _ = toy.run(engine, params)
    assert any(
        not np.array_equal(server.params[k], fedavg(name)[0].params[k])
        for k in fedavg(name)[0].params
    )
    toy.assert_same_bits(toy.run(engine, params)[0], server)


@pytest.mark.parametrize("name", ROWS)
def test_equal_by_value_and_hashable(task, name):
    for options in ROWS[name]:
        if options is not None:
            one, two = (_method(task, name, options) for _ in range(2))
            assert one == two and hash(one) == hash(two)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row[1] is not None])
def test_meter_equals_what_is_written(task, params, name):
    """The bytes that the compiled round reports are those of a message written by hand."""
    engine = _engine(task, name, ROWS[name][1])
    server = engine.init(params)
    state = jax.tree.map(np.asarray, server.state)
    method, _ = engine.plan(server, 0)
    ids = sample_cohort(engine.seed, 0, 8, 3, PARTICIPATION.get(name, "uniform"))
    own = [
        jax.tree.map(lambda leaf: leaf[0], engine.store.gather(ids[i : i + 1])) for i in range(3)
    ]
    _, (result,) = engine.run(server, 0, 1)
    assert result.ids.tolist() == ids.tolist()
    for position, client in enumerate(result.ids):
        key = jax.random.fold_in(jax.random.key(engine.seed), 0)
        keys = Keys(key, jax.random.fold_in(key, int(client)))
        view, context = method.select(state, own[position], keys, server_view(params))
        parts = {path: Part(jnp.ones_like(part.value)) for path, part in view.trained.items()}
        report = Report(jnp.float32(0), jnp.int32(1), jnp.int32(1), jnp.float32(1))
        update, _ = method.deselect(context, Update(parts, jnp.float32(1)), report)
        assert result.down[position] == len(write({**view.trained, **view.read}))
        assert result.up[position] == len(write(update.parts))


# ------------------------------------------------------------------ partial training


def _bytes_each_way(task, spec, **sections):
    """Bytes (down, up, once) of a client by the meter."""
    method = toy.make_method(task, spec, **sections)
    params, once = toy.make_params(task), []

    @jax.jit
    def measure(params):
        key, whole = jax.random.key(0), server_view(params)
        state, mine = method.init(key, whole), method.init_client(key, whole)
        view, context = method.select(state, mine, Keys(key, key), whole)
        down = {**view.trained, **view.read}
        once.append(once_bytes(down))
        report = Report(jnp.float32(0), jnp.int32(1), jnp.int32(1), jnp.float32(1))
        parts = {path: Part(part.value) for path, part in view.trained.items()}
        update, _ = method.deselect(context, Update(parts, jnp.float32(1)), report)
        return message_bytes(down), message_bytes(update.parts)

    down, up = measure(params)
    return int(down), int(up), once[0]


def test_frozen_parameters_are_read_cost_a_seed_and_keep_their_bits(task, params):
    method = toy.make_method(task, "partial_training", partial_training=FREEZE)
    view, _ = method.select((), (), Keys(None, None), server_view(params))
    assert set(view.read) == {"dense1/kernel", "dense1/bias"}
    assert once_bytes(view.read) == 8
    server, results = toy.run(toy.make_engine(task, method), params)
    for path in view.read:
        toy.assert_same_bits(server.params[path], params[path])
        # A client makes them itself, from the seed: the same bits.
        toy.assert_same_bits(server.params[path], toy.make_params(task)[path])
    assert not np.array_equal(server.params["dense2/kernel"], params["dense2/kernel"])
    # The server keeps optimiser state for the trained part alone.
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(server.opt_state)]
    assert sum(sizes) == sum(np.size(params[k]) for k in view.trained)
    assert results[0].once == 8


def test_a_sent_backbone_costs_its_bytes_once(task, params):
    options = {**FREEZE, "origin": "sent"}
    frozen = sum(4 * params[k].size for k in ("dense1/kernel", "dense1/bias"))
    assert _bytes_each_way(task, "partial_training", partial_training=options)[2] == frozen


def test_first_matching_pattern_wins(task):
    freeze = (("dense1/bias", False), ("dense.*", True))
    method = toy.make_method(task, "partial_training", partial_training={"freeze": freeze})
    assert [p for p in method.shapes if method.frozen(p)] == [
        "dense1/kernel",
        "dense2/bias",
        "dense2/kernel",
    ]


def test_refusals(task):
    for options, match in [
        ({"freeze": (("dense9/.*", True),)}, "matches the whole of no name"),
        ({"freeze": (("(", True),)}, "not a regular expression"),
        ({"freeze": ((".*", True),)}, "leaves nothing to train"),
        ({"freeze": ("dense1",)}, "pairs"),
        ({"freeze": (("dense1/.*", "yes"),)}, "pairs"),
        ({"origin": "moon"}, "seed or sent"),
        ({"thaw": 1}, "no option 'thaw'"),
    ]:
        with pytest.raises(UserError, match=match):
            toy.make_method(task, "partial_training", partial_training=options)
    for options, match in [
        ({"rates": (("dense1", 1.0),)}, "below 1"),
        ({"rates": (("dense1", -0.1),)}, "at least 0"),
        ({"rates": (("conv1", 0.5),)}, "matches the whole of no name"),
        ({"per": "year"}, "client or round"),
        ({"aggregation": "median"}, "count, zero"),
        ({"preset": "sideways"}, "no rate preset 'sideways'"),
        ({"preset": "ascending", "rates": (("dense1", 0.5), (".*", 0.2))}, "shares one rate"),
        ({"preset": "ascending", "rates": ((".*", 0.0),)}, "shares one rate"),
        ({"preset": "ambient"}, "needs the importance"),
        ({"importance": (("conv1", 1.0),)}, "matches the whole of no name"),
    ]:
        with pytest.raises(UserError, match=match):
            toy.make_method(task, "federated_dropout", federated_dropout=options)
    with pytest.raises(UserError, match="unknown method 'fedfoo'"):
        toy.make_method(task, "fedavg+fedfoo")
    with pytest.raises(UserError, match="twice"):
        toy.make_method(task, "clip+clip")


# ------------------------------------------------------------------ codecs and clipping


def test_clip_bounds_the_update_over_all_parts(task):
    method = toy.make_method(task, "clip", clip={"norm": 2.0})
    parts = {"a": Part(jnp.array([3.0, 0.0])), "b": Part(jnp.array([[4.0]]))}
    update, _ = method.deselect((), Update(parts, jnp.float32(7)), None)
    np.testing.assert_allclose(update.parts["a"].value, [1.2, 0], rtol=1e-6)
    np.testing.assert_allclose(update.parts["b"].value, [[1.6]], rtol=1e-6)
    assert float(update.weight) == 1
    small, _ = method.deselect((), Update({"a": Part(jnp.array([1.0]))}, jnp.float32(7)), None)
    assert float(small.parts["a"].value[0]) == 1


def test_quantised_broadcast_is_the_same_for_the_cohort(task, params):
    method = toy.make_method(task, "quantize", quantize={"up": "", "down": "uniform4"})
    views = [
        method.select((), (), Keys(jax.random.key(0), jax.random.key(i)), server_view(params))[0]
        for i in range(2)
    ]
    toy.assert_same_bits(
        [p.value for p in views[0].trained.values()], [p.value for p in views[1].trained.values()]
    )
    assert len(np.unique(views[0].trained["dense1/kernel"].value)) <= 15


def test_chain_multiplies_savings(task):
    whole, _, _ = _bytes_each_way(task, "fedavg")
    trained, _, once = _bytes_each_way(task, "partial_training", partial_training=FREEZE)
    down, up, _ = _bytes_each_way(
        task,
        "partial_training+federated_dropout+quantize",
        partial_training=FREEZE,
        federated_dropout={"rates": (("dense.*", 0.5),)},
    )
    # dense1 (8*8*6 + 6) is frozen; of dense2 [6, 5] + 5 and logits [5, 4] + 4 remain half.
    assert trained == 4 * (6 * 5 + 5 + 5 * 4 + 4) == whole - 4 * (64 * 6 + 6)
    kept2 = 2  # round(2.5)
    assert down == 4 * (3 * kept2 + kept2 + kept2 * 4 + 4)
    # A byte a value, and a norm of 4 bytes for each of four arrays.
    assert up == down // 4 + 4 * 4
    assert once == 8


# ------------------------------------------------------------------ the algebra


@dataclasses.dataclass(frozen=True)
class Counting(Method):
    """Remembers an array like each parameter, and counts a client's rounds."""

    def init(self, key, view):
        return {path: jnp.zeros_like(part.value) for path, part in view.trained.items()}

    def init_client(self, key, view):
        return jnp.int32(0)

    def deselect(self, context, update, report):
        return update, context + 1


def test_a_method_that_remembers_may_not_stand_behind_one_that_shrinks(task, params):
    dropout = toy.make_method(task, "federated_dropout")
    view, key = server_view(params), jax.random.key(0)
    states = chain(Counting(), dropout).init(key, view)
    assert states[0].keys() == params.keys()
    with pytest.raises(UserError, match="further left"):
        chain(dropout, Counting()).init(key, view)


def test_chains_flatten_and_run_inside_out():
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Noisy(Method):
        name: str

        def select(self, state, mine, keys, view):
            calls.append(f"select {self.name}")
            return view, self.name

        def deselect(self, context, update, report):
            calls.append(f"deselect {context}")
            return update, ()

    method = chain(Noisy("a"), chain(Noisy("b"), Noisy("c")))
    assert len(method.methods) == 3
    key = jax.random.key(0)
    _, context = method.select(((),) * 3, ((),) * 3, Keys(key, key), View({}, {}))
    method.deselect(context, Update({}, 1), None)
    assert calls == [f"select {n}" for n in "abc"] + [f"deselect {n}" for n in "cba"]
    assert chain(Noisy("a")) == Noisy("a")
    assert chain().methods == ()


def test_each_member_of_a_chain_has_its_own_keys():
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Peek(Method):
        def select(self, state, mine, keys, view):
            seen.append(jax.random.key_data(keys.client).tolist())
            return view, ()

    key = jax.random.key(0)
    chain(Peek(), Peek()).select(((), ()), ((), ()), Keys(key, key), View({}, {}))
    assert seen[0] != seen[1]


def test_message_bytes_of_fedavg(task, params):
    assert int(message_bytes(server_view(params).trained)) == 4 * sum(
        p.size for p in params.values()
    )


@dataclasses.dataclass(frozen=True)
class Doubled(Method):
    """The server takes twice the cohort's sum."""

    def combine(self, state, key, sums, report):
        return sums._replace(total={k: 2 * total for k, total in sums.total.items()})


@dataclasses.dataclass(frozen=True)
class Noised(Method):
    """Adds noise, the same wherever it is drawn."""

    def combine(self, state, key, sums, report):
        total = {k: v + jax.random.normal(key, v.shape) for k, v in sums.total.items()}
        return sums._replace(total=total)


def test_the_server_has_a_turn_on_the_sums(task, params):
    """Doubling the sums is a server's learning rate of 2."""
    once, twice = (server_optimizer(learning_rate=rate) for rate in (0.5, 1.0))
    doubled = toy.make_engine(task, Doubled(), server=once)
    plain = toy.make_engine(task, Method(), server=twice)
    toy.assert_close(*(toy.run(engine, params)[0].params for engine in (doubled, plain)))


def test_turns_on_the_sums_run_inside_out():
    sums = Sums({"a": jnp.ones(1000)}, {"a": jnp.ones(())})
    key = jax.random.key(0)
    noise = chain(Method(), Noised()).combine(((), ()), key, sums, None).total["a"] - 1
    outer = chain(Doubled(), Noised()).combine(((), ()), key, sums, None).total["a"]
    np.testing.assert_allclose(outer, 2 * (1 + noise), rtol=1e-6)
    assert float(jnp.std(noise)) > 0.9


@dataclasses.dataclass(frozen=True)
class Bounded(Method):
    bounds_updates = True


def test_nothing_may_change_a_bounded_update(task):
    clip, freeze = (
        toy.make_method(task, name, **{name: ROWS[name][1]})
        for name in ("clip", "partial_training")
    )
    assert chain(freeze, Bounded(), clip).methods == (freeze, Bounded(), clip)
    with pytest.raises(UserError, match=r"Clip to its left .* put it to the right"):
        chain(clip, Bounded())


def test_what_is_frozen_is_what_the_server_has(task):
    freeze = toy.make_method(task, "partial_training", partial_training=FREEZE)
    down, up = (
        toy.make_method(task, "quantize", quantize=options)
        for options in ({"down": "uniform8", "up": ""}, {"up": "uniform8"})
    )
    assert chain(freeze, down).methods == (freeze, down)
    assert chain(up, freeze).methods == (up, freeze)
    with pytest.raises(UserError, match=r"Quantize changes the values on their way down, .* right"):
        chain(down, freeze)


def test_the_scale_of_what_is_frozen(task, params):
    method = toy.make_method(task, "partial_training", partial_training={**FREEZE, "scale": 0.5})
    engine = toy.make_engine(task, method)
    server, _ = toy.run(engine, params)
    toy.assert_same_bits(server.params["dense1/kernel"], params["dense1/kernel"] * 0.5)
    toy.assert_same_bits(engine.init(params).params["dense2/kernel"], params["dense2/kernel"])
    with pytest.raises(UserError, match="above 0"):
        toy.make_method(task, "partial_training", partial_training={"scale": 0.0})


def test_nothing_inside_may_take_its_turn_on_the_sums_before_the_noise():
    with pytest.raises(UserError, match="adds its noise after Doubled"):
        chain(Bounded(), Doubled())


def test_a_private_method_sees_to_the_size_of_the_cohort(task):
    context = toy.make_context(task, participation="poisson", weighting="uniform")
    options = {"stage1_rounds": 2, "stage2_rounds": 1}
    with pytest.raises(UserError, match="accounts for cohorts of one size, and FedOBD changes"):
        toy.make_method(task, "dp_fedavg+fedobd", context, fedobd=options)


@dataclasses.dataclass(frozen=True)
class Curious(Method):
    """Remembers what it was told last."""

    def init(self, key, view):
        return jnp.zeros(4)

    def revise(self, state, key, params, aggregate, report):
        return jnp.stack([jnp.float32(field) for field in report])


def test_beside_a_private_method_nobody_is_told_what_the_clients_report():
    told = Report(*map(jnp.float32, (1.0, 2.0, 3.0, 4.0)))
    open_state, _ = chain(Curious(), Method()).revise((0, ()), jax.random.key(0), {}, {}, told)
    assert open_state.tolist() == [1, 2, 3, 4]
    state, _ = chain(Curious(), Bounded()).revise((0, ()), jax.random.key(0), {}, {}, told)
    assert np.isnan(state[0]) and state[1:].tolist() == [0, 0, 0]


def test_clip_leaves_parts_of_other_methods_alone(task):
    method = toy.make_method(task, "clip")
    parts = {"a": Part(jnp.ones(2)), "control:a": Part(jnp.ones(2))}
    with pytest.raises(UserError, match="put clip to the right"):
        method.deselect((), Update(parts, jnp.float32(1)), None)
