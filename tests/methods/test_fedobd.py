import dataclasses
import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlite import methods
from fedlite.errors import UserError
from fedlite.methods import Keys, Recipe, Report, Update, server_view
from fedlite.methods.fedobd import choose
from fedlite.wire import NNADQ, Part, Slot, message_bytes, read, side_bytes, write
from tests import toy

REPORT = Report(jnp.float32(1), jnp.int32(1), jnp.int32(1), jnp.float32(1))


@pytest.fixture(scope="module")
def task():
    return toy.make_task()


@pytest.fixture(scope="module")
def params(task):
    return toy.make_params(task)


@functools.partial(jax.jit, static_argnums=0)
def _upload(method, update, params=None):
    """What a client uploads if its update is `update`, cut to what it receives."""
    key = jax.random.key(0)
    view = server_view({path: jnp.float32(value) for path, value in (params or update).items()})
    state = method.init(key, view)
    received, context = method.select(state, method.init_client(key, view), Keys(key, key), view)
    parts = {
        path: Part(jnp.float32(update[path])[tuple(map(slice, part.value.shape))])
        for path, part in received.trained.items()
    }
    return method.deselect(context, Update(parts, jnp.float32(1)), REPORT)[0].parts


def _sent(parts):
    return {path for path, part in parts.items() if int(part.sent)}


# ------------------------------------------------------------------ the choice

# dense1 has 64 * 6 + 6 values, dense2 6 * 5 + 5, logits 5 * 4 + 4: 449 in all.
SIZES = {"dense1": 390, "dense2": 35, "logits": 24}


def test_greedy_by_hand():
    # 4 of 6 are taken; 6 and 3 do not fit into the 2 that are left and are skipped, 2 fits.
    chosen = choose(jnp.array([5.0, 4.0, 3.0, 2.0, 1.0]), [4, 6, 3, 2, 1], 6)
    assert chosen.tolist() == [True, False, False, True, False]
    # The order is that of the scores, and the first of equals goes first.
    assert choose(jnp.array([1.0, 2.0, 2.0]), [3, 3, 3], 6).tolist() == [False, True, True]
    assert choose(jnp.array([1.0, 1.0, 1.0]), [3, 3, 3], 3).tolist() == [True, False, False]


_choose = jax.jit(choose)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20)), min_size=6, max_size=6), st.data()
)
@settings(max_examples=60, deadline=None)
def test_greedy_is_the_pseudo_code(blocks, data):
    sizes = [size for _, size in blocks]
    budget = data.draw(st.integers(0, sum(sizes)))
    used, sent = 0, [False] * 6
    for block in sorted(range(6), key=lambda block: (-blocks[block][0], block)):
        if used > budget:
            break
        if used + sizes[block] > budget:
            continue
        sent[block] = True
        used += sizes[block]
    scores = jnp.array([score for score, _ in blocks], jnp.float32)
    chosen = _choose(scores, jnp.array(sizes), budget)
    assert chosen.tolist() == sent
    assert sum(size for size, on in zip(sizes, sent) if on) <= budget


def _updates(task, dense1=1.0, dense2=1.0, logits=1.0):
    scale = {"dense1": dense1, "dense2": dense2, "logits": logits}
    shapes = toy.make_context(task).shapes
    return {path: np.full(shape, scale[path.split("/")[0]]) for path, shape in shapes.items()}


def test_mean_block_difference_favours_small_blocks_and_the_norm_large_ones(task):
    # Of 449 values 60 % are 269: dense1 never fits and is skipped, whatever its change.
    def chosen(rate, choice, **scales):
        options = {"dropout_rate": rate, "choice": choice}
        method = toy.make_method(task, "fedobd", fedobd=options)
        parts = _upload(method, _updates(task, **scales))
        return {path.split("/")[0] for path in _sent(parts)}

    assert chosen(0.4, "mbd", dense1=100) == {"dense2", "logits"}
    # 0.1 keeps 404 of 449: either dense1 or both others.
    assert chosen(0.1, "mbd") == {"logits", "dense2"}
    assert chosen(0.1, "norm") == {"dense1"}
    # rms / sqrt(size) decides: 4.06 / sqrt(390) > 1 / sqrt(24), 4.02 / sqrt(390) < 1 / sqrt(24).
    edge = math.sqrt(390 / 24)
    assert chosen(0.1, "mbd", dense1=edge * 1.01) == {"dense1"}
    assert chosen(0.1, "mbd", dense1=edge * 0.99) == {"logits", "dense2"}


