"""Schemes of rates: of one size, in the order that their name says."""

import pytest
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlite.errors import UserError
from fedlite.models.rate_presets import KINDS, rate_presets
from fedlite.models.sizes import kept_units, parameters, solve
from fedlite.models.units import UnitAxes, UnitAxis


def _network(sizes):
    """Dense layers of these sizes between 7 inputs and 3 outputs."""
    names = [f"w{i}" for i in range(len(sizes))]
    lengths, owners = (7, *sizes, 3), (None, *names, None)
    shapes, table = {}, {}
    for i in range(len(sizes) + 1):
        axes = [UnitAxis(owner, 1) if owner else None for owner in owners[i : i + 2]]
        shapes |= {f"l{i}/kernel": lengths[i : i + 2], f"l{i}/bias": lengths[i + 1 : i + 2]}
        table |= {f"l{i}/kernel": tuple(axes), f"l{i}/bias": (axes[1],)}
    return UnitAxes(FrozenDict(table)), shapes, names


def _counts(rules, axes, shapes):
    """Units that federated dropout keeps."""
    totals = axes.widths(shapes)
    return {width: kept_units(totals[width], rate) for width, rate in rules}


def test_parameters_of_a_sub_model_by_hand():
    axes, shapes, _ = _network((5, 4))
    # 7 x 5 + 5 + 5 x 4 + 4 + 4 x 3 + 3, and with 2 of 5: 7 x 2 + 2 + 2 x 4 + 4 + 4 x 3 + 3.
    assert parameters(axes, shapes, {}) == 79
    assert parameters(axes, shapes, {"w0": 2}) == 43
    groups = UnitAxes(FrozenDict({"a": (UnitAxis("g", 4), None)}))
    assert parameters(groups, {"a": (12, 5)}, {"g": 2}) == 40


def test_equal_widths_fall_one_unit_at_a_time():
    def counts(x):
        return {"a": round(10 - x), "b": round(10 - x)}

    found = solve(counts, lambda kept: kept["a"] + kept["b"], 13, (0, 10), order=("b", "a"))
    assert found == {"a": 7, "b": 6}
    with pytest.raises(UserError, match="the smallest has 2"):
        solve(counts, lambda kept: kept["a"] + kept["b"], 1, (0, 9))


@given(
    st.sampled_from([kind for kind in KINDS if kind != "uniform"]),
    st.lists(st.integers(4, 60), min_size=2, max_size=6),
    st.floats(0.05, 0.7),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_presets_have_one_size_and_the_order_of_their_name(kind, sizes, rate, data):
    axes, shapes, names = _network(sizes)
    importance = {name: data.draw(st.floats(0, 0.9)) for name in names}
    uniform = _counts(rate_presets("uniform", axes, shapes, names, rate), axes, shapes)
    rules = rate_presets(kind, axes, shapes, names, rate, importance=importance)
    kept = _counts(rules, axes, shapes)
    target, found = (parameters(axes, shapes, counts) for counts in (uniform, kept))
    one_more = [
        parameters(axes, shapes, {**kept, name: kept[name] + 1})
        for name, size in zip(names, sizes)
        if kept[name] < size
    ]
    assert found <= target
    assert found == target or target < max(one_more)

    middle = (len(names) - 1) / 2
    depth = {
        "ascending": list(range(len(names))),
        "descending": [-i for i in range(len(names))],
        "middle-heavy": [-abs(i - middle) for i in range(len(names))],
        "edges-heavy": [abs(i - middle) for i in range(len(names))],
        "ambient": [-importance[name] for name in names],
    }[kind]
    rates = [rate for _, rate in rules]
    # To whole units: half a unit of rounding, and one by which ties are parted.
    for i, one in enumerate(depth):
        for j, other in enumerate(depth):
            if one < other and min(kept[names[i]], kept[names[j]]) > 1:
                assert rates[i] <= rates[j] + 1.5 / sizes[i] + 1.5 / sizes[j]


def test_rates_by_hand():
    axes, shapes, names = _network((100, 100, 100))
    rates = dict(rate_presets("middle-heavy", axes, shapes, names, 0.4))
    assert rates["w1"] - rates["w0"] == pytest.approx(0.4, abs=0.011)
    assert rates["w0"] == pytest.approx(rates["w2"], abs=0.011)
    rates = dict(rate_presets("ascending", axes, shapes, names, 0.4, spread=0.2))
    assert rates["w2"] - rates["w1"] == pytest.approx(0.1, abs=0.011)
    important = {"w0": 1.0, "w1": 0.5, "w2": 0.0}
    rates = dict(rate_presets("ambient", axes, shapes, names, 0.3, importance=important))
    assert rates["w0"] == 0 and rates["w2"] == pytest.approx(2 * rates["w1"], abs=0.021)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("sideways", ["w0"], 0.5), "no rate preset 'sideways'"),
        (("uniform", ["w9"], 0.5), "no width 'w9'"),
        (("uniform", ["w0", "w0"], 0.5), "each once"),
        (("uniform", ["w0"], 1.0), "below 1"),
        (("ambient", ["w0"], 0.5), "importance of width 'w0'"),
    ],
)
def test_refusals(arguments, match):
    axes, shapes, _ = _network((5, 4))
    kind, widths, rate = arguments
    with pytest.raises(UserError, match=match):
        rate_presets(kind, axes, shapes, widths, rate)
