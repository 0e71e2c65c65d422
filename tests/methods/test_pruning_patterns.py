"""Patterns of federated pruning: groups by hand, compact layers, costs, bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from fedlite import methods, models, tasks
from fedlite.errors import UserError
from fedlite.federated.cost import client_cost
from fedlite.federated.local import values
from fedlite.federated.round import init_server
from fedlite.federated.server_optimizer import server_optimizer
from fedlite.methods import Keys, Recipe, Report, Update, server_view
from fedlite.methods.federated_pruning import FederatedPruning
from fedlite.methods.pruning_groups import PATTERNS, KernelGroups, make_groups
from fedlite.models import adapters, compact, units
from fedlite.models.units import UnitAxes
from fedlite.wire import Part, message_bytes, write
from tests import toy

REPORT = Report(jnp.float32(0), jnp.float32(1), jnp.float32(1), jnp.float32(1))
RECIPE = Recipe(clients=3, epochs=1, lr=0.1)
KEYS = Keys(jax.random.key(0), jax.random.key(1))
STRUCTURED = tuple(compact.PATTERNS)
KERNEL_PATTERNS = (*STRUCTURED, "unstructured")
_WITHOUT_FIRST = (("dense1/.*", False), (".*", True))

# A kernel [4, 3] with a bias, by hand.
SHAPES = FrozenDict({"a/kernel": (4, 3), "a/bias": (3,)})
KERNEL = jnp.array([[3.0, -1.0, 0.0], [4.0, 1.0, 0.0], [0.0, 5.0, 1.0], [0.0, 0.0, -1.0]])
PARAMS = {"a/kernel": KERNEL, "a/bias": jnp.array([10.0, 20.0, 30.0])}
AXES = UnitAxes(FrozenDict({"a/kernel": (None, None), "a/bias": (None,)}))


def _pruning(pattern, **options):
    options = {"prune_from": 0, "score": "weight_l1", **options}
    return FederatedPruning(AXES, SHAPES, 100, pattern, **options)


def _masked(pattern, **options):
    """The method under its first mask, and its state."""
    method = _pruning(pattern, **options)
    state = method.init(jax.random.key(0), server_view(PARAMS))
    return method.at(0, state, RECIPE)[0], state


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("column", {"#0": ([7, 7, 2], 4)}),
        ("row", {"#0": ([4, 5, 6, 1], 3)}),
        ("half_column", {"#0": ([7, 2, 0], 2), "#1": ([0, 5, 2], 2)}),
        ("half_row", {"#0": ([4, 5, 5, 0], 2), "#1": ([0, 0, 1, 1], 1)}),
        ("unstructured", {"#0": (np.abs(np.asarray(KERNEL)).ravel(), 1)}),
    ],
)
def test_groups_and_scores_by_hand(pattern, expected):
    """Sums of magnitudes over the root of the entries of a group; 3 columns are cut 2 : 1."""
    groups = make_groups(pattern, AXES, SHAPES, ((".*", True),))
    scores = groups.scores("weight_l1", PARAMS)
    assert scores.keys() == groups.totals.keys() == {f"a/kernel{part}" for part in expected}
    for part, (sums, size) in expected.items():
        found = scores[f"a/kernel{part}"]
        np.testing.assert_allclose(found, np.array(sums) / size**0.5, rtol=1e-6)
        assert groups.totals[f"a/kernel{part}"] == len(found)
    assert groups.size(groups.totals) == 12


@pytest.mark.parametrize(
    ("pattern", "sparsity", "deployed"),
    [
        # Columns 0 and 1 stay, equal scores in their order; the bias goes with the column.
        ("column", 0.3, [[3, -1, 0], [4, 1, 0], [0, 5, 0], [0, 0, 0]]),
        ("row", 0.3, [[0, 0, 0], [4, 1, 0], [0, 5, 1], [0, 0, 0]]),
        # Of each half of the columns two.
        ("half_column", 0.3, [[3, -1, 0], [4, 1, 0], [0, 5, 1], [0, 0, -1]]),
        ("half_row", 0.5, [[0, 0, 0], [4, 1, 0], [0, 5, 1], [0, 0, -1]]),
        ("unstructured", 0.75, [[3, 0, 0], [4, 0, 0], [0, 5, 0], [0, 0, 0]]),
    ],
)
def test_masks_by_hand(pattern, sparsity, deployed):
    masked, state = _masked(pattern, sparsity=sparsity)
    found = masked.deployed(state, PARAMS)
    np.testing.assert_array_equal(found["a/kernel"], deployed)
    bias = [10, 20, 0] if pattern == "column" else [10, 20, 30]
    np.testing.assert_array_equal(found["a/bias"], bias)


@pytest.mark.parametrize("pattern", KERNEL_PATTERNS)
@pytest.mark.parametrize("pruned", ["keep", "zero"])
def test_pruned_groups_come_back_where_they_are_kept(pattern, pruned):
    """What clients trained has become 0, and the server still holds what it pruned."""
    options = {"refine_every": 1, "refine_until": 2, "pruned": pruned, "sparsity": 0.5}
    masked, state = _masked(pattern, **options)
    hit = masked.plan.groups.hit("a/kernel", masked.flags(state))
    params = {**PARAMS, "a/kernel": jnp.where(hit, 0, jnp.abs(KERNEL) + 1)}
    state = masked.revise(state, None, params, {}, REPORT)
    again, _ = masked.plan.at(1, state, RECIPE)
    moved = masked.plan.groups.hit("a/kernel", again.flags(state))
    if pruned == "zero":
        np.testing.assert_array_equal(moved, hit)
    else:
        assert (moved & ~hit).any() and (hit & ~moved).any()


@pytest.mark.parametrize("pattern", KERNEL_PATTERNS)
def test_kept_counts_are_exact(pattern):
    """What is left is at most the share, and less than one group's entries below it."""
    method = _pruning(pattern)
    largest = {"column": 4, "row": 3, "half_column": 2, "half_row": 2, "unstructured": 1}[pattern]
    for sparsity in (0.1, 0.25, 0.5, 0.6):
        size = method.groups.size(method.counts(sparsity, {}))
        assert 12 * (1 - sparsity) - largest < size <= 12 * (1 - sparsity)