def test_budget_is_exact_in_decimals(task):
    # 0.1 of 10 values is one, though (1 - 0.9) * 10 is less than 1 in floats.
    context = toy.make_context(task)._replace(shapes=FrozenDict({"a/w": (9,), "b/w": (1,)}))
    parts = _upload(
        methods.build("fedobd", context, dropout_rate=0.9), {"a/w": np.ones(9), "b/w": np.ones(1)}
    )
    assert _sent(parts) == {"b/w"}


@pytest.mark.parametrize("choice", ["mbd", "norm", "random_blocks", "random_tensors"])
@pytest.mark.parametrize("rate", [0.1, 0.45, 0.8])
def test_what_is_sent_keeps_within_the_budget(task, choice, rate):
    options = {"dropout_rate": rate, "choice": choice}
    method = toy.make_method(task, "fedobd", fedobd=options)
    rng = np.random.default_rng(0)
    values = {k: rng.normal(size=v.shape) for k, v in _updates(task).items()}
    parts = _upload(method, values)
    budget = math.floor((1 - Fraction(str(rate))) * 449)
    assert 0 < sum(parts[path].value.size for path in _sent(parts)) <= budget
    for path, part in parts.items():
        on = path in _sent(parts)
        # Rule A: what is not sent claims a change of 0.
        np.testing.assert_array_equal(
            part.value, np.float32(values[path]) if on else 0 * part.value
        )
        assert part.cover == 1
    # Three blocks in one byte; what is drawn from a shared seed needs none.
    ids = 0 if choice.startswith("random") else 1
    assert int(side_bytes(parts)) == ids
    assert len(write(parts)) == int(message_bytes(parts)) <= 4 * budget + ids


def test_random_choices_differ_by_client_and_tensors_part_from_their_block(task):
    method = toy.make_method(
        task, "fedobd", fedobd={"dropout_rate": 0.9, "choice": "random_tensors"}
    )
    parts = {path: Part(jnp.float32(value)) for path, value in _updates(task).items()}

    @jax.jit
    @jax.vmap
    def draw(key):
        _, context = method.select((), (), Keys(None, key), None)
        update, _ = method.deselect(context, Update(parts, 1), REPORT)
        return {path: part.sent for path, part in update.parts.items()}

    sent = draw(jax.random.split(jax.random.key(0), 20))
    seen = {frozenset(path for path in sent if sent[path][client]) for client in range(20)}
    assert len(seen) > 2
    assert any(len({"dense2/kernel", "dense2/bias"} & sent) == 1 for sent in seen)


# ------------------------------------------------------------------ blocks


def test_blocks_are_semantic_unless_a_pattern_says_otherwise(task):
    shapes = dict.fromkeys(
        ["norm/scale", "conv/kernel", "layer1/a/w", "layer1/b/w", "layer2/a/w", "scale"], (2,)
    )
    context = toy.make_context(task)._replace(shapes=FrozenDict(shapes))
    method = methods.build("fedobd", context)
    assert method._members([*shapes, "control:norm/scale"]) == [
        ("control:norm/scale", "conv/kernel", "norm/scale"),
        ("layer1/a/w",),
        ("layer1/b/w",),
        ("layer2/a/w",),
        ("scale",),
    ]
    rules = ((r"(layer\d+)/.*", r"\1"), (r"scale|conv/.*", "rest"))
    named = methods.build("fedobd", context, blocks=rules)
    # Of the parameters that travel; the names are those of the whole model.
    assert named._members(["layer1/a/w", "layer1/b/w", "scale", "conv/kernel"]) == [
        ("layer1/a/w", "layer1/b/w"),
        ("conv/kernel", "scale"),
    ]


def test_refusals(task):
    for options, match in [
        ({"dropout_rate": 1.0}, r"in \[0, 1\)"),
        ({"choice": "best"}, "or random_tensors"),
        ({"stage1_rounds": -1}, "stage1_rounds"),
        ({"stage2_rounds": 2}, "set fedobd.stage1_rounds"),
        ({"patience": 2}, "set fedobd.stage1_rounds"),
        ({"blocks": (("dense9/.*", "a"),)}, "matches the whole of no name"),
        ({"blocks": ((r"(dense1)/.*", r"\2"),)}, r"'\\\\2'"),
        ({"blocks": (("dense1/.*", 3),)}, "pairs"),
    ]:
        with pytest.raises(UserError, match=match):
            toy.make_method(task, "fedobd", fedobd=options)
    whole = toy.make_method(task, "fedobd", fedobd={"blocks": ((".*", "all"),)})
    with pytest.raises(UserError, match="no block fits into the budget of 314 of 449"):
        _upload(whole, _updates(task))


