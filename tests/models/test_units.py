"""Unit axes on small modules whose axes can be written down by hand."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlite.models import units
from fedlite.models.units import UnitAxes, UnitAxis

X = jnp.ones((2, 3))


class Net(nn.Module):
    """Hidden units `a`, then groups of three `b`, without a bias in between."""

    widths: FrozenDict[str, int]

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.widths["a"], name="in")(x)
        x = nn.Dense(3 * self.widths["b"], use_bias=False, name="mid")(x)
        x = nn.GroupNorm(num_groups=None, group_size=3, name="norm")(x)
        return nn.Dense(2, name="out")(x)


@pytest.fixture(scope="module")
def axes():
    return units.unit_axes(Net(FrozenDict(a=4, b=2)), X)


def test_axes_by_hand(axes):
    a, b = UnitAxis("a", 1), UnitAxis("b", 3)
    assert dict(axes.table) == {
        "in/kernel": (None, a),
        "in/bias": (a,),
        "mid/kernel": (a, b),
        "norm/scale": (b,),
        "norm/bias": (b,),
        "out/kernel": (b, None),
        "out/bias": (None,),
    }


def test_of_looks_through_tags(axes):
    assert axes.of("mask:mid/kernel") == axes.of("mid/kernel")
    with pytest.raises(KeyError, match="'mid/bias' is no parameter"):
        axes.of("mid/bias")


def test_input_axes_by_hand(axes):
    inputs = {path: axes.input_axes(path) for path in axes.table}
    assert {k: v for k, v in inputs.items() if v} == {"mid/kernel": (0,), "out/kernel": (0,)}
    assert axes.input_axes("mask:out/kernel") == (0,)


def test_input_axes_are_those_that_a_bias_does_not_have():
    heads, units_ = UnitAxis("heads", 1), UnitAxis("hidden", 1)
    table = UnitAxes(
        FrozenDict(
            {
                "query/kernel": (units_, heads, None),
                "query/bias": (heads, None),
                "out/kernel": (heads, None, units_),
                "out/bias": (units_,),
                "recurrent/kernel": (units_, None, units_),
                "kernel": (units_, heads),
            }
        )
    )
    assert table.input_axes("query/kernel") == (0,)
    assert table.input_axes("out/kernel") == (0,)
    assert table.input_axes("recurrent/kernel") == (0,)
    assert table.input_axes("kernel") == (0,)
    assert table.input_axes("query/bias") == ()


@given(a=st.integers(1, 9), b=st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_widths_are_read_off_shapes(axes, a, b):
    shapes = units.param_shapes(Net(FrozenDict(a=a, b=b)), X)
    assert axes.widths(shapes) == {"a": a, "b": b}
    assert axes.widths({"mask:in/bias": (a,)}) == {"a": a}
    assert axes.widths({"out/bias": (2,)}) == {}


@pytest.mark.parametrize(
    "shapes, says",
    [
        ({"norm/bias": (7,)}, "no whole units of 3"),
        ({"in/bias": (4,), "mid/kernel": (5, 6)}, "5 units of 'a', other arrays 4"),
        ({"in/bias": (4, 4)}, "has 2 axes where the model has 1"),
    ],
)
def test_shapes_that_no_submodel_has(axes, shapes, says):
    with pytest.raises(ValueError, match=says):
        axes.widths(shapes)


class Wrong(nn.Module):
    """One dense layer of `size(widths)` features."""

    widths: FrozenDict[str, int]
    fault: str

    @nn.compact
    def __call__(self, x):
        a, b = self.widths["a"], self.widths["b"]
        if self.fault == "state":
            self.variable("batch_stats", "mean", jnp.zeros, (a,))
        if self.fault == "layers":
            for i in range(a):
                x = nn.Dense(b, name=f"layer{i}")(x)
            return x
        size = {"shared": a * b, "sum": a + b, "offset": a + 1, "unused": a, "state": a}[self.fault]
        return nn.Dense(size, name="dense")(x)


@pytest.mark.parametrize(
    "fault, says",
    [
        ("shared", "depends on two widths, 'a' and 'b'"),
        ("sum", "4 entries, which are not the 2 units of 'a' with 1 each"),
        ("offset", "3 entries, which are not the 2 units of 'a' with 1 each"),
        ("unused", "width 'b' changes no parameter"),
        ("layers", "width 'a' changes which parameters"),
        ("state", "parameters alone, got"),
    ],
)
def test_widths_that_cannot_be_dropped_are_refused(fault, says):
    with pytest.raises(ValueError, match=says):
        units.unit_axes(Wrong(FrozenDict(a=2, b=2), fault), X)


class Sizes(nn.Module):
    """A dense layer for each width, and one of `size(widths)` features."""

    widths: FrozenDict[str, int]
    size: Callable[[dict[str, int]], int]

    @nn.compact
    def __call__(self, x):
        for width, units_ in self.widths.items():
            nn.Dense(units_, name=width)(x)
        return nn.Dense(self.size(self.widths), name="dense")(x)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=3, max_size=5),
    counts=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    constant=st.integers(0, 3),
    product=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_widths_together_tell_what_each_width_alone_does(sizes, counts, constant, product):
    """Sums with a constant, and products: no mixture passes for one width."""
    widths = FrozenDict({f"w{i}": size for i, size in enumerate(sizes)})

    def size(widths):
        if product:
            return math.prod(n for n, count in zip(widths.values(), counts) if count)
        return constant + sum(n * count for n, count in zip(widths.values(), counts)) or 1

    model = Sizes(widths, size)
    shapes = units.param_shapes(model, X)
    together = units._all_widths_at_once(model, X, shapes)
    try:
        expected = units._one_width_at_a_time(model, X, shapes)
    except ValueError:
        expected = None
    assert together == expected


def test_two_traces_are_enough_for_many_widths(monkeypatch):
    traces = []
    param_shapes = units.param_shapes
    monkeypatch.setattr(units, "param_shapes", lambda *a: traces.append(1) or param_shapes(*a))
    widths = FrozenDict({f"w{i}": 2 + i % 3 for i in range(40)})
    axes = units.unit_axes(Sizes(widths, lambda widths: 5), X)
    assert len(traces) == 3
    assert axes.table == {
        **{f"{width}/kernel": (None, UnitAxis(width, 1)) for width in widths},
        **{f"{width}/bias": (UnitAxis(width, 1),) for width in widths},
        "dense/kernel": (None, None),
        "dense/bias": (None,),
    }


def test_initialisation_is_replayed_and_independent_of_other_arrays():
    key = jax.random.key(0)
    net, wider = Net(FrozenDict(a=4, b=2)), Net(FrozenDict(a=4, b=3))
    first, again, wide = (units.init_params(model, key, X) for model in (net, net, wider))
    assert list(first) == list(units.param_shapes(net, X))
    for path in first:
        np.testing.assert_array_equal(first[path], again[path])
    np.testing.assert_array_equal(first["in/kernel"], wide["in/kernel"])
    other = units.init_params(net, jax.random.key(1), X)
    assert not np.array_equal(first["in/kernel"], other["in/kernel"])