@pytest.mark.parametrize(
    ("pattern", "kept", "left"),
    [
        ("column", [[0, 3]], [np.s_[:, :, [0, 3]]]),
        ("row", [[2]], [np.s_[:, [2]]]),
        ("half_column", [[1, 2, 3], [0]], [np.s_[:, :2, [1, 2, 3]], np.s_[:, 2:, [0]]]),
        ("half_row", [[1], [0, 1, 2]], [np.s_[:, [1], :2], np.s_[:, [0, 1, 2], 2:]]),
    ],
)
def test_take_and_put_by_hand(pattern, kept, left):
    """A kernel [2, 3, 4]: what is left of each part one after the other, and back in its place."""
    kernel = np.arange(1.0, 25).reshape(2, 3, 4).astype(np.float32)
    kept = [np.array(indices) for indices in kept]
    flat = compact.take(pattern, jnp.asarray(kernel), kept)
    np.testing.assert_array_equal(flat, np.concatenate([kernel[part].ravel() for part in left]))
    expected = np.zeros_like(kernel)
    for part in left:
        expected[part] = kernel[part]
    np.testing.assert_array_equal(compact.put(pattern, flat, kept, kernel.shape), expected)
    groups = KernelGroups(pattern, {"kernel": kernel.shape}, ((".*", True),))
    totals = groups.totals.values()
    flags = {
        f"kernel#{i}": jnp.zeros(n, bool).at[own].set(True)
        for i, (n, own) in enumerate(zip(totals, kept, strict=True))
    }
    np.testing.assert_array_equal(groups.hit("kernel", flags), expected != 0)


# ------------------------------------------------------------------ compact layers


def _language_model():
    model = models.build(
        "char_transformer", num_classes=7, layers=1, embed=6, d_model=8, heads=2, ffn=6, dropout=0.0
    )
    example = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    return tasks.LanguageModel(model, units.unit_axes(model, example)), example