def test_which_blocks_were_chosen_is_told_once(task):
    """And not again with what another method sends beside them."""
    method = toy.make_method(task, "scaffold+fedobd", fedobd={"dropout_rate": 0.1})
    parts = _upload(method, _updates(task))
    assert any(path.startswith("control:") for path in parts)
    assert [len(part.header) for part in parts.values() if len(part.header)] == [1]
    assert len(write(parts)) == int(message_bytes(parts))


# ------------------------------------------------------------------ with a quantiser


def test_blocks_are_chosen_before_they_are_quantised(task):
    method = toy.make_method(
        task,
        "quantize+fedobd",
        quantize={"up": "nnadq0.001", "down": "nnadq0.001"},
        fedobd={"dropout_rate": 0.1},
    )
    rng = np.random.default_rng(1)
    values = {k: rng.normal(1, 0.1, v.shape) for k, v in _updates(task).items()}
    parts = _upload(method, values)
    assert {path.split("/")[0] for path in _sent(parts)} == {"dense2", "logits"}
    data = write(parts)
    assert len(data) == int(message_bytes(parts))
    # The first part, of dense1, opens with the ids of the chosen blocks, the last two of three.
    assert data[0] == 0b01100000
    layout = {
        path: Slot(part.value.shape, part.sent, NNADQ(0.001), len(part.header))
        for path, part in parts.items()
    }
    for path, back in read(data, layout).items():
        np.testing.assert_allclose(back, parts[path].value, atol=1e-6)
        # A block that is not sent is exactly 0, though the codec moves its range.
        error = np.abs(parts[path].value - values[path] * int(parts[path].sent))
        assert error.max() < 0.05
        assert int(parts[path].sent) or not np.any(parts[path].value)
    # Beside the codes: three scalars for each of four arrays, the sign bits, and the ids.
    signs = sum(parts[path].value.size for path in _sent(parts)) / 8
    assert 4 * 12 + 1 + signs - 4 <= int(side_bytes(parts)) <= 4 * 12 + 1 + signs + 4


def test_over_frozen_layers_the_budget_is_of_the_rest(task, params):
    method = toy.make_method(
        task,
        "partial_training+quantize+fedobd",
        partial_training={"freeze": (("dense1/.*", True),)},
        quantize={"up": "nnadq0.001", "down": "nnadq0.001"},
    )
    server, (result,) = toy.run(toy.make_engine(task, method), params, rounds=1)
    moved = {k for k in params if not np.array_equal(server.params[k], params[k])}
    assert moved and not {k for k in moved if k.startswith("dense1")}
    # dense2 and logits have 35 and 24 of 59 values, and only one fits into the budget of 41: codes
    # of at most 10 bits, the three scalars of two arrays, and a byte of ids.
    assert all(1 + 2 * 12 <= up <= 35 * 10 / 8 + 2 + 2 * 12 + 1 for up in result.up)


def test_in_a_sub_model_the_budget_is_of_the_sub_model(task):
    method = toy.make_method(
        task,
        "federated_dropout+quantize+fedobd",
        federated_dropout={"rates": ((".*", 0.5),)},
        quantize={"up": "nnadq0.001"},
        fedobd={"dropout_rate": 0.2},
    )
    # 64 * 3 + 3, 3 * 2 + 2 and 2 * 4 + 4 values of 215: dense1 has 195, the budget is 172.
    rng = np.random.default_rng(0)
    parts = _upload(method, {k: rng.normal(size=v.shape) for k, v in _updates(task).items()})
    sent = {path: int(np.sum(np.broadcast_to(p.sent, p.value.shape))) for path, p in parts.items()}
    assert sent == {
        "dense1/kernel": 0,
        "dense1/bias": 0,
        "dense2/kernel": 6,
        "dense2/bias": 2,
        "logits/kernel": 8,
        "logits/bias": 4,
    }
    assert len(write(parts)) == int(message_bytes(parts))
    # Held and left out claims zero, not held claims nothing: rule A inside rule B.
    assert not np.any(parts["dense1/kernel"].value)
    assert float(np.sum(np.broadcast_to(parts["dense1/bias"].cover, 6))) == 3


# ------------------------------------------------------------------ two stages


def _stages(task, **more):
    options = {"dropout_rate": 0.3, "stage1_rounds": 2, "stage2_rounds": 3, **more}
    return toy.make_method(task, "quantize+fedobd", quantize={"up": "nnadq0.001"}, fedobd=options)


