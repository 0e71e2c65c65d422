"""Sub-models against results worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlite.methods import Keys, Report, Update, View, server_view
from fedlite.methods.federated_dropout import FederatedDropout
from fedlite.methods.submodel import Kept, mask, put, take
from fedlite.models.sizes import kept_units
from fedlite.models.units import UnitAxes, UnitAxis
from fedlite.wire import Part
from tests import toy

REPORT = Report(jnp.float32(0), jnp.int32(1), jnp.int32(1), jnp.float32(1))
# A hidden width h of 4 units: kernel [2, h], bias [h], next kernel [h, 3].
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
PARAMS = {
    "in/kernel": jnp.arange(8.0).reshape(2, 4),
    "in/bias": jnp.arange(4.0),
    "out/kernel": jnp.arange(12.0).reshape(4, 3),
    "out/bias": jnp.arange(3.0),
}


def _keys(seed=0):
    return Keys(jax.random.key(seed), jax.random.key(seed + 100))


@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_put_inverts_take_on_the_kept_units(units, size, seed):
    rng = np.random.default_rng(seed)
    # Some dimensions have a width that nobody drops, or none.
    axes = tuple(UnitAxis(f"w{i}", size) if rng.integers(4) else None for i in range(len(units)))
    value = rng.normal(size=[n * size for n, _ in units]).astype(np.float32)
    kept, expected = {}, value
    for i, (total, drops) in enumerate(units):
        indices = np.sort(rng.permutation(total)[: rng.integers(1, total + 1)])
        if axes[i] and drops:
            kept[f"w{i}"] = Kept(jnp.asarray(indices), total)
            entries = (indices[:, None] * size + np.arange(size)).ravel()
            expected = np.take(expected, entries, axis=i)
    hit = mask(axes, kept, value.ndim)
    sub = take(axes, value, kept)
    np.testing.assert_array_equal(sub, expected)
    back = put(axes, sub, kept)
    np.testing.assert_array_equal(back, np.where(np.broadcast_to(hit, value.shape), value, 0))
    np.testing.assert_array_equal(take(axes, back, kept), sub)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int32, np.float16])
def test_take_and_put_keep_the_type(dtype):
    value = jnp.asarray([[1, 0, 1, 1], [0, 1, 1, 0]], dtype)
    axes, kept = (None, UnitAxis("h", 1)), {"h": Kept(jnp.array([1, 2]), 4)}
    sub = take(axes, value, kept)
    back = put(axes, sub, kept)
    assert sub.dtype == back.dtype == value.dtype
    np.testing.assert_array_equal(sub, [[0, 1], [1, 1]])
    np.testing.assert_array_equal(back, [[0, 0, 1, 0], [0, 1, 1, 0]])


def test_units_along_an_axis_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match="1 axes has no units along axis 1"):
        take((None, UnitAxis("h", 1)), jnp.ones(4), {"h": Kept(jnp.array([1, 2]), 4)})


def test_select_takes_rows_and_columns_of_the_same_units():
    method = FederatedDropout(AXES, FrozenDict(), rates=(("h", 0.5),))
    view, (_, kept) = method.select((), (), _keys(), server_view(PARAMS))
    indices = np.asarray(kept["h"].indices)
    assert len(indices) == 2 and (np.diff(indices) > 0).all()
    np.testing.assert_array_equal(view.trained["in/kernel"].value, PARAMS["in/kernel"][:, indices])
    np.testing.assert_array_equal(view.trained["in/bias"].value, PARAMS["in/bias"][indices])
    np.testing.assert_array_equal(view.trained["out/kernel"].value, PARAMS["out/kernel"][indices])
    np.testing.assert_array_equal(view.trained["out/bias"].value, PARAMS["out/bias"])


@pytest.mark.parametrize("aggregation", ["count", "zero"])
def test_deselect_claims(aggregation):
    method = FederatedDropout(AXES, FrozenDict(), rates=(("h", 0.5),), aggregation=aggregation)
    view, context = method.select((), (), _keys(), server_view(PARAMS))
    parts = {path: Part(jnp.ones_like(part.value)) for path, part in view.trained.items()}
    update, _ = method.deselect(context, Update(parts, jnp.float32(5)), REPORT)
    held = np.isin(np.arange(4), context[1]["h"].indices)
    part = update.parts["in/bias"]
    np.testing.assert_array_equal(part.value, held)
    np.testing.assert_array_equal(part.sent, held)
    cover = np.broadcast_to(part.cover, 4)
    np.testing.assert_array_equal(cover, held if aggregation == "count" else np.ones(4))
    np.testing.assert_array_equal(update.parts["out/kernel"].value, np.outer(held, np.ones(3)))
    # What has no dropped axis is passed through untouched.
    assert update.parts["out/bias"] is parts["out/bias"]


def test_rescaling_multiplies_what_reads_the_width():
    method = FederatedDropout(AXES, FrozenDict(), rates=(("h", 0.5),), rescale=True)
    plain = FederatedDropout(AXES, FrozenDict(), rates=(("h", 0.5),))
    view, context = method.select((), (), _keys(), server_view(PARAMS))
    other, _ = plain.select((), (), _keys(), server_view(PARAMS))
    for path, factor in {"in/kernel": 1, "in/bias": 1, "out/kernel": 2, "out/bias": 1}.items():
        np.testing.assert_array_equal(view.trained[path].value, factor * other.trained[path].value)
    # A change of the scaled weight is half that change of the server's.
    parts = {path: Part(jnp.ones_like(part.value)) for path, part in view.trained.items()}
    update, _ = method.deselect(context, Update(parts, jnp.float32(1)), REPORT)
    assert float(update.parts["out/kernel"].value.max()) == 0.5
    assert float(update.parts["in/kernel"].value.max()) == 1.0


def test_read_parts_and_tagged_parts_are_cut_alike():
    method = FederatedDropout(AXES, FrozenDict(), rates=(("h", 0.5),))
    view = server_view(PARAMS)
    tagged = {"mask:out/kernel": Part(PARAMS["out/kernel"] > 3)}
    view = View(
        {k: v for k, v in view.trained.items() if k != "in/kernel"},
        {"in/kernel": view.trained["in/kernel"], **tagged},
    )
    cut, (_, kept) = method.select((), (), _keys(), view)
    indices = kept["h"].indices
    np.testing.assert_array_equal(cut.read["in/kernel"].value, PARAMS["in/kernel"][:, indices])
    np.testing.assert_array_equal(
        cut.read["mask:out/kernel"].value, (PARAMS["out/kernel"] > 3)[indices]
    )


def test_clients_draw_for_themselves_or_the_round_for_all():
    def drawn(per, client):
        method = FederatedDropout(AXES, FrozenDict(), rates=(("h", 0.5),), per=per)
        keys = Keys(jax.random.key(0), jax.random.key(client))
        return tuple(np.asarray(method.units((), keys, {"h": 40})["h"]))

    assert drawn("round", 1) == drawn("round", 2)
    assert drawn("client", 1) != drawn("client", 2)


def test_every_unit_is_drawn_as_often():
    method = FederatedDropout(AXES, FrozenDict(), rates=(("h", 0.5),))

    def draw(key):
        return jnp.zeros(4).at[method.units((), Keys(key, key), {"h": 4})["h"]].set(1)

    counts = jax.vmap(draw)(jax.random.split(jax.random.key(0), 4000)).mean(0)
    np.testing.assert_allclose(counts, 0.5, atol=4 * 0.5 / 4000**0.5)


@pytest.mark.parametrize("kind", ["ascending", "descending", "ambient"])
def test_a_preset_shares_one_rate_in_order_of_depth(kind):
    """By numbers within names, and only among the widths that are dropped."""
    names = ["block1/f", "block2/f", "block10/f", "block10/g"]
    axes = UnitAxes(FrozenDict({name: (None, UnitAxis(name, 1)) for name in names}))
    shapes = FrozenDict(dict.fromkeys(names, (5, 20)))
    important = ((r"block1/.*", 1.0), (r"block2/.*", 0.5), (r"block10/.*", 0.0))
    options = {"rates": ((r"block\d+/f", 0.5),), "preset": kind, "importance": important}
    method = FederatedDropout(axes, shapes, **options)
    units = method.units((), Keys(jax.random.key(0), jax.random.key(1)), dict.fromkeys(names, 20))
    kept = [len(units[name]) for name in names]
    assert sum(kept[:3]) == 30 and kept[3] == 20
    assert kept[:3] == sorted(kept[:3], reverse=kind != "descending") and kept[0] != kept[1]


def test_kept_units():
    assert [kept_units(10, r) for r in (0, 0.25, 0.5, 0.99)] == [10, 8, 5, 1]


def test_bytes_of_the_emnist_cnn_at_a_quarter():
    task = toy.make_task("emnist_cnn", conv1=32, conv2=64, dense1=128)
    method = toy.make_method(
        task, "federated_dropout", federated_dropout={"rates": ((".*", 0.25),)}
    )
    view = jax.eval_shape(
        lambda p: {
            k: v.value for k, v in method.select((), (), _keys(), server_view(p))[0].trained.items()
        },
        toy.make_params(task),
    )
    assert {k: v.shape for k, v in view.items()}["conv2/kernel"] == (3, 3, 24, 48)