def _network(name, adapted=()):
    """A task, parameters and a batch."""
    if name == "char_transformer":
        task, example = _language_model()
    else:
        options = {"mlp": {"hidden": (6, 6, 5)}, "emnist_cnn": {"dropout": 0.0}}[name]
        task, example = toy.make_task(name, **options), toy.EXAMPLE
    if adapted:
        model = adapters.wrap(task.model, "parallel", adapted)
        task = tasks.Classification(model, units.unit_axes(model, example))
    params = units.init_params(task.model, jax.random.key(0), example)
    # Biases that are not zero.
    keys = jax.random.split(jax.random.key(1), len(params))
    params = {
        path: value + 0.1 * jax.random.normal(key, value.shape)
        for key, (path, value) in zip(keys, params.items())
    }
    if example.dtype == jnp.int32:
        x = jax.random.randint(jax.random.key(2), (2, 5), 1, 7)
        y = jnp.roll(x, -1, 1)
    else:
        x = jax.random.uniform(jax.random.key(2), (3, *example.shape[1:]))
        y = jnp.arange(3)
    return task, params, {"x": x, "y": y}


def _first_mask(task, params, pattern, **options):
    shapes = FrozenDict({path: value.shape for path, value in params.items()})
    context = toy.make_context(toy.make_task())._replace(axes=task.axes, shapes=shapes)
    options = {"pattern": pattern, "prune_from": 0, "sparsity": 0.4, **options}
    method = methods.build("federated_pruning", context, **options)
    state = method.init(jax.random.key(0), server_view(params))
    return method.at(0, state, RECIPE)[0], state