def _run(engine, server, done=0, stop=None):
    """All rounds until the method ends the run; the recipes and results by round."""
    recipes, results = [], []
    while done != stop:
        _, recipe = engine.plan(server, done)
        if recipe.ended:
            break
        end = min(recipe.until, done + engine.max_rounds, stop or recipe.until)
        server, more = engine.run(server, done, end - done)
        recipes += [recipe] * (end - done)
        results += more
        done = end
    return jax.tree.map(np.asarray, engine.host(server)), recipes, results


def test_stages_in_a_run_and_resumed_in_either(task, params):
    engine = toy.make_engine(task, _stages(task), lr=0.2)
    server, recipes, results = _run(engine, engine.init(params))
    assert [len(result.ids) for result in results] == [3, 3, 8, 8, 8]
    assert [recipe.epochs for recipe in recipes] == [2, 2, 1, 1, 1]
    # A cosine from lr to 0: 0.2 (1 + cos(pi j / 3)) / 2.
    np.testing.assert_allclose([r.lr for r in recipes], [0.2, 0.2, 0.2, 0.15, 0.05])
    # Only stage 1 drops blocks: 59 values are left, and dense1 alone has 390 of at least 2 bits.
    # (A client without examples has no codes.)
    assert max(results[1].up) < 150 < np.median(results[2].up)
    assert engine.plan(server, 5)[1].ended and engine.plan(server, 9)[1].ended
    # One program a stage: the learning rate is traced.
    assert len(engine._compiled) == 2
    for stop in (1, 3):
        half, _, _ = _run(engine, engine.init(params), stop=stop)
        resumed, _, rest = _run(engine, engine.place(half), done=stop)
        assert len(rest) == 5 - stop
        toy.assert_same_bits(resumed, server)


def _revise(method, state, loss, examples=5):
    report = Report(jnp.float32(loss), jnp.float32(examples), jnp.float32(1), jnp.float32(1))
    return method.revise(state, None, {}, {}, report)


def test_patience_ends_stage_1_early(task):
    method = toy.make_method(
        task,
        "fedobd",
        fedobd={"stage1_rounds": 9, "stage2_rounds": 2, "patience": 2, "min_delta": 0.1},
    )
    recipe = Recipe(3, 5, 0.1)
    state = method.init(None, None)
    # At the soonest two rounds bring nothing new.
    assert method.at(0, state, recipe)[1].until == 2
    # Better; not by 0.1; better; twice not, the second of which is the last of stage 1.
    for number, (loss, since) in enumerate([(1.0, 0), (0.95, 1), (0.8, 0), (0.75, 1), (0.9, 2)]):
        stage, plan = method.at(number, state, recipe)
        assert stage is method and plan.clients == 3 and number < plan.until <= 9
        state = _revise(method, state, loss)
        assert int(state["since"]) == since
    stage, plan = method.at(5, state, recipe)
    assert (stage.deselect(1, 2, 3), plan.clients, plan.epochs) == ((2, 1), 8, 1)
    assert (plan.lr, plan.until, plan.ended) == (0.1, 6, False)
    # What stage 2 reports changes nothing, so that a resumed run asks for the same.
    assert stage.revise(state, None, {}, {}, REPORT) is state
    assert method.at(7, state, recipe)[1].ended
    # Until `until` the answer is the same whatever the state became.
    early = _revise(method, method.init(None, None), 1.0)
    assert method.at(1, early, recipe)[1].until == 3
    assert method.at(2, _revise(method, early, 1.0), recipe)[0] is method


def test_a_round_without_clients_is_no_better_round(task):
    method = toy.make_method(task, "fedobd", fedobd={"stage1_rounds": 9, "patience": 2})
    state = _revise(method, method.init(None, None), 0.0, examples=0)
    assert int(state["since"]) == 1 and math.isinf(float(state["best"]))


def test_stage_1_alone(task):
    recipe = Recipe(3, 5, 0.1)
    forever = toy.make_method(task, "fedobd")
    assert forever.at(1000, (), recipe) == (forever, recipe)
    limited = toy.make_method(task, "fedobd", fedobd={"stage1_rounds": 4})
    assert limited.at(3, (), recipe) == (limited, dataclasses.replace(recipe, until=4))
    assert limited.at(4, (), recipe)[1].ended


def test_an_early_stop_in_a_chain(task, params):
    """The state is read under no trace: no later loss is 9 below the first, so stage 2 is next."""
    options = {"stage1_rounds": 9, "stage2_rounds": 1, "patience": 2, "min_delta": 9.0}
    method = toy.make_method(task, "quantize+fedobd", fedobd={"dropout_rate": 0.2, **options})
    engine = toy.make_engine(task, method)
    _, results = toy.run(engine, params, 4)
    assert [len(result.ids) for result in results] == [3, 3, 3, 8]