@pytest.mark.parametrize(
    ("name", "pattern", "adapted"),
    [
        *(("mlp", pattern, ()) for pattern in STRUCTURED),
        # Convolutions, and a dense layer over space.
        ("emnist_cnn", "half_column", ()),
        ("emnist_cnn", "row", ()),
        # Branches are added to a convolution before it pools.
        ("emnist_cnn", "row", (("conv2", 0), ("dense1", 2))),
        ("emnist_cnn", "column", (("conv2", 0), ("dense1", 2))),
        # Attention, and a width that a residual sum ties.
        ("char_transformer", "column", ()),
        ("char_transformer", "half_row", ()),
    ],
)
def test_the_compact_model_is_the_masked_full_model(name, pattern, adapted):
    """Outputs and gradients."""
    task, params, batch = _network(name, adapted)
    # A row of a first layer is a channel, of which the images have one.
    prunable = _WITHOUT_FIRST if name == "mlp" else ((".*", True),)
    masked, state = _first_mask(task, params, pattern, prunable=prunable)
    view, context = masked.select(state, (), KEYS, server_view(params))
    pruned = {name.partition("#")[0] for name, _ in masked.counts}
    assert len(pruned) > 1
    assert all(view.trained[path].value.ndim == 1 for path in pruned)
    trained, read = values(view.trained), values(view.read)
    deployed = masked.deployed(state, params)
    mask = jnp.ones(len(batch["x"]))

    def loss(trained, read):
        return task.loss({**read, **trained}, batch, mask, jax.random.key(0))

    found, small = jax.jit(jax.value_and_grad(loss))(trained, read)
    expected, full = jax.jit(jax.value_and_grad(loss))(deployed, {})
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    update = Update({path: Part(value) for path, value in small.items()}, jnp.float32(1))
    back, _ = masked.deselect(context, update, REPORT)
    for path, part in back.parts.items():
        hit = np.broadcast_to(np.asarray(part.cover) > 0, part.value.shape)
        np.testing.assert_allclose(part.value, np.where(hit, full[path], 0), atol=2e-6)
    apply = jax.jit(task.apply)
    logits = [np.asarray(apply(p, batch["x"])) for p in ({**read, **trained}, deployed)]
    np.testing.assert_allclose(*logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("pattern", "allocation"),
    [("half_column", "adaptive"), *((pattern, "uniform") for pattern in KERNEL_PATTERNS)],
)
def test_the_meter_is_what_is_written(pattern, allocation):
    """Kept values and, with a new mask, a bit a group; up the kept values alone."""
    task = toy.make_task(hidden=(3, 12, 10))
    params = toy.make_params(task)
    options = {"allocation": allocation, "prunable": _WITHOUT_FIRST}
    masked, state = _first_mask(task, params, pattern, **options)
    groups = masked.plan.groups
    view, context = masked.select(state, (), KEYS, server_view(params))
    message = {**view.trained, **view.read}
    flags = sum(groups.totals.values())
    kept = dict(masked.counts)
    whole = sum(v.size for k, v in params.items() if k not in groups.matrices)
    if pattern == "column":
        whole -= sum(groups.totals[name] - count for name, count in kept.items())
    size = whole + groups.size({**groups.totals, **kept})
    assert size < sum(v.size for v in params.values()) - 0.4 * (36 + 120)
    expected = 4 * size + -(-flags // 8)
    assert len(write(message)) == int(message_bytes(message)) == expected
    parts = {path: Part(part.value) for path, part in view.trained.items()}
    update, _ = masked.deselect(context, Update(parts, jnp.float32(1)), REPORT)
    assert len(write(update.parts)) == int(message_bytes(update.parts)) == 4 * size
    later = {**state, "round": jnp.int32(1)}
    view, _ = masked.select(later, (), KEYS, server_view(params))
    assert int(message_bytes(view.trained)) == 4 * size


@pytest.mark.parametrize("pattern", PATTERNS)
def test_without_sparsity_it_is_fedavg(pattern):
    """The view itself is handed on, before and after the round of the mask."""
    task = toy.make_task()
    params = toy.make_params(task)
    options = {"pattern": pattern, "sparsity": 0.0, "prune_from": 0}
    method = toy.make_method(task, "federated_pruning", federated_pruning=options)
    assert method.init(KEYS.round, server_view(params)) == ()
    for number in (0, 3):
        answer, recipe = method.at(number, (), RECIPE)
        assert answer == method and recipe == RECIPE
        view = server_view(params)
        assert answer.select((), (), KEYS, view)[0] is view
    assert answer.deployed((), params) is params


@pytest.mark.parametrize("pattern", ["half_row", "unstructured"])
def test_entries_that_nobody_trained_keep_their_bits(pattern):
    """In whole rounds, though the server has momentum; the others move."""
    task = toy.make_task(hidden=(6, 8, 7))
    options = {"pattern": pattern, "prune_from": 0, "prunable": _WITHOUT_FIRST}
    # A mask for each round, of as many groups: one program.
    options |= {"refine_every": 1, "refine_until": 2}
    context = toy.make_context(task, rounds=2)
    method = toy.make_method(task, "federated_pruning", context, federated_pruning=options)
    engine = toy.make_engine(task, method, epochs=1, clients_per_chunk=2)
    server = engine.init(toy.make_params(task))
    for number in range(2):
        left = jax.tree.map(np.array, engine.host(server))
        mask, _ = method.at(number, left.state, RECIPE)
        server, _ = engine.run(server, number, 1)
        right = jax.tree.map(np.array, engine.host(server))
        flags = mask.flags(left.state)
        for path in method.groups.matrices:
            before, after = left.params[path], right.params[path]
            hit = np.broadcast_to(np.asarray(method.groups.hit(path, flags)), before.shape)
            assert not hit.all() and (before == after)[~hit].all()
            assert not (before == after)[hit].all()


@pytest.fixture
def costs(optimized):
    """Of a perceptron for 28 x 28 images, by pattern, at half of its kernels' entries."""
    model = models.build("mlp", num_classes=10, hidden=(128, 128))
    example = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    task = tasks.Classification(model, units.unit_axes(model, example))
    params = units.init_params(model, jax.random.key(0), example)
    shapes = FrozenDict({path: value.shape for path, value in params.items()})
    context = toy.make_context(toy.make_task())._replace(axes=task.axes, shapes=shapes)
    arrays = {
        "x": jax.ShapeDtypeStruct((9, 28, 28, 1), jnp.float32),
        "y": jax.ShapeDtypeStruct((9,), jnp.int32),
    }

    def cost(pattern):
        # A row of the first kernel is a channel, of which images have one.
        options = {"pattern": pattern, "prune_from": 0, "prunable": (("dense[12].*", True),)}
        options["sparsity"] = 0.5 if pattern else 0.0
        options["pattern"] = pattern or "unit"
        method = methods.build("federated_pruning", context, **options)
        engine = toy.make_engine(toy.make_task(), method, batch_size=4)
        server = init_server(method, params, server_optimizer(), jax.random.key(1))
        answer, _ = method.at(0, server.state, engine.recipe)
        return client_cost(task, answer, engine.local_plan(engine.recipe), server, arrays)

    return {pattern: cost(pattern) for pattern in ("", "column", "half_column", "unstructured")}


def test_columns_make_the_compiled_step_smaller(costs):
    """Halves as much as whole ones: the client's matrix products are smaller."""
    full = costs[""]
    for pattern in ("column", "half_column"):
        found = costs[pattern]
        assert found.params == found.trained_params < 0.52 * full.params
        assert found.flops_per_example < 0.6 * full.flops_per_example
        assert found.peak_memory_bytes < 0.6 * full.peak_memory_bytes
    bound = costs["unstructured"]
    assert bound.params == full.params
    assert bound.flops_per_example > 0.95 * full.flops_per_example


def test_a_method_that_remembers_arrays_stands_outside():
    """SCAFFOLD's control variates are cut as the kernels are, and come back."""
    task = toy.make_task(hidden=(6, 5))
    params = toy.make_params(task)
    options = {"pattern": "half_column", "prune_from": 0, "sparsity": 0.4}
    method = toy.make_method(task, "scaffold+federated_pruning", federated_pruning=options)
    state = method.init(KEYS.round, server_view(params))
    answer, _ = method.at(0, state, RECIPE)
    mine = method.init_client(KEYS.client, server_view(params))
    view, context = answer.select(state, mine, KEYS, server_view(params))
    kernel = view.trained["dense1/kernel"].value
    assert kernel.ndim == 1 and view.read["correct:dense1/kernel"].value.shape == kernel.shape
    parts = {path: Part(part.value) for path, part in view.trained.items()}
    update, _ = answer.deselect(context, Update(parts, jnp.float32(1)), REPORT)
    for name, part in update.parts.items():
        assert part.value.shape == params[name.rpartition(":")[2]].shape


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("pattern", "options", "match"),
    [
        ("diagonal", {}, "pattern must be one of unit, column, row"),
        ("row", {"prunable": (("a/bias", True),)}, "matches the whole of no name"),
        ("row", {"prunable": (("a/kernel", False),)}, "leaves no kernel"),
        ("row", {"sparsity": 0.9}, "no sub-model has at most"),
    ],
)
def test_refusals(pattern, options, match):
    with pytest.raises(UserError, match=match):
        _pruning(pattern, **options)


@pytest.mark.parametrize("pattern", ["unit", "column", "unstructured"])
def test_it_stands_before_what_cuts_the_model(pattern):
    task = toy.make_task(hidden=(6, 5))
    options = {
        "federated_dropout": {"rates": ((".*", 0.5),)},
        "federated_pruning": {"pattern": pattern, "sparsity": 0.3},
    }
    method = toy.make_method(task, "federated_dropout+federated_pruning", **options)
    with pytest.raises(UserError, match=r"federated_pruning ranks .* put it further left"):
        method.init(KEYS.round, server_view(toy.make_params(task)))


@pytest.mark.parametrize("spec", ["dp_fedavg+federated_pruning", "federated_pruning+dp_fedavg"])
def test_private_training_refuses_it_before_the_first_mask(spec):
    task = toy.make_task()
    context = toy.make_context(task)._replace(weighting="uniform", participation="poisson")
    toy.make_method(task, "dp_fedavg", context)
    with pytest.raises(UserError, match=r"DpFedAvg needs every client .* FederatedPruning leaves"):
        toy.make_method(task, spec, context, federated_pruning={"prune_from": 2})


@pytest.mark.parametrize("inner", ["federated_dropout", "heterofl"])
def test_sub_models_cannot_be_cut_out_of_compact_kernels(inner):
    task = toy.make_task()
    with pytest.raises(UserError, match="sends compact kernels, out of which"):
        options = {"pattern": "half_row", "sparsity": 0.01}
        toy.make_method(task, f"federated_pruning+{inner}", federated_pruning=options)
    toy.make_method(task, f"federated_pruning+{inner}")


def test_a_kernel_of_another_layer_is_named():
    model = models.build("char_lstm", num_classes=7, embed=3, lstm1=4, lstm2=4)
    example = jax.ShapeDtypeStruct((1, 5), jnp.int32)
    task = tasks.LanguageModel(model, units.unit_axes(model, example))
    params = units.init_params(model, jax.random.key(0), example)
    masked, state = _first_mask(task, params, "row")
    view, _ = masked.select(state, (), KEYS, server_view(params))
    with pytest.raises(UserError, match=r"is not the kernel of a dense layer or a convolution"):
        task.apply({**values(view.read), **values(view.trained)}, jnp.ones((1, 5), jnp.int32))
